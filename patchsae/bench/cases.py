"""What is timed: every op at a named size, beside plain PyTorch doing the same on dense latents; and MaPLe's tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench.case import Case, Work
from patchsae.bench.inputs import CLASSES, LR, Inputs, sweep_ks
from patchsae.bench.maple import maple_case
from patchsae.bench.products import product_floor


def all_cases() -> list[Case]:
    """Every case, by op."""
    return [*_encode_cases(), *_decode_cases(), *_statistics_cases(), *_training_cases(), maple_case()]


def named(names: Sequence[str]) -> list[Case]:
    """The cases of these names; none means all. ValueError lists what there is."""
    cases = {case.name: case for case in all_cases()}
    unknown = sorted(set(names) - set(cases))
    if unknown:
        raise ValueError(f"op is {', '.join(unknown)}; expected one of {', '.join(cases)}")
    return [cases[name] for name in names] if names else list(cases.values())


def _dense_pre(i: Inputs) -> Tensor:
    return torch.addmm(i.b_enc, i.x - i.b_dec, i.W_enc)


def _dense_jump(i: Inputs) -> Tensor:
    pre = _dense_pre(i)
    return pre * (pre > 0.3)


def _encode_cases() -> list[Case]:
    return [
        Case(
            "encode",
            lambda i: pk.encode(i.x, i.weights),
            Work("addmm + relu, fp32", lambda i: _dense_pre(i).relu_()),
            product_floor(),
            lambda i, ours, dense: _close_latents(ours, dense),
        ),
        *(_topk_case(k) for k in (32, 64)),
        Case(
            "encode_jumprelu",
            lambda i: pk.encode(i.x, i.weights, activation="jumprelu", threshold=torch.full_like(i.b_enc, 0.3)),
            Work("addmm + compare + multiply, fp32", _dense_jump),
            product_floor(),
            lambda i, ours, dense: _close_latents(ours, dense),
        ),
    ]


def _topk_case(k: int) -> Case:
    return Case(
        f"encode_topk_{k}",
        lambda i: pk.encode(i.x, i.weights, activation="topk", k=k),
        Work(f"addmm + relu + topk {k}, fp32", lambda i: torch.topk(_dense_pre(i).relu_(), k, dim=1)),
        product_floor(),
        _check_topk,
    )


def _decode_cases() -> list[Case]:
    name = "reading W_dec's rows once, writing y"
    return [
        Case(
            "decode",
            lambda i: pk.decode(i.z, i.W_dec, i.b_dec),
            Work("dense product, fp32", lambda i: torch.addmm(i.b_dec, i.dense, i.W_dec)),
            Work(name, lambda i: _move_decode_bytes(i, i.rows_used)),
            lambda i, ours, dense: torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4),
        ),
        Case(
            "decode_bag",
            lambda i: pk.decode(i.z, i.W_dec, i.b_dec),
            Work("embedding_bag, fp32", _bag),
            Work(name, lambda i: _move_decode_bytes(i, i.rows_used)),
            lambda i, ours, bag: torch.testing.assert_close(ours, bag, rtol=1e-4, atol=1e-4),
        ),
        Case(
            "decode_masked",
            lambda i: pk.decode_masked(i.z, i.rank < 100, i.W_dec, i.b_dec, i.class_ids),
            Work(
                "mask + dense product, fp32",
                lambda i: torch.addmm(i.b_dec, i.dense * (i.rank < 100)[i.class_ids], i.W_dec),
            ),
            Work(name, lambda i: _move_decode_bytes(i, i.rows_kept)),
            lambda i, ours, dense: torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4),
        ),
        Case(
            "decode_sweep",
            lambda i: pk.decode_sweep(i.z, i.rank, sweep_ks(i.size.d_sae), i.W_dec, i.b_dec, i.class_ids),
            Work("2K masked dense products, fp32", dense_sweep),
            Work("writing the output", lambda i: i.x.new_zeros(2 * len(sweep_ks(i.size.d_sae)), *i.x.shape)),
            _check_sweep,
        ),
    ]


def _statistics_cases() -> list[Case]:
    copied = Work("copy of z", lambda i: (i.z.values.clone(), i.z.indices.clone()))
    return [
        Case(
            "latent_stats",
            lambda i: pk.latent_stats(i.z, i.size.tokens, 0.2, i.labels, CLASSES),
            Work("dense sums, counts, maxima", _dense_stats),
            copied,
            _check_stats,
        ),
        Case(
            "pool_tokens",
            lambda i: pk.pool_tokens(i.z, i.size.tokens),
            Work("dense sum over tokens", lambda i: i.dense.view(i.size.images, i.size.tokens, -1).sum(1)),
            copied,
            lambda i, ours, dense: torch.testing.assert_close(ours.to_dense(), dense, rtol=1e-4, atol=1e-4),
        ),
    ]


def _training_cases() -> list[Case]:
    return [
        Case(
            "sae_step",
            lambda i: pk.sae_step(i.images, i.parameters, l1=8e-5),
            Work("dense autograd step, fp32", _dense_step),
            product_floor(),
            _check_step,
        ),
        Case(
            "adam_step",
            _our_adam,
            Work("torch.optim.Adam + projection + rescaling", _torch_adam),
            Work("the bytes it moves: 6 arrays updated in place, 2 read", _move_adam_bytes),
            lambda i, ours, dense: torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-5),
        ),
        Case(
            "training_step",
            _our_training_step,
            Work("dense autograd step + torch.optim.Adam, fp32", _dense_training_step),
            product_floor(),
            _check_training_step,
        ),
    ]


def dense_sweep(i: Inputs) -> tuple[Tensor, Tensor]:
    """One masked dense product for every k, on and off."""
    on, off = [], []
    for k in sweep_ks(i.size.d_sae):
        kept = i.dense * (i.rank < k)[i.class_ids]
        on.append(torch.addmm(i.b_dec, kept, i.W_dec))
        off.append(torch.addmm(i.b_dec, i.dense - kept, i.W_dec))
    return torch.stack(on), torch.stack(off)


def _dense_step(i: Inputs) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: p.detach().clone().requires_grad_() for name, p in i.parameters.items()}
    total = _dense_loss(i, leaves)
    total.backward()
    return total.detach(), [_gradient(leaf) for leaf in leaves.values()]


def _dense_loss(i: Inputs, p: dict[str, Tensor]) -> Tensor:
    h = torch.addmm(p["b_enc"], i.x - p["b_dec"], p["W_enc"]).relu()
    error = torch.addmm(p["b_dec"], h, p["W_dec"]) - i.x
    return (error.square() / i.x.norm(dim=1, keepdim=True)).mean() + 8e-5 * h.sum(1).mean()


def _check_step(i: Inputs, ours: Any, dense: Any) -> None:
    terms, grads = ours
    torch.testing.assert_close(terms.total, dense[0], rtol=1e-4, atol=0)
    for mine, other in zip(grads.values(), dense[1], strict=True):
        assert (mine - other).abs().max() <= 1e-3 * other.abs().max()


def _our_adam(i: Inputs) -> Tensor:
    params, state = i.ours_in_training
    pk.adam_step(params, i.parameters, state, lr=LR)
    return params["W_dec"]


def _torch_adam(i: Inputs) -> Tensor:
    params, optimizer = i.dense_in_training
    for name, grad in i.parameters.items():
        params[name].grad = grad.clone(memory_format=torch.preserve_format)
    _dense_update(params["W_dec"], optimizer)
    return params["W_dec"].detach()


@torch.no_grad()
def _dense_update(W_dec: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The gradient's component along each dictionary row taken out, Adam, rows back to unit norm."""
    grad = _gradient(W_dec)
    grad -= (grad * W_dec).sum(1, keepdim=True) * W_dec
    optimizer.step()
    W_dec /= W_dec.norm(dim=1, keepdim=True)


def _move_adam_bytes(i: Inputs) -> list[Tensor]:
    return [i.spare.mul_(1.0) for _ in range(6)] + [i.W_dec.sum(), i.W_enc.sum()]


def _our_training_step(i: Inputs) -> tuple[Tensor, Tensor]:
    params, state = i.ours_in_training
    terms, grads = pk.sae_step(i.images, params, l1=8e-5)
    pk.adam_step(params, grads, state, lr=LR)
    return terms.total, params["W_dec"]


def _dense_training_step(i: Inputs) -> tuple[Tensor, Tensor]:
    params, optimizer = i.dense_in_training
    optimizer.zero_grad(set_to_none=True)
    total = _dense_loss(i, params)
    total.backward()
    _dense_update(params["W_dec"], optimizer)
    return total.detach(), params["W_dec"].detach()


def _check_training_step(i: Inputs, ours: tuple[Tensor, Tensor], dense: tuple[Tensor, Tensor]) -> None:
    """Adam moves an element by about lr whatever its gradient, so elements of rounding size may go either way."""
    torch.testing.assert_close(ours[0], dense[0], rtol=1e-4, atol=0)
    assert ((ours[1] - dense[1]).abs() > LR / 10).float().mean() < 0.01


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _dense_stats(i: Inputs) -> tuple[Tensor, ...]:
    over = i.dense > 0.2
    classes = torch.zeros(CLASSES, i.size.d_sae, device=i.x.device).index_add_(0, i.class_ids, over.float())
    return i.dense.sum(0), over.sum(0), i.dense.max(0).values, classes


def _check_stats(i: Inputs, ours: pk.LatentStats, dense: tuple[Tensor, ...]) -> None:
    sums, counts, maxima, classes = dense
    torch.testing.assert_close(ours.sums.float(), sums, rtol=1e-4, atol=1e-3)
    assert torch.equal(ours.counts, counts)
    assert torch.equal(ours.max_values, maxima)
    assert ours.class_counts is not None
    assert torch.equal(ours.class_counts.float(), classes)


def _move_decode_bytes(i: Inputs, rows: int) -> tuple[Tensor, Tensor]:
    """Read as many rows of W_dec as are used, once, and write the output; torch.sum reads with all threads."""
    return i.W_dec[:rows].sum(), i.x.clone()


def _bag(i: Inputs) -> Tensor:
    offsets, z = i.z.indptr, i.z
    summed = F.embedding_bag(
        z.indices, i.W_dec, offsets.int(), mode="sum", per_sample_weights=z.values, include_last_offset=True
    )
    return summed.add_(i.b_dec)


def _close_latents(z: pk.SparseLatents, dense: Tensor) -> None:
    """Equal up to float32 rounding, which may also move a latent across its threshold."""
    actual = z.to_dense()
    apart = ~torch.isclose(actual, dense, rtol=1e-4, atol=1e-5)
    at_threshold = (actual == 0) != (dense == 0)
    assert not (apart & ~at_threshold).any(), "values differ"
    assert int((apart & at_threshold).sum()) <= 1e-4 * z.nnz + 1, "active sets differ"


def _check_topk(i: Inputs, ours: pk.SparseLatents, dense: Any) -> None:
    expected = torch.zeros_like(i.dense).scatter_(1, dense.indices, dense.values)
    _close_latents(ours, expected)


def _check_sweep(i: Inputs, ours: tuple[Tensor, Tensor], dense: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
