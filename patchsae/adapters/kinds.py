"""The kinds of adapters by name, and new ones of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from patchsae.adapters.base import AdaptedCLIP
from patchsae.models.clip import SplitCLIP

# Where each kind's class lies, under the name ADAPTER.
KINDS = {
    "maple": "patchsae.adapters.maple",
    "coop": "patchsae.adapters.coop",
    "vpt": "patchsae.adapters.vpt",
    "linear": "patchsae.adapters.linear",
    "lora": "patchsae.adapters.lora",
}


def create(kind: str, clip: SplitCLIP, classnames: Sequence[str], config: Any = None, seed: int = 1) -> AdaptedCLIP:
    """A new, untrained adapter.

    Args:
        kind: of `KINDS`.
        config: that kind's frozen dataclass; None takes the published settings, no deeper than the CLIP is.
        seed: of the tensors drawn at random; the global generator is untouched, and a device gives the same ones.

    Raises:
        ValueError: unknown kind, another kind's config, or what `AdaptedCLIP` raises.
    """
    adapter = adapter_class(kind)
    config = adapter.default_config(clip) if config is None else config
    if type(config) is not adapter.config_class:
        raise ValueError(f"config is a {type(config).__name__}; kind={kind!r} takes a {adapter.config_class.__name__}")
    generator = torch.Generator().manual_seed(seed)
    return adapter(clip, classnames, config, adapter.initial(clip, config, len(classnames), generator))


def adapter_class(kind: str) -> type[AdaptedCLIP]:
    """The class of a kind; ValueError for an unknown one."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind={str(kind)[:40]!r}; expected one of {', '.join(KINDS)}")
    adapter: type[AdaptedCLIP] = importlib.import_module(KINDS[kind]).ADAPTER
    return adapter
