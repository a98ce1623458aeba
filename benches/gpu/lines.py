"""The benchmark table as data: ours, who it is measured against, and the bar."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench import checks, dense, ours
from patchsae.bench.case import Bar, Case, Opponent, Side, side
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Findings
from patchsae.bench.inputs import Problem
from patchsae.bench.sizes import Size


def table(size: Size, backend: str) -> list[Case]:
    """The lines of the table; ``backend`` is torch.compile's."""
    return [
        *_encode_lines(size),
        *_decode_lines(size),
        *_reconstruct_lines(backend),
        *_further_lines(size),
    ]


def floor() -> Side:
    """The vendor's bfloat16 product of the encode's shape alone, into memory that is there already."""
    return Side("torch.mm of the same shape", "bf16", _floor)


def dense_encode() -> Side:
    """The released code's encode."""
    return Side("addmm + relu", "fp32", lambda p, turn: _dense_pre(p, turn).relu())


def _encode_lines(size: Size) -> list[Case]:
    relu, exact = Encode("relu", "bf16"), Encode("relu", "exact")
    lines = [
        _encode_line(relu, f"encode ReLU, L0 {size.l0}", (Opponent(floor(), Bar(True, 1.35)),)),
        _encode_line(
            exact,
            f"encode ReLU, L0 {size.l0}",
            (Opponent(dense_encode(), Bar(False, 4), _same_sampled_latents), Opponent(floor())),
        ),
    ]
    for k, limit in zip(size.topk, (1.35, 1.4, 1.6), strict=False):
        product = Side("torch.mm + relu + torch.topk", "bf16", functools.partial(_dense_topk, k))
        against = (Opponent(product, Bar(False, 2)), Opponent(floor(), Bar(True, limit)))
        lines.append(_encode_line(Encode("topk", "bf16", k), f"encode top-k {k}", against))
    return lines


def _encode_line(spec: Encode, name: str, opponents: tuple[Opponent, ...]) -> Case:
    return ours.encode(spec).against(f"{name}, {spec.precision}", *opponents)


def _decode_lines(size: Size) -> list[Case]:
    lines = []
    for precision, limit in (("bf16", 1.5), ("fp32", 8.0)):
        dense_side = side("dense product", functools.partial(dense.decode, precision=precision), precision)
        opponent = Opponent(dense_side, Bar(False, limit), _same_reconstruction)
        lines.append(ours.decode(precision).against(f"decode, L0 {size.l0}, {precision}", opponent))
    for precision in ("bf16", "fp32"):
        bag = Opponent(
            Side("F.embedding_bag", precision, functools.partial(_bag, precision)), Bar(False, 1.3), _same_but_bias
        )
        lines.append(ours.decode_topk(precision).against(f"decode, k {size.middle_k}, {precision}", bag))
    for precision in ("bf16", "fp32"):
        once = Side("our decode once + writing the output", precision, functools.partial(_decode_and_write, precision))
        name = f"decode_sweep, {len(size.sweep)} ks, {precision}"
        lines.append(ours.decode_sweep(precision).against(name, Opponent(once, Bar(True, 1.4))))
    encodes = (Opponent(ours.encode(Encode("relu", precision)).ours, Bar(True, 0.1)) for precision in ("exact", "bf16"))
    return [*lines, ours.latent_stats().against(f"latent_stats, {size.classes} classes", *encodes)]


def _reconstruct_lines(backend: str) -> list[Case]:
    lines = []
    for precision, decoded in (("bf16", "bf16"), ("exact", "fp32")):
        spec = Encode("relu", precision)
        two = Side("our encode + decode", precision, functools.partial(_encode_decode, spec, decoded))
        eager = Side("dense autoencoder with loss, eager", "fp32", _eager)
        compiled = Side(f"dense autoencoder with loss, torch.compile ({backend})", "fp32", _compiled_side(backend))
        same_loss = functools.partial(_same_loss, checks.values_limit(precision))
        lines.append(
            ours.reconstruct(spec).against(
                f"encode-ReLU-decode with loss, {precision}",
                Opponent(two, Bar(True, 1.15)),
                Opponent(eager, Bar(False, 6), same_loss),
                Opponent(compiled, Bar(False, 5), same_loss),
            )
        )
    return lines


def _further_lines(size: Size) -> list[Case]:
    """Without a bar: what else users call."""
    middle = size.middle_k
    specs = (
        Encode("topk", "exact", middle),
        Encode("jumprelu", "exact"),
        Encode("jumprelu", "bf16"),
        Encode("batchtopk", "exact", middle),
        Encode("batchtopk", "bf16", middle),
        Encode("relu", "fp32"),
    )
    lines = [
        _encode_line(spec, f"encode {spec.activation}{f' {spec.k}' if spec.k else ''}", (Opponent(floor()),))
        for spec in specs
    ]
    masked = ours.decode_masked("fp32")
    decoded = Opponent(ours.decode("fp32").ours)
    return [*lines, masked.against(f"decode_masked, {size.classes} classes, fp32", decoded)]


def dense_autoencoder(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, ...]:
    """As the released code computes it, with the loss terms per token: y, squared error, L1, L0."""
    h = torch.relu((x - b_dec) @ W_enc + b_enc)  # [N, S]
    y = h @ W_dec + b_dec
    return y, (y - x).square().sum(1), h.abs().sum(1), (h > 0).sum(1)


@functools.cache
def compiled(backend: str) -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(dense_autoencoder, fullgraph=True, backend=backend)


def _floor(p: Problem, turn: int) -> Tensor:
    out = p.cached("product", lambda: torch.empty(*p.size.shape[::2], dtype=torch.bfloat16, device=p.device))
    return torch.mm(ours.in_turn(p.xs_bf16, turn), p.W_enc_bf16, out=out)


def _dense_pre(p: Problem, turn: int) -> Tensor:
    return torch.addmm(p.b_enc, ours.in_turn(p.xs, turn) - p.b_dec, p.W_enc_rows)


def _dense_topk(k: int, p: Problem, turn: int) -> Any:
    return torch.topk(torch.mm(ours.in_turn(p.xs_bf16, turn), p.W_enc_bf16).relu_(), k, dim=1)


def _bag(precision: str, p: Problem, turn: int) -> Tensor:
    z, W = ours.in_turn(p.top_zs, turn), p.dictionary(precision)
    place = turn % len(p.top_zs)
    indices = p.cached(f"bag indices {place}", lambda: z.indices.long())
    values = p.cached(f"bag values {precision} {place}", lambda: z.values.to(W.dtype))
    return F.embedding_bag(indices, W, z.indptr, mode="sum", per_sample_weights=values, include_last_offset=True)


def _decode_and_write(precision: str, p: Problem, turn: int) -> Tensor:
    shape = (2 * len(p.size.sweep), *p.x.shape)
    out = p.cached("sweep output", lambda: torch.empty(shape, device=p.device))
    ours.decode(precision).ours.run(p, turn)
    return out.fill_(turn + 1.0)


def _encode_decode(spec: Encode, decoded: str, p: Problem, turn: int) -> Tensor:
    return pk.decode(spec.run(p, ours.in_turn(p.xs, turn)), p.dictionary(decoded), p.b_dec)


def _eager(p: Problem, turn: int) -> tuple[Tensor, ...]:
    return dense_autoencoder(ours.in_turn(p.xs, turn), p.W_enc_rows, p.b_enc, p.W_dec, p.b_dec)


def _compiled_side(backend: str) -> Callable[[Problem, int], tuple[Tensor, ...]]:
    return lambda p, turn: compiled(backend)(ours.in_turn(p.xs, turn), p.W_enc_rows, p.b_enc, p.W_dec, p.b_dec)


def _same_sampled_latents(p: Problem, z: pk.SparseLatents, dense: Tensor) -> Findings:
    return (checks.agreement("addmm + relu", z.select_rows(p.rows).to_dense(), dense[p.rows], 1e-4),)


def _same_reconstruction(p: Problem, y: Tensor, dense: Tensor) -> Findings:
    limit = checks.SUMS if dense.dtype == torch.float32 else checks.values_limit("bf16")
    return (checks.agreement("dense product", y, dense, 2 * limit),)


def _same_but_bias(p: Problem, y: Tensor, bag: Tensor) -> Findings:
    limit = checks.SUMS if bag.dtype == torch.float32 else checks.values_limit("bf16")
    return (checks.agreement("F.embedding_bag", y - p.b_dec, bag, 2 * limit),)


def _same_loss(limit: float, p: Problem, found: Any, dense: tuple[Tensor, ...]) -> Findings:
    pairs = zip(("y", "squared error", "L1"), (found.y, found.squared_error, found.l1), dense, strict=False)
    return tuple(checks.agreement(f"dense {name}", a, b, 2 * limit) for name, a, b in pairs)
