"""Numbered pieces of work, done in worker processes, handed back in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


def in_workers(work: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """work(0), work(1), ..., work(count - 1), in that order.

    Args:
        work: picklable; called in `workers` processes, or in this one where `workers` is 0. Results do not depend on
            how many there are.
    """
    loader: DataLoader[Any] = DataLoader(
        _Pieces(work, count),
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # its own, or starting the workers would draw from the global one
    )
    return iter(loader)


class _Pieces(Dataset[T], Generic[T]):
    def __init__(self, work: Callable[[int], T], count: int) -> None:
        self.work = work
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, piece: int) -> T:
        return self.work(piece)


def _leave_signals_to_the_parent(_: int) -> None:
    """A terminal or a batch system signals the whole group; workers that died of it would break the parent's last step.

    They end when the parent closes their queue or is gone.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _unchanged(result: T) -> T:
    return result
