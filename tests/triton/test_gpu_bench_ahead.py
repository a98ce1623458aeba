"""What `python -m benches.gpu` compiles before it measures, and what it needs installed: in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benches.gpu import stages

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str, **environment: str) -> str:
    """Output of a script that starts without the interpreter; AssertionError with its errors if it fails."""
    known = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


LAUNCHES = """
import os, sys
from pathlib import Path
from benches.gpu import warming

words, cache = sys.argv[1:], Path(os.environ["TRITON_CACHE_DIR"])
found = warming.compiled("sm_90", 2, float("inf"), words)
assert found["failed"] == [] and found["left"] == found["ended"] == 0, found
before = set(cache.rglob("*"))
assert len(before) > 2 * found["compiled"] > 10

from triton.runtime import driver
from tests.gate.calls import CALLS
from tests.gate.cases import launches

part = next(part for part in warming.parts() if part.name == "sm_90")

class Device:
    def get_current_target(self): return part.target
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Device())
started = [launch for call in CALLS if any(word in call.name for word in words) for launch in launches(part, call)]
assert {type(a).__name__ for launch in started for a in launch.args} >= {"Tensor", "TensorDescriptor", "int", "float"}
for launch in started:  # as `kernel[grid](...)` does, which compiles what it does not find, but for the start itself
    launch.kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.options)
assert set(cache.rglob("*")) == before, sorted(set(cache.rglob("*")) - before)
kernel = started[0]
kernel.kernel.run(*kernel.args, grid=kernel.grid, warmup=True, **kernel.options | {"num_warps": 2})
assert set(cache.rglob("*")) > before
"""


@pytest.mark.slow
def test_a_launch_finds_what_was_compiled_ahead_in_the_cache(tmp_path: Path) -> None:
    """Triton's own launch path, told that the part is there, compiles nothing any more; whatever else is installed."""
    other = tmp_path / "site" / "tests" / "__init__.py"
    other.parent.mkdir(parents=True)
    other.touch()
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path / "site")}
    run(LAUNCHES, "fused_maxima float16", "latent_stats paper float32", "encode repair", **environment)


REFUSED = """
import os, sys, time
from types import SimpleNamespace
from benches.gpu import warming

def compile(case):
    if case.name == "crashes":
        os.abort()
    if case.name == "hangs":
        time.sleep(600)
    if case.name == "refused":
        raise ValueError("no such function")

warming._compile, warming._prime = compile, lambda case: None
warming._calls = lambda part, words: list(words)
warming._cases = lambda part, calls, failed: (
    SimpleNamespace(name=calls.popleft(), configuration="") for _ in range(len(calls)))
names = ["crashes", "refused", "good", "hangs", "also good", "hangs", "x", "y"]
found = warming.compiled("sm_90", 2, time.time() + 3, names)
assert {o["kernel"]: o["message"] for o in found["failed"]} == {
    "crashes": "the compiler ended with status 6", "refused": "ValueError: no such function"}, found
assert (found["compiled"], found["ended"], found["left"]) == (2, 2, 2), found
"""


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_costs_no_other_one() -> None:
    run(REFUSED)


INSTALLED = """
import importlib, sys

BLOCKED = "open_clip tyro rich matplotlib pyarrow safetensors torchvision patchsae_kernels._native".split()

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED or name.startswith(tuple(f"{blocked}." for blocked in BLOCKED)):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
importlib.import_module("benches.gpu.__main__")
assert "torch" not in sys.modules  # it must not wait for a device, nor for an import of seconds
for name in ("patchsae_kernels", "benches.gpu.worker", "benches.gpu.small", "benches.gpu.warming", *sys.argv[1:]):
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_it_needs_torch_triton_and_numpy_alone() -> None:
    run(INSTALLED, *(f"benches.gpu.stages.{name}" for name in stages.NAMES))
