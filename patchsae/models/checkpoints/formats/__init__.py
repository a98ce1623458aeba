"""The formats of SAEs: every module here that defines FORMAT is one. Adding one is adding one file.

What several of them share is a module beside them (`dictionaries`, `norms`, `whole_module`); what all of them may use
is in the folder above.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchsae.models.checkpoints.format import Format


@cache
def known() -> tuple[Format, ...]:
    """All formats, by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return tuple(sorted((module.FORMAT for module in modules if hasattr(module, "FORMAT")), key=lambda f: f.name))
