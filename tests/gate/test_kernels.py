"""Every kernel of the package compiles for every part within its resources (`python -m tests.gate` prints them)."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from triton.runtime.jit import JITFunction

import patchsae_kernels.triton as package
from tests.gate.calls import CALLS, Call
from tests.gate.cases import cases, launches
from tests.gate.compiling import compile_all, complaints
from tests.gate.parts import PARTS, Part


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
@pytest.mark.parametrize(
    "call", [pytest.param(call, id=call.name, marks=[pytest.mark.slow] * call.slow) for call in CALLS]
)
def test_every_kernel_fits_every_part(call: Call, part: Part) -> None:
    refused = [line for case, used in compile_all(cases(part, [call])) for line in complaints(case, used)]
    assert not refused, "\n".join(refused)


def test_no_kernel_escapes() -> None:
    shipped = {f"{kernel.module}.{kernel.fn.__name__}" for kernel in kernels_of_the_package()}
    recorded = {launch.kernel for part in PARTS for call in CALLS for launch in launches(part, call)}
    assert shipped == {f"{kernel.module}.{kernel.fn.__name__}" for kernel in recorded}


def kernels_of_the_package() -> list[JITFunction]:
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    return [
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    ]
