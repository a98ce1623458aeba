"""What is timed at a named size: ops, beside plain PyTorch doing the same on dense latents; and MaPLe's tower."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench import checks, dense, ours
from patchsae.bench.case import Case, floor, side, unchecked
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Finding, Findings
from patchsae.bench.inputs import TAU, Problem
from patchsae.bench.maple import maple_case
from patchsae.bench.products import product_floor

LR = 1e-5  # so small that L0 stays where it is while steps are timed
L1 = 8e-5
KEPT = 100
"""Latents of a class that the masked decode keeps."""


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


def _encode_cases() -> list[Case]:
    relu, jump = side("addmm + relu", dense.relu, "fp32"), side("addmm + compare + multiply", dense.jumprelu, "fp32")
    return [
        ours.encode(Encode("relu", "exact")).beside("encode", relu, product_floor(), _same_latents),
        *(_topk_case(k) for k in (32, 64)),
        ours.encode(Encode("jumprelu", "exact")).beside("encode_jumprelu", jump, product_floor(), _same_latents),
    ]


def _topk_case(k: int) -> Case:
    baseline = side(f"addmm + relu + topk {k}", partial(dense.topk, k=k), "fp32")
    return ours.encode(Encode("topk", "exact", k)).beside(f"encode_topk_{k}", baseline, product_floor(), _same_topk)


def _decode_cases() -> list[Case]:
    read = floor("reading W_dec's rows once, writing y", lambda p: _move_decode_bytes(p, _rows_used(p)))
    return [
        ours.decode("fp32").beside("decode", side("dense product", dense.decode, "fp32"), read, _same_tensor),
        ours.decode("fp32").beside("decode_bag", side("embedding_bag", dense.bag, "fp32"), read, _same_tensor),
        ours.decode_masked("fp32", KEPT).beside(
            "decode_masked",
            side("mask + dense product", partial(dense.masked, k=KEPT), "fp32"),
            floor(read.name, lambda p: _move_decode_bytes(p, _rows_kept(p))),
            _same_tensor,
        ),
        ours.decode_sweep("fp32").beside(
            "decode_sweep",
            side("2K masked dense products", dense.sweep, "fp32"),
            floor("writing the output", lambda p: p.x.new_zeros(2 * len(p.size.sweep), *p.x.shape)),
            lambda p, found, other: (*_same_tensor(p, found[0], other[0]), *_same_tensor(p, found[1], other[1])),
        ),
    ]


def _statistics_cases() -> list[Case]:
    copied = floor("copy of z", lambda p: (p.z.values.clone(), p.z.indices.clone()))
    return [
        ours.latent_stats().beside(
            "latent_stats", side("dense sums, counts, maxima", partial(dense.stats, tau=TAU)), copied, _same_stats
        ),
        unchecked(lambda p: pk.pool_tokens(p.z, p.size.tokens)).beside(
            "pool_tokens",
            side("dense sum over tokens", dense.pooled),
            copied,
            lambda p, z, h: _same_tensor(p, z.to_dense(), h),
        ),
    ]


def _training_cases() -> list[Case]:
    return [
        unchecked(lambda p: pk.sae_step(p.images(), p.parameters, l1=L1)).beside(
            "sae_step", side("dense autograd step", partial(dense.step, l1=L1), "fp32"), product_floor(), _same_step
        ),
        unchecked(_our_adam).beside(
            "adam_step",
            side("torch.optim.Adam + projection + rescaling", _torch_adam),
            floor("the bytes it moves: 6 arrays updated in place, 2 read", _move_adam_bytes),
            lambda p, ours, theirs: (checks.close("W_dec", ours, theirs, atol=1e-5),),
        ),
        unchecked(_our_training_step).beside(
            "training_step",
            side("dense autograd step + torch.optim.Adam", _dense_training_step, "fp32"),
            product_floor(),
            _same_training_step,
        ),
    ]


def _move_decode_bytes(p: Problem, rows: int) -> tuple[Tensor, Tensor]:
    """Read as many rows of W_dec as are used, once, and write the output; torch.sum reads with all threads."""
    return p.W_dec[:rows].sum(), p.x.clone()


def _rows_used(p: Problem) -> int:
    """Latents that are active at all: rows of W_dec that a decode must read."""
    return p.cached("rows used", lambda: _distinct(p.z.indices))


def _rows_kept(p: Problem) -> int:
    """The same under the keep set of the masked case."""

    def count() -> int:
        kept = p.keep(KEPT)[p.class_ids[p.z.rows()], p.z.indices.long()]
        return _distinct(p.z.indices[kept])

    return p.cached("rows kept", count)


def _distinct(indices: Tensor) -> int:
    return len(torch.bincount(indices).nonzero())


def _ours_in_training(p: Problem) -> tuple[dict[str, Tensor], pk.AdamState]:
    """Parameters of our own to step on, and Adam's state."""

    def make() -> tuple[dict[str, Tensor], pk.AdamState]:
        params = p.copied_parameters()
        return params, pk.adam_init(params)

    return p.cached("ours in training", make)


def _dense_in_training(p: Problem) -> tuple[dict[str, Tensor], torch.optim.Adam]:
    """The same for PyTorch."""

    def make() -> tuple[dict[str, Tensor], torch.optim.Adam]:
        params = {name: t.requires_grad_() for name, t in p.copied_parameters().items()}
        return params, torch.optim.Adam(list(params.values()), lr=LR)

    return p.cached("dense in training", make)


def _our_adam(p: Problem) -> Tensor:
    params, state = _ours_in_training(p)
    pk.adam_step(params, p.parameters, state, lr=LR)
    return params["W_dec"]


def _torch_adam(p: Problem) -> Tensor:
    params, optimizer = _dense_in_training(p)
    for name, grad in p.copied_parameters().items():
        params[name].grad = grad
    dense.update(params["W_dec"], optimizer)
    return params["W_dec"].detach()


def _move_adam_bytes(p: Problem) -> list[Tensor]:
    spare = p.cached("spare", lambda: torch.zeros_like(p.W_dec))
    return [spare.mul_(1.0) for _ in range(6)] + [p.W_dec.sum(), p.W_enc.sum()]


def _our_training_step(p: Problem) -> tuple[Tensor, Tensor]:
    params, state = _ours_in_training(p)
    terms, grads = pk.sae_step(p.images(), params, l1=L1)
    pk.adam_step(params, grads, state, lr=LR)
    return terms.total, params["W_dec"]


def _dense_training_step(p: Problem) -> tuple[Tensor, Tensor]:
    params, optimizer = _dense_in_training(p)
    optimizer.zero_grad(set_to_none=True)
    total = dense.loss(p.x, params, L1)
    total.backward()
    dense.update(params["W_dec"], optimizer)
    return total.detach(), params["W_dec"].detach()


def _same_latents(p: Problem, z: pk.SparseLatents, h: Tensor) -> Findings:
    return checks.same_latents(z, h)


def _same_topk(p: Problem, z: pk.SparseLatents, top: Any) -> Findings:
    return checks.same_latents(z, torch.zeros(z.shape, device=p.device).scatter_(1, top.indices, top.values))


def _same_tensor(p: Problem, found: Tensor, other: Tensor) -> Findings:
    return (checks.close("result", found, other, atol=1e-4),)


def _same_stats(p: Problem, found: pk.LatentStats, other: tuple[Tensor, ...]) -> Findings:
    assert found.class_counts is not None
    counted = found.counts, found.max_values, found.class_counts.float()
    return checks.close("sums", found.sums.float(), other[0], atol=1e-3), checks.same_bits(counted, other[1:])


def _same_step(p: Problem, ours: Any, other: tuple[Tensor, list[Tensor]]) -> Findings:
    terms, grads = ours
    pairs = zip(grads.items(), other[1], strict=True)
    apart = ((name, (mine - theirs).abs().max() / theirs.abs().max()) for (name, mine), theirs in pairs)
    return (
        checks.close("total", terms.total, other[0]),
        *(Finding(f"largest difference of {name} over its largest entry", float(most), 1e-3) for name, most in apart),
    )


def _same_training_step(p: Problem, ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Findings:
    return (checks.close("total", ours[0], other[0]), checks.stepped("W_dec", ours[1], other[1], LR))
