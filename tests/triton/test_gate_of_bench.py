"""The gate's calls for `benches.gpu` hold every launch of its ops: kernel, constants, types of arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from benches.gpu import small
from benches.gpu.inputs import residual_problem
from benches.gpu.sizes import TINY
from patchsae_kernels.triton import tuning
from patchsae_kernels.triton.launch import record
from tests.gate.bench_calls import bench_calls

Started = tuple[str, tuple[str, ...]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> set[Started]:
    """What is started from here on."""
    found: set[Started] = set()
    start = InterpretedFunction.__getitem__

    def noting(kernel: InterpretedFunction, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: Any, **options: Any) -> None:
            found.add(described(kernel, args, options))
            start(kernel, grid)(*args, **options)

        return run

    monkeypatch.setattr(InterpretedFunction, "__getitem__", noting)
    return found


def described(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Started:
    words = [str(a.dtype) if isinstance(a, Tensor) else type(a).__name__ for a in args]
    return kernel.fn.__name__, (*words, *(f"{name}={options[name]}" for name in sorted(options)))


def followed() -> Iterator[Started]:
    """What the gate's calls at the smallest size would start."""
    for call in bench_calls(TINY, TINY):
        with tuning.assume("interpreter"), record() as launches:
            call.function(*call.arguments, **call.options)
        for launch in launches:
            yield described(launch.kernel, launch.args, launch.options)


@pytest.mark.slow
def test_the_gate_knows_every_launch_of_the_bench(started: set[Started]) -> None:
    problem = residual_problem(TINY, torch.device("cpu"))
    small.run_all(problem)
    small.variants(problem)
    with small.fewer_places():
        small.run_all(problem)
    assert len({name for name, _ in started}) > 20
    missing = started - set(followed())
    assert not missing, "\n".join(sorted(f"{name}: {' '.join(words)}" for name, words in missing))
