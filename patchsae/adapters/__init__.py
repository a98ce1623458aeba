"""Adapters of CLIP behind one interface, `base.AdaptedCLIP`. A kind is a module with an ``ADAPTER``; see `kinds`."""

from __future__ import annotations

from patchsae.adapters.base import AdaptedCLIP
from patchsae.adapters.files import save_adapter
from patchsae.adapters.kinds import KINDS, adapter_class, create
from patchsae.adapters.load import load_adapter

__all__ = ["KINDS", "AdaptedCLIP", "adapter_class", "create", "load_adapter", "save_adapter"]
