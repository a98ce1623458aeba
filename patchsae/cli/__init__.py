"""The command line: `entry.main` and what only verbs need. Nothing here computes, and nothing below imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.cli.entry import main as main

_HOMES = {"main": "entry"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
