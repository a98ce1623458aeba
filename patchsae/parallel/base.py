"""Work divided among processes: images over the "data" dimension of a device mesh, latents over the "latents" one.

Process r of a mesh (data, latents) = (d, l) is number r // l of its data dimension and r % l of its latents. Whoever
has a `Parallel` calls its methods in the same order as every other process, also where its own share is empty:
each of them waits for the others. `Alone` is one process and costs nothing; `patchsae.parallel.mesh.Mesh` is
torch.distributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from patchsae.errors import PatchsaeError

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long a process may keep the others waiting (a cold disk, a report) before they give up."""


class ProcessLost(PatchsaeError):
    """Another process of this run failed or is gone; the message has its reason where it could leave one."""


class Parallel(Protocol):
    """What a process must know about the others, and do with them.

    Names of tensors are those of a training state, or end in them after a dot ("exp_avg.W_enc"). ``W_enc [D, S]`` is
    divided in its second dimension; ``b_dec`` and scalars are the same everywhere; all else ``[S, ...]`` is divided in
    its first dimension.
    """

    device: torch.device
    """Where this process computes."""
    data_size: int
    """Processes that share the images."""
    data_rank: int
    latent_size: int
    """Processes that share the latents."""
    latent_rank: int
    is_first: bool
    """Whether this is the process that writes files, prints, and holds locks: rank 0."""

    def images(self, n: int) -> slice:
        """This process's contiguous share of n images (or places, or tokens).

        Processes that share the latents get the same images.
        """
        ...

    def latents(self, S: int) -> slice:
        """This process's latents of S. ValueError unless all processes get equally many."""
        ...

    def sum_latents(self, partial: Tensor) -> Tensor:
        """Sum over the processes that share the latents; differentiable.

        The gradient passes through unchanged: each process computes the same loss from the sum and takes its gradient
        with respect to its own summand.
        """
        ...

    def sum_latents_(self, tensors: Sequence[Tensor]) -> None:
        """The same in place, without gradient."""
        ...

    def sum_data_(self, tensors: Sequence[Tensor]) -> None:
        """Sum over the processes that share the images, in place, without gradient."""
        ...

    def gather_latents(self, tensor: Tensor) -> Tensor:
        """[n, ...] of equal shape everywhere -> [latent_size, n, ...], without gradient."""
        ...

    def gather_data(self, tensor: Tensor) -> Tensor:
        """[n] of any length -> all of them in the order of the data ranks, without gradient."""
        ...

    def any_data(self, mask: Tensor) -> Tensor:
        """Bool of any shape: true where it is on any of the processes that share the images."""
        ...

    def largest(self, value: int) -> int:
        """The largest value over all processes: how they agree on a signal number, or on a length."""
        ...

    def all_ok(self, flag: bool) -> bool:
        """Whether the flag is true on all processes."""
        ...

    def broadcast(self, value: T) -> T:
        """The first process's value, which must be picklable; the others' is ignored."""
        ...

    def gather(self, value: T) -> list[T] | None:
        """On the first process, the picklable values of all, by rank; None on the others."""
        ...

    def scatter(self, values: Sequence[T] | None) -> T:
        """The inverse of `gather`: of the first process's picklable values, by rank, the one of this process."""
        ...

    def barrier(self) -> None:
        """Wait until everybody is here."""
        ...

    def full(self, name: str, tensor: Tensor) -> Tensor | None:
        """On the first process, the whole of a tensor of which every process holds its latents; None on the others."""
        ...

    def fill_(self, name: str, tensor: Tensor, whole: Tensor | None) -> None:
        """The inverse of `full`, in place: each process's part of what the first one holds (None on the others)."""
        ...


class Alone:
    """One process: nothing to divide, nobody to wait for."""

    data_size, data_rank = 1, 0
    latent_size, latent_rank = 1, 0
    is_first = True

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def images(self, n: int) -> slice:
        return slice(0, n)

    def latents(self, S: int) -> slice:
        return slice(0, S)

    def sum_latents(self, partial: Tensor) -> Tensor:
        return partial

    def sum_latents_(self, tensors: Sequence[Tensor]) -> None:
        pass

    def sum_data_(self, tensors: Sequence[Tensor]) -> None:
        pass

    def gather_latents(self, tensor: Tensor) -> Tensor:
        return tensor.detach().unsqueeze(0)

    def gather_data(self, tensor: Tensor) -> Tensor:
        return tensor.detach()

    def any_data(self, mask: Tensor) -> Tensor:
        return mask

    def largest(self, value: int) -> int:
        return value

    def all_ok(self, flag: bool) -> bool:
        return flag

    def broadcast(self, value: T) -> T:
        return value

    def gather(self, value: T) -> list[T] | None:
        return [value]

    def scatter(self, values: Sequence[T] | None) -> T:
        return _present("values", values)[0]

    def barrier(self) -> None:
        pass

    def full(self, name: str, tensor: Tensor) -> Tensor | None:
        return tensor.detach()

    def fill_(self, name: str, tensor: Tensor, whole: Tensor | None) -> None:
        tensor.detach().copy_(_present("whole", whole))


def share(n: int, rank: int, size: int) -> slice:
    """The `rank`-th of `size` contiguous shares of n, which differ by at most one."""
    return slice(n * rank // size, n * (rank + 1) // size)


def even_share(S: int, rank: int, size: int) -> slice:
    """The `rank`-th of `size` equal shares of S latents. ValueError where S cannot be divided so."""
    if S % size:
        raise ValueError(f"S is {S} latents over {size} processes; expected a multiple of {size}")
    return share(S, rank, size)


def shard_dimension(name: str, tensor: Tensor) -> int | None:
    """The dimension of the latents in a tensor of this name (see `Parallel`); None where every process has it whole."""
    last = name.rpartition(".")[2]
    if last == "b_dec" or tensor.dim() == 0:
        return None
    return 1 if last == "W_enc" else 0


def _present(name: str, value: T | None) -> T:
    if value is None:
        raise ValueError(f"{name} is None on the first process; only the others have none")
    return value
