"""Names of a package that are imported on first use, so that options, help and `import patchsae` load no torch."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        homes: name -> the submodule that defines it, as in ``{"load_clip": "models.clip"}``. Submodules themselves are
            found without being listed.
    """

    def getattr_(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        if not name.startswith("_"):
            try:
                return importlib.import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def dir_() -> list[str]:
        modules = (found.name for found in pkgutil.iter_modules(sys.modules[package].__path__))
        return sorted({*homes, *(name for name in modules if not name.startswith("_"))})

    return getattr_, dir_


class _Moved(MetaPathFinder, Loader):
    """Finds modules, and what is below them, where they are now."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if self._now(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._now(module.__name__))

    def _now(self, fullname: str) -> str:
        for old, new in self.moved.items():
            if fullname == old or fullname.startswith(f"{old}."):
                return new + fullname.removeprefix(old)
        return ""


def moved(modules: Mapping[str, str]) -> None:
    """Let modules be imported by names that they had: name -> name now."""
    sys.meta_path.insert(0, _Moved(modules))
