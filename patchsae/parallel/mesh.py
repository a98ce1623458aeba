"""`Parallel` on torch.distributed: a DeviceMesh of dimensions "data" and "latents", gloo on CPUs and NCCL on GPUs.

The sums are deterministic for a fixed number of processes, and the same bits on all of them: gloo and NCCL reduce
each element in an order that depends on its place and on the ranks alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from patchsae.parallel.base import PATIENCE, ProcessLost, even_share, shard_dimension, share

T = TypeVar("T")

_BACKENDS = "cpu:gloo,cuda:nccl"
_REASON = "reason"


class Mesh:
    """All processes of the default group as a mesh of (data, latents); see `Parallel` for the methods.

    Args:
        data, latents: sizes whose product is the number of processes. torch.distributed must be initialised.
        device: of the tensors to come.
        patience: how long a collective may wait.
        store: where a failing process leaves its reason.
    """

    def __init__(
        self,
        data: int,
        latents: int,
        device: torch.device | str = "cpu",
        patience: timedelta = PATIENCE,
        store: dist.Store | None = None,
    ) -> None:
        world = dist.get_world_size()
        if data * latents != world:
            raise ValueError(f"data * latents is {data} * {latents}; expected the number of processes, {world}")
        ranks = torch.arange(world).view(data, latents)
        self.device = torch.device(device)
        self._store = store
        with self._others_may_be_lost():
            by_data, _ = dist.new_subgroups_by_enumeration(ranks.T.tolist(), timeout=patience)
            by_latents, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=patience)
        self._data, self._latents = _member(by_data), _member(by_latents)
        self.mesh = DeviceMesh.from_group(
            [self._data, self._latents], self.device.type, ranks, mesh_dim_names=("data", "latents")
        )
        self.data_size, self.latent_size = data, latents
        self.data_rank, self.latent_rank = divmod(dist.get_rank(), latents)
        self.is_first = dist.get_rank() == 0

    def images(self, n: int) -> slice:
        return share(n, self.data_rank, self.data_size)

    def latents(self, S: int) -> slice:
        return even_share(S, self.latent_rank, self.latent_size)

    def sum_latents(self, partial: Tensor) -> Tensor:
        return partial if self.latent_size == 1 else _SumOverLatents.apply(partial, self)

    def sum_latents_(self, tensors: Sequence[Tensor]) -> None:
        self._sum_(tensors, self._latents, self.latent_size)

    def sum_data_(self, tensors: Sequence[Tensor]) -> None:
        self._sum_(tensors, self._data, self.data_size)

    def gather_latents(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._all_gather(tensor.detach(), self._latents, self.latent_size))

    def gather_data(self, tensor: Tensor) -> Tensor:
        own = tensor.detach()
        if self.data_size == 1:
            return own
        lengths = self._all_gather(torch.tensor([len(own)], device=own.device), self._data, self.data_size)
        padded = own.new_zeros(max(int(length) for length in lengths))
        padded[: len(own)] = own
        parts = self._all_gather(padded, self._data, self.data_size)
        return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])

    def any_data(self, mask: Tensor) -> Tensor:
        if self.data_size == 1:
            return mask
        flags = mask.to(torch.uint8)  # gloo knows no bool
        with self._others_may_be_lost():
            dist.all_reduce(flags, dist.ReduceOp.MAX, self._data)
        return flags.bool()

    def largest(self, value: int) -> int:
        shared = torch.tensor([value])  # by gloo, so that a GPU does not have to catch up
        with self._others_may_be_lost():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def all_ok(self, flag: bool) -> bool:
        return self.largest(int(not flag)) == 0

    def broadcast(self, value: T) -> T:
        box: list[Any] = [value if self.is_first else None]
        with self._others_may_be_lost():
            dist.broadcast_object_list(box, src=0)
        received: T = box[0]
        return received

    def gather(self, value: T) -> list[T] | None:
        boxes: list[Any] | None = [None] * dist.get_world_size() if self.is_first else None
        with self._others_may_be_lost():
            dist.gather_object(value, boxes, dst=0)
        return boxes

    def scatter(self, values: Sequence[T] | None) -> T:
        box: list[Any] = [None]
        with self._others_may_be_lost():
            dist.scatter_object_list(box, None if values is None else list(values), src=0)
        received: T = box[0]
        return received

    def barrier(self) -> None:
        self.largest(0)

    def full(self, name: str, tensor: Tensor) -> Tensor | None:
        dimension, own = shard_dimension(name, tensor), tensor.detach()
        if self.data_rank > 0:
            return None
        if dimension is not None and self.latent_size > 1:
            with self._others_may_be_lost():
                own = DTensor.from_local(own, self.mesh["latents"], [Shard(dimension)]).full_tensor()
        return own if self.is_first else None

    def fill_(self, name: str, tensor: Tensor, whole: Tensor | None) -> None:
        dimension = shard_dimension(name, tensor)
        shape = list(tensor.shape)
        if dimension is not None:
            shape[dimension] *= self.latent_size
        if not self.is_first:
            whole = tensor.new_empty(shape)
        if whole is None or list(whole.shape) != shape:
            came = None if whole is None else list(whole.shape)
            raise ValueError(f"whole has shape {came} for {name!r} on the first process; expected {shape}")
        divided = Replicate() if dimension is None else Shard(dimension)
        with self._others_may_be_lost():
            spread = distribute_tensor(whole.to(tensor), self.mesh, [Replicate(), divided])
        tensor.detach().copy_(spread.to_local())

    def _sum_(self, tensors: Sequence[Tensor], group: dist.ProcessGroup, size: int) -> None:
        if size == 1:
            return
        with self._others_may_be_lost():
            dense = [_dense_view(tensor.detach()) for tensor in tensors if tensor.numel()]
            works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in dense]
            for work in works:
                work.wait()

    def _all_gather(self, tensor: Tensor, group: dist.ProcessGroup, size: int) -> list[Tensor]:
        if size == 1:
            return [tensor]
        own = tensor.contiguous()
        plain = own.view(torch.uint8) if own.dtype == torch.bool else own
        parts = [torch.empty_like(plain) for _ in range(size)]
        if own.numel():
            with self._others_may_be_lost():
                dist.all_gather(parts, plain, group)
        return [part.view(own.dtype) for part in parts]

    @contextmanager
    def _others_may_be_lost(self) -> Iterator[None]:
        """A failing collective means that another process left, or keeps us waiting for too long."""
        try:
            yield
        except RuntimeError as error:
            reason = _left_reason(self._store) or f"lost another process, or out of step with it: {error}"
            raise ProcessLost(reason) from error


@contextmanager
def joined(data: int, latents: int, device: torch.device, patience: timedelta = PATIENCE) -> Iterator[Mesh]:
    """The mesh of the processes that torchrun started, for the length of the block."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(iter(rendezvous("env://", timeout=patience)))
    dist.init_process_group(_backends(device), store=store, rank=rank, world_size=size, timeout=patience)
    try:
        yield Mesh(data, latents, device, patience, store)
    except BaseException as error:
        _leave_reason(store, error, rank, size)
        if device.type == "cpu":  # closes the connections others wait on; NCCL would wait for them in turn
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


class _SumOverLatents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, mesh: Mesh) -> Tensor:
        total = partial.clone(memory_format=torch.contiguous_format)
        mesh.sum_latents_([total])
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _backends(device: torch.device) -> str:
    return _BACKENDS if device.type == "cuda" else "gloo"


def _member(group: object) -> dist.ProcessGroup:
    assert isinstance(group, dist.ProcessGroup)
    return group


def _dense_view(tensor: Tensor) -> Tensor:
    """The tensor's own memory as a contiguous tensor: W_enc is stored latent-major."""
    view = tensor if tensor.is_contiguous() else tensor.mT
    if not view.is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has gaps; expected one that fills its memory")
    return view


def _leave_reason(store: dist.Store, error: BaseException, rank: int, size: int) -> None:
    if isinstance(error, ProcessLost):
        return
    with suppress(RuntimeError):  # the store may live in a process that is gone
        store.compare_set(_REASON, "", f"process {rank} of {size} stopped: {type(error).__name__}: {error}")


def _left_reason(store: dist.Store | None) -> str | None:
    with suppress(RuntimeError):
        if store is not None and store.check([_REASON]):
            return store.get(_REASON).decode()
    return None
