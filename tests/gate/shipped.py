"""The kernels of the package, and those of them that no call of the gate starts."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from triton.runtime.jit import JITFunction

import patchsae_kernels.triton as package
from tests.gate.cases import Case


def shipped() -> set[str]:
    """Every kernel of the package as module.name."""
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    return {
        _name(value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }


def complaints(started: Iterable[Case]) -> list[str]:
    """A line for each kernel that none of these cases compiles, and for each that is none of the package's."""
    known, found = shipped(), {_name(case.kernel) for case in started}
    unknown = [f"{name}: started, and not found as a kernel of {package.__name__}" for name in sorted(found - known)]
    return unknown + [f"{name}: no call starts it; expected one in calls.py" for name in sorted(known - found)]


def _name(kernel: JITFunction) -> str:
    return f"{kernel.module}.{kernel.fn.__name__}"
