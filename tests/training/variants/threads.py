"""Several "processes" as threads of one: what the variants ask of a `Parallel`, with a rendezvous at every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from patchsae.parallel.base import Alone, Parallel

T = TypeVar("T")
SECONDS = 30


class Rendezvous:
    """Hands everybody's contribution to everybody."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=SECONDS)
        self.slots: list[Tensor] = [torch.empty(0)] * size

    def exchange(self, rank: int, contribution: Tensor) -> list[Tensor]:
        self.slots[rank] = contribution.detach().clone()
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


class Member(Alone):
    """One of data x latents threads."""

    def __init__(self, data: Sequence[Rendezvous], latents: Sequence[Rendezvous], d: int, s: int) -> None:
        super().__init__()
        self.data_size, self.latent_size = len(latents), len(data)  # type: ignore[misc]
        self.data_rank, self.latent_rank = d, s  # type: ignore[misc]
        self._data, self._latents = data[s], latents[d]

    def latents(self, S: int) -> slice:
        share = S // self.latent_size
        return slice(share * self.latent_rank, share * (self.latent_rank + 1))

    def sum_latents(self, partial: Tensor) -> Tensor:
        others = self._latents.exchange(self.latent_rank, partial)
        return partial + (torch.stack(others).sum(0) - partial.detach())

    def sum_latents_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(torch.stack(self._latents.exchange(self.latent_rank, tensor)).sum(0))

    def sum_data_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(torch.stack(self._data.exchange(self.data_rank, tensor)).sum(0))

    def gather_latents(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._latents.exchange(self.latent_rank, tensor))

    def gather_data(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._data.exchange(self.data_rank, tensor))


def together(data: int, latents: int, work: Callable[[Parallel], T]) -> list[T]:
    """`work` in data x latents threads that divide images and latents; results by rank, latents fastest."""
    across_data = [Rendezvous(data) for _ in range(latents)]
    across_latents = [Rendezvous(latents) for _ in range(data)]
    members = [Member(across_data, across_latents, d, s) for d in range(data) for s in range(latents)]

    def run(member: Member) -> T:
        try:
            return work(member)
        except BaseException:
            for rendezvous in (*across_data, *across_latents):
                rendezvous.barrier.abort()
            raise

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(run, members))
