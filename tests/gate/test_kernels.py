"""Every kernel of the package compiles within its resources at the paper's shape for one part.

`make gate` asks the same of every shape and part, which is twelve times as much to compile, and prints a table.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from triton.runtime.jit import JITFunction

import patchsae_kernels.triton as package
from tests.gate import recorded
from tests.gate.arguments import Call
from tests.gate.calls import CALLS
from tests.gate.cases import cases, launches
from tests.gate.compiling import compile_all, resources
from tests.gate.parts import PARTS, Part
from tests.gate.races import READ_BACK

SM_90 = next(part for part in PARTS if part.name == "sm_90")
AT_THE_PAPERS_SHAPE = [call for call in CALLS if not call.slow]


@pytest.mark.parametrize("call", AT_THE_PAPERS_SHAPE, ids=lambda call: call.name)
def test_every_kernel_fits(call: Call) -> None:
    refused = []
    for case, used in compile_all(cases(SM_90, [call])):
        refused += recorded.refusals(case, used, at_the_papers_shape=True)
    assert not refused, "\n".join(refused)


def test_no_kernel_escapes() -> None:
    calls = [call for call in CALLS if not call.part]
    started = {launch.kernel for part in PARTS for call in calls for launch in launches(part, call)}
    assert {f"{kernel.module}.{kernel.fn.__name__}" for kernel in started} == shipped()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_kernels_that_read_back_have_all_their_barriers(part: Part) -> None:
    calls = [call for call in AT_THE_PAPERS_SHAPE if call.name.startswith(("decode_sweep", "latent_stats"))]
    found = {case: resources(case).read_back for case in cases(part, calls) if case.name in READ_BACK}
    assert {case.name for case in found} == READ_BACK.keys()
    assert {(case.name, barriers) for case, barriers in found.items()} == set(READ_BACK.items())


def test_records_are_of_kernels_that_there_are() -> None:
    names = {name.split(".")[-1] for name in shipped()}
    assert {place.split()[0] for place in recorded.recorded() or {}} <= names


def shipped() -> set[str]:
    return {f"{kernel.module}.{kernel.fn.__name__}" for kernel in kernels_of_the_package()}


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
