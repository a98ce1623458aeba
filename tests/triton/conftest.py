"""Kernels in Triton's interpreter: `TRITON_INTERPRET=1 python -m pytest tests/triton`, in a process of its own.

The interpreter is chosen when a kernel is defined, so nothing is collected here in a process started without it.
PROGRAM_ORDER=SEED in the environment shuffles the programs of every launch (`tests.triton.program_order`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton import addresses, language, program_order

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if INTERPRETED else "tests/triton is left out: it needs TRITON_INTERPRET=1 in the environment"


@pytest.fixture(scope="session", autouse=True)
def order_of_programs() -> Iterator[None]:
    seed = program_order.seed_of_run()
    with nullcontext() if seed is None else program_order.shuffled(seed):
        yield


@pytest.fixture(scope="session", autouse=True)
def language_replaced_once() -> None:
    language.replace()


@pytest.fixture(scope="session", autouse=True)
def addresses_within_tensors() -> Iterator[None]:
    with addresses.checked():
        yield


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh tensors hold NaN or absurd integers, so that an element nobody wrote is seen."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (Tensor, "new_empty"),
        (Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))


def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        with torch.no_grad():
            return tensor.fill_(garbage(tensor.dtype))

    return allocate_poisoned


def garbage(dtype: torch.dtype) -> float | int | bool:
    """NaN; for integers three quarters of the largest value, which is no index, count or pointer of any test."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max // 4 * 3
