"""What is timed: every op at a named size, beside plain PyTorch doing the same on dense latents; and MaPLe's tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench import checks, dense
from patchsae.bench.case import Case, Side, beside, floor
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


def _fp32(name: str, run: Callable[[Problem], Any]) -> Side:
    """Plain PyTorch."""
    return Side(name, "fp32", lambda p, _turn: run(p))


def _encode_cases() -> list[Case]:
    relu, jump = Encode("relu", "exact"), Encode("jumprelu", "exact")
    return [
        beside("encode", relu.run, _fp32("addmm + relu", dense.relu), product_floor(), partial(_check_encode, relu)),
        *(_topk_case(k) for k in (32, 64)),
        beside(
            "encode_jumprelu",
            jump.run,
            _fp32("addmm + compare + multiply", dense.jumprelu),
            product_floor(),
            partial(_check_encode, jump),
        ),
    ]


def _topk_case(k: int) -> Case:
    spec = Encode("topk", "exact", k)

    def check(p: Problem, z: pk.SparseLatents, top: Any) -> Findings:
        h = torch.zeros(z.shape, device=p.device).scatter_(1, top.indices, top.values)
        return _check_encode(spec, p, z, h)

    baseline = _fp32(f"addmm + relu + topk {k}", partial(dense.topk, k=k))
    return beside(f"encode_topk_{k}", spec.run, baseline, product_floor(), check)


def _decode_cases() -> list[Case]:
    once = "reading W_dec's rows once, writing y"
    return [
        beside(
            "decode",
            _decode,
            _fp32("dense product", dense.decode),
            floor(once, lambda p: _move_decode_bytes(p, _rows_used(p))),
            _check_decode,
        ),
        beside(
            "decode_bag",
            _decode,
            _fp32("embedding_bag", dense.bag),
            floor(once, lambda p: _move_decode_bytes(p, _rows_used(p))),
            _check_decode,
        ),
        beside(
            "decode_masked",
            lambda p: pk.decode_masked(p.z, p.rank < KEPT, p.W_dec, p.b_dec, p.class_ids),
            _fp32("mask + dense product", partial(dense.masked, k=KEPT)),
            floor(once, lambda p: _move_decode_bytes(p, _rows_kept(p))),
            _check_masked,
        ),
        beside(
            "decode_sweep",
            lambda p: pk.decode_sweep(p.z, p.rank, p.size.sweep, p.W_dec, p.b_dec, p.class_ids),
            _fp32("2K masked dense products", dense.sweep),
            floor("writing the output", lambda p: p.x.new_zeros(2 * len(p.size.sweep), *p.x.shape)),
            _check_sweep,
        ),
    ]


def _statistics_cases() -> list[Case]:
    copied = floor("copy of z", lambda p: (p.z.values.clone(), p.z.indices.clone()))
    return [
        beside(
            "latent_stats",
            lambda p: pk.latent_stats(p.z, p.size.tokens, TAU, p.labels, p.size.classes),
            Side("dense sums, counts, maxima", "", lambda p, _turn: dense.stats(p, TAU)),
            copied,
            _check_stats,
        ),
        beside(
            "pool_tokens",
            lambda p: pk.pool_tokens(p.z, p.size.tokens),
            Side("dense sum over tokens", "", lambda p, _turn: dense.pooled(p)),
            copied,
            lambda p, z, h: (checks.close("sums", z.to_dense(), h, atol=1e-4),),
        ),
    ]


def _training_cases() -> list[Case]:
    return [
        beside(
            "sae_step",
            lambda p: pk.sae_step(p.images(), p.parameters, l1=L1),
            _fp32("dense autograd step", partial(dense.step, l1=L1)),
            product_floor(),
            _check_step,
        ),
        beside(
            "adam_step",
            _our_adam,
            Side("torch.optim.Adam + projection + rescaling", "", lambda p, _turn: _torch_adam(p)),
            floor("the bytes it moves: 6 arrays updated in place, 2 read", _move_adam_bytes),
            lambda p, ours, theirs: (checks.close("W_dec", ours, theirs, atol=1e-5),),
        ),
        beside(
            "training_step",
            _our_training_step,
            _fp32("dense autograd step + torch.optim.Adam", _dense_training_step),
            product_floor(),
            _check_training_step,
        ),
    ]


def _decode(p: Problem) -> Tensor:
    return pk.decode(p.z, p.W_dec, p.b_dec)


def _move_decode_bytes(p: Problem, rows: int) -> tuple[Tensor, Tensor]:
    """Read as many rows of W_dec as are used, once, and write the output; torch.sum reads with all threads."""
    return p.W_dec[:rows].sum(), p.x.clone()


def _rows_used(p: Problem) -> int:
    """Latents that are active at all: rows of W_dec that a decode must read."""
    return p.cached("rows used", lambda: _distinct(p.z.indices))


def _rows_kept(p: Problem) -> int:
    """The same under the keep set of the masked case."""

    def count() -> int:
        kept = (p.rank < KEPT)[p.class_ids[p.z.rows()], p.z.indices.long()]
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


def _check_encode(spec: Encode, p: Problem, z: pk.SparseLatents, h: Tensor) -> Findings:
    return (*checks.encode(p, spec, z), *checks.same_latents(z, h))


def _check_decode(p: Problem, y: Tensor, other: Tensor) -> Findings:
    return (*checks.decode(p, p.z, y, p.W_dec), checks.close("y", y, other, atol=1e-4))


def _check_masked(p: Problem, y: Tensor, other: Tensor) -> Findings:
    keep = (p.rank < KEPT)[p.class_ids[p.rows]]
    return (*checks.decode(p, p.z, y, p.W_dec, keep), checks.close("y", y, other, atol=1e-4))


def _check_sweep(p: Problem, found: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Findings:
    pairs = zip(("on", "off"), found, other, strict=True)
    agree = (checks.close(name, ours, theirs, atol=1e-4) for name, ours, theirs in pairs)
    return (*checks.sweep(p, p.z, *found, p.W_dec), *agree)


def _check_stats(p: Problem, found: pk.LatentStats, other: tuple[Tensor, ...]) -> Findings:
    assert found.class_counts is not None
    counted = found.counts, found.max_values, found.class_counts.float()
    sums = checks.close("sums", found.sums.float(), other[0], atol=1e-3)
    return (*checks.stats(p, p.z, found, TAU), sums, checks.same_bits(counted, other[1:]))


def _check_step(p: Problem, ours: Any, other: tuple[Tensor, list[Tensor]]) -> Findings:
    terms, grads = ours
    pairs = zip(grads.items(), other[1], strict=True)
    apart = ((name, (mine - theirs).abs().max() / theirs.abs().max()) for (name, mine), theirs in pairs)
    return (
        checks.close("total", terms.total, other[0]),
        *(Finding(f"largest difference of {name} over its largest entry", float(most), 1e-3) for name, most in apart),
    )


def _check_training_step(p: Problem, ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Findings:
    return (checks.close("total", ours[0], other[0]), checks.stepped("W_dec", ours[1], other[1], LR))
