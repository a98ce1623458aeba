"""What every mesh of processes must do; each law runs in all of them at once (`tests.parallel.pool`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Parallel

D, S, STEPS = 8, 64, 10
L1, LR = 1e-2, 1e-2
DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16)


def numbers(parallel: Parallel, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Other small integers in every process, which any order of additions sums alike."""
    rank = parallel.data_rank * parallel.latent_size + parallel.latent_rank
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randint(-9, 9, shape, generator=generator).to(dtype)


def everybody(parallel: Parallel, value: Tensor) -> Tensor:
    """[data_size, latent_size, ...] of what the processes hold, in all of them."""
    values = parallel.broadcast(parallel.gather(value))
    assert values is not None
    return torch.stack(values).view(parallel.data_size, parallel.latent_size, *value.shape)


def shares(parallel: Parallel) -> tuple[int, int, slice, slice, slice]:
    return parallel.data_rank, parallel.latent_rank, parallel.images(10), parallel.images(1), parallel.latents(S)


def uneven_latents(parallel: Parallel) -> str:
    try:
        parallel.latents(S + 1)
    except ValueError as error:
        return str(error)
    return ""


def sums(parallel: Parallel) -> None:
    """In place over one dimension of the mesh, whatever the dtype and the strides; the same bits everywhere."""
    for dtype in (torch.float32, torch.float64, torch.int64):
        tensors = [numbers(parallel, *shape, dtype=dtype) for shape in ((5,), (), (0, 3), (4, 6))]
        tensors.append(numbers(parallel, 6, 4, seed=1, dtype=dtype).T)
        before = [everybody(parallel, tensor) for tensor in tensors]
        strides = [tensor.stride() for tensor in tensors]
        for method, axis, own in ((parallel.sum_data_, 0, parallel.latent_rank), (parallel.sum_latents_, 1, None)):
            copies = [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]
            method(copies)
            for copy, all_of_them, stride in zip(copies, before, strides, strict=True):
                expected = all_of_them.sum(axis)[parallel.data_rank if own is None else own]
                assert torch.equal(copy, expected.to(dtype))
                assert copy.stride() == stride


def repeatable(parallel: Parallel) -> None:
    """Sums of numbers that round have the same bits each time and in every process."""
    own = torch.randn(10_001, generator=torch.Generator().manual_seed(parallel.data_rank * 7 + parallel.latent_rank))
    for method in (parallel.sum_data_, parallel.sum_latents_):
        results = [own.clone() for _ in range(3)]
        for result in results:
            method([result])
        assert all(torch.equal(result, results[0]) for result in results)
        held = everybody(parallel, results[0])
        axis = 0 if method == parallel.sum_data_ else 1
        assert torch.equal(held, held.narrow(axis, 0, 1).expand_as(held))


def sum_with_gradient(parallel: Parallel) -> None:
    """d f(a + b) / da, as one process has it, though each process computes f for itself."""
    partial = numbers(parallel, 3, 4).requires_grad_()
    total = parallel.sum_latents(partial)
    (total.square() / 2).sum().backward()
    expected = everybody(parallel, partial.detach()).sum(1)[parallel.data_rank]
    assert torch.equal(total, expected)
    assert partial.grad is not None
    assert torch.equal(partial.grad, expected)


def gathers(parallel: Parallel) -> None:
    for dtype in DTYPES:
        own = numbers(parallel, 3, 2, dtype=dtype)
        assert torch.equal(parallel.gather_latents(own), everybody(parallel, own)[parallel.data_rank])
        lengths = [2 * rank % 3 for rank in range(parallel.data_size)]  # 0, 2, 1, 0
        whole = everybody(parallel, numbers(parallel, 2, seed=1, dtype=dtype))[:, parallel.latent_rank]
        own = whole[parallel.data_rank][: lengths[parallel.data_rank]]
        expected = torch.cat([part[:length] for part, length in zip(whole, lengths, strict=True)])
        gathered = parallel.gather_data(own)
        assert torch.equal(gathered, expected)
        assert gathered.dtype == dtype


def agreements(parallel: Parallel) -> None:
    mask = numbers(parallel, 50) > 6
    assert torch.equal(parallel.any_data(mask), everybody(parallel, mask).any(0)[parallel.latent_rank])
    rank = parallel.data_rank * parallel.latent_size + parallel.latent_rank
    last = parallel.data_size * parallel.latent_size - 1
    assert parallel.largest(rank - 7) == last - 7
    assert parallel.all_ok(True)
    assert not parallel.all_ok(rank != last)
    assert parallel.broadcast({"rank": rank}) == {"rank": 0}
    assert parallel.gather(rank) == (list(range(last + 1)) if parallel.is_first else None)
    assert parallel.scatter(parallel.gather({"rank": rank})) == {"rank": rank}


def whole_tensors(parallel: Parallel) -> None:
    """`fill_` gives each process its latents of the first one's tensor, and `full` puts them together again."""
    shapes = {
        "params.W_enc": (D, S),
        "W_dec": (S, D),
        "b_enc": (S,),
        "exp_avg.b_dec": (D,),
        "threshold": (),
        "since_fired": (S,),
    }
    for dtype in DTYPES:
        for name, shape in shapes.items():
            whole = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
            part = _local(parallel, name, whole)
            into = torch.zeros_like(part, memory_format=torch.preserve_format)
            stride = into.stride()
            parallel.fill_(name, into, whole if parallel.is_first else None)
            assert torch.equal(into, part), name
            assert into.stride() == stride
            back = parallel.full(name, into)
            assert (back is not None) == parallel.is_first
            assert back is None or torch.equal(back, whole), name


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(S, D, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    return {
        "W_enc": torch.randn(S, D, generator=generator).T,
        "b_enc": -torch.rand(S, generator=generator),
        "W_dec": W_dec,
        "b_dec": torch.randn(D, generator=generator),
    }


def batch(step: int) -> Tensor:
    """Tokens [N, D] of a step, of a number that no mesh divides evenly."""
    return torch.randn(45, D, generator=torch.Generator().manual_seed(100 + step))


def relu_run(parallel: Parallel, begin: int, end: int, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Steps begin .. end - 1 of a ReLU autoencoder composed of `pk.encode` and `pk.decode`; the whole state at the end.

    `state`: what an earlier run returned, on any mesh.
    """
    params = {name: _local(parallel, name, tensor) for name, tensor in start().items()}
    adam = pk.adam_init(params)
    held = {
        **params,
        **{f"exp_avg.{name}": tensor for name, tensor in adam.exp_avg.items()},
        **{f"exp_avg_sq.{name}": tensor for name, tensor in adam.exp_avg_sq.items()},
    }
    if state is not None:
        adam.step = begin
        for name, tensor in held.items():
            parallel.fill_(name, tensor, state[name] if parallel.is_first else None)
    for step in range(begin, end):
        x = batch(step)
        pk.adam_step(params, relu_gradients(parallel, params, x[parallel.images(len(x))], len(x)), adam, lr=LR)
    whole = {name: parallel.full(name, tensor) for name, tensor in held.items()}
    return {name: tensor for name, tensor in whole.items() if tensor is not None} or None


def relu_gradients(parallel: Parallel, params: dict[str, Tensor], x: Tensor, tokens: int) -> dict[str, Tensor]:
    """Gradients of the mean over all `tokens` of |z_hat - z|^2 / |z| + L1 sum_s h_s; `x` is this process's share."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
    z = pk.encode(x, leaves["W_enc"], leaves["b_enc"], leaves["b_dec"])
    partial = pk.decode(z, leaves["W_dec"], leaves["b_dec"] / parallel.latent_size)
    error = ((parallel.sum_latents(partial) - x).square().sum(1) / x.norm(dim=1)).sum()
    ((error + L1 * z.values.sum()) / tokens).backward()
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    parallel.sum_latents_([grads["b_dec"]])
    parallel.sum_data_(list(grads.values()))
    return grads


def _local(parallel: Parallel, name: str, whole: Tensor) -> Tensor:
    """This process's latents of a whole tensor, W_enc stored latent-major as in training."""
    mine = parallel.latents(S)
    if name.endswith("W_enc"):
        return whole.T[mine].clone().T
    return whole.clone() if name.endswith("b_dec") or whole.dim() == 0 else whole[mine].clone()
