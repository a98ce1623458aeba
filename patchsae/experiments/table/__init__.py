"""`patchsae table`: comparisons of many datasets and adapters in one table, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.table.cells import Cell as Cell
    from patchsae.experiments.table.experiment import OpenCell as OpenCell
    from patchsae.experiments.table.experiment import run as run
    from patchsae.experiments.table.result import TableRow as TableRow

_HOMES = {"run": "experiment", "OpenCell": "experiment", "Cell": "cells", "TableRow": "result"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
