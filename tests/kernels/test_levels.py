"""Instruction-set levels: what is chosen, how it is forced, what is said about it."""

import os
import subprocess
import sys

import pytest
import torch

import patchsae_kernels as pk
from patchsae_kernels import cpu
from patchsae_kernels.cpu.extension import levels, native
from tests.kernels.cases import make_case

pytestmark = pytest.mark.skipif(not cpu.available, reason="the native extension is not installed")


def run(program, level):
    environment = os.environ | {"PATCHSAE_CPU_LEVEL": level}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_the_highest_level_is_in_force_and_every_machine_has_the_first():
    assert levels()[0] == "scalar"
    assert levels() == sorted(levels(), key=["scalar", "avx2", "avx512", "avx512bf16", "amx"].index)
    if not os.environ.get("PATCHSAE_CPU_LEVEL"):
        assert cpu.level() == levels()[-1]


@pytest.mark.slow
def test_the_override_forces_a_level_and_describe_says_why():
    done = run("import patchsae_kernels as pk; print(pk.describe()['native']['why'])", "scalar")
    assert done.returncode == 0, done.stderr
    expected = "scalar: "
    if len(levels()) > 1:
        expected += f"PATCHSAE_CPU_LEVEL (this machine grants {levels()[-1]})"
    assert done.stdout.strip().startswith(expected)


@pytest.mark.slow
def test_an_unknown_level_is_an_error_that_names_the_levels():
    done = run("import patchsae_kernels", "sse9")
    assert done.returncode != 0
    assert "PATCHSAE_CPU_LEVEL" in done.stderr
    assert all(name in done.stderr for name in levels())


def test_describe_gives_the_level_and_the_reason():
    what = pk.describe()["native"]
    assert what["level"] == cpu.level()
    assert what["why"].startswith(f"{cpu.level()}: ")
    assert len(what["why"]) > len(f"{cpu.level()}: ")


@pytest.mark.slow
def test_the_rate_of_products_is_measured_at_every_level():
    """In a process of its own: an instruction that is refused ends it."""
    program = """
from patchsae_kernels.cpu import extension, peak
for level in extension.levels():
    extension.native.set_level(level)
    peak.spend(10**6)
    print(level)
"""
    done = run(program, levels()[-1])
    assert (done.returncode, done.stdout.split()) == (0, levels()), done.stderr


def test_all_levels_encode_the_same_latents():
    """float32 sums of the levels differ in rounding only, and no latent here lies within rounding of zero."""
    case = make_case(0, 40, 64, 300)
    before = native.level()
    results = []
    try:
        for level in levels():
            native.set_level(level)
            results.append(case.encode())
    finally:
        native.set_level(before)
    for z in results[1:]:
        assert torch.equal(z.indices, results[0].indices)
        torch.testing.assert_close(z.values, results[0].values)
