"""What a record was measured with: the code that an item ran, as one hash."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
KERNELS = "patchsae_kernels.triton"
FOLLOWED = ("benches.", "patchsae.", f"{KERNELS}.")
"""Packages whose imports are followed. The modules beside `KERNELS` import each other and count as one."""


def digest(stage: str, kernels: Iterable[str]) -> str:
    """SHA-256 of the stage, of the kernels' modules and of all that these import, and of the ops on top of them.

    An item that started no kernel in its own process counts as one that may have started any.
    """
    started = tuple(sorted(kernels)) or tuple(sorted(_modules_of_kernels()))
    return _digest((f"benches.gpu.stages.{stage}", *started))


class Watch:
    """Notes whose kernels are started, and by which host code, in `modules`."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self._seen: set[Any] = set()
        for kernel in _kernels():
            kernel.add_pre_run_hook(self._hook(kernel))

    def clear(self) -> None:
        self.modules.clear()
        self._seen.clear()

    def _hook(self, kernel: Any) -> Callable[..., None]:
        def started(*_arguments: Any, **_options: Any) -> None:
            if id(kernel) not in self._seen:  # once an item: while it is timed this costs a look-up
                self._seen.add(id(kernel))
                self.modules |= {kernel.fn.__module__, *_callers()}

        return started


def _callers() -> Iterator[str]:
    """Modules of the package on the stack."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(f"{KERNELS}."):
            yield name
        frame = frame.f_back


def _kernels() -> Iterator[Any]:
    """Everything under ``@triton.jit``, where Triton is installed."""
    for name in _modules_of_kernels():
        try:
            module = importlib.import_module(name)
        except Exception:  # the items that need it say what is wrong with it
            continue
        for value in vars(module).values():
            if hasattr(value, "add_pre_run_hook") and not isinstance(value, type) and value.fn.__module__ == name:
                yield value


@functools.cache
def _modules_of_kernels() -> tuple[str, ...]:
    folder = ROOT.joinpath(*KERNELS.split("."))
    return tuple(f"{KERNELS}.{module.name}" for module in pkgutil.iter_modules([str(folder)]))


@functools.cache
def _digest(roots: tuple[str, ...]) -> str:
    package = ROOT / KERNELS.split(".")[0]
    above = [*package.glob("*.py"), *package.glob("reference/*.py")]
    result = hashlib.sha256()
    for path in sorted({*above, *_reached(roots)}):
        content = path.read_bytes()
        result.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return result.hexdigest()


def _reached(roots: Iterable[str]) -> set[Path]:
    """Files of modules and of all that they import, directly or not, from the followed packages."""
    found: set[Path] = set()
    waiting = list(roots)
    while waiting:
        path = _file(waiting.pop())
        if path is not None and path not in found:
            found.add(path)
            waiting += _imports(path)
    return found


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    """Names that may be modules: an imported name may be one, or an attribute of one."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _file(module: str) -> Path | None:
    if not module.startswith(FOLLOWED):
        return None
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None
