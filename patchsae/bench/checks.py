"""Results against float64, on a sample of tokens for what is large and in full for what is not; and against others.

Values are compared by relative error of norms, active sets entry by entry: an entry may differ only where the float64
pre-activation lies within rounding of the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Finding, Findings
from patchsae.bench.inputs import Problem
from patchsae_kernels.parts import interpreted

OPS = torch.ops.patchsae
"""Given float64 they are the definition of correct: no kernel serves it."""

VALUES = {"exact": 3e-5, "fp32": 3e-5, "bf16": 2e-2}
"""Relative error of active values. TF32 lies near 3e-4, float32 near 4e-6, bfloat16 operands near 4e-3."""
TRUNCATION = 8
"""Factor on the bfloat16 limits in Triton's interpreter, which truncates where a GPU rounds to nearest."""
SUMS = 1e-5
"""Relative error of sums of a few hundred float32 products, given the same (perhaps rounded) operands."""
EDGE = {"exact": 64 * 2.0**-24, "fp32": 64 * 2.0**-24, "bf16": 1.1 * 2.0**-8}
"""Rounding of a pre-activation over |x| |w| + |b|: 64 units of float32; for bfloat16 the Cauchy-Schwarz bound."""


def values_limit(precision: str) -> float:
    """The entry of `VALUES`, or what the interpreter needs."""
    return VALUES[precision] * (TRUNCATION if precision == "bf16" and interpreted else 1)


class Truth(NamedTuple):
    """Float64 pre-activations [sample, S] of the sampled tokens, and what rounding may move each by."""

    pre: Tensor
    edge: Tensor


def truth(p: Problem, x: Tensor, precision: str, rows: Tensor | None = None) -> Truth:
    """Of ``rows`` of ``x`` (the problem's sample by default)."""
    rows = p.rows if rows is None else rows
    centred = x[rows].double() - p.b_dec.double()
    W = p.W_enc.double()
    bias = p.b_enc.double()
    scale = centred.norm(dim=1, keepdim=True) * W.norm(dim=0) + bias.abs()
    return Truth(centred @ W + bias, EDGE[precision] * scale)


def encode(p: Problem, spec: Encode, z: pk.SparseLatents, x: Tensor | None = None) -> Findings:
    """Form of the CSR, active set and values."""
    x = p.x if x is None else x
    z.validate()
    exact = truth(p, x, spec.precision)
    got = z.select_rows(p.rows)
    active = got.with_values(torch.ones_like(got.values)).to_dense() > 0
    cut = threshold(p, spec, exact, z)
    expected = (exact.pre > cut.value) | ((exact.pre == cut.value) & (cut.value > 0) & cut.inclusive)
    differs = active != expected
    wrong = differs & ((exact.pre - cut.value).abs() > exact.edge + cut.edge)
    both = active & expected
    values = relative(got.to_dense().double() * both, exact.pre * both)
    near = float(differs.sum()) / len(p.rows)
    findings = (
        Finding("entries on the wrong side", float(wrong.sum()), 0),
        Finding("relative error of values", values, values_limit(spec.precision)),
        Finding("values that are not finite", float((~torch.isfinite(z.values)).sum()), 0),
        Finding("entries within rounding of the threshold per token", near, float("inf")),
    )
    return (*findings, *_sizes(p, spec, z))


class Cut(NamedTuple):
    """What a pre-activation must be above (or reach, where ``inclusive``), and what rounding may move that by."""

    value: Tensor
    edge: Tensor
    inclusive: bool


def threshold(p: Problem, spec: Encode, exact: Truth, z: pk.SparseLatents | None = None) -> Cut:
    """The threshold of an activation on the sampled tokens; BatchTopK's is the smallest value of ``z``."""
    zero = exact.pre.new_zeros(1, 1)
    if spec.activation == "relu":
        return Cut(zero, zero, False)
    if spec.activation == "jumprelu":
        return Cut(p.threshold.double()[None], zero, False)
    if spec.activation == "batchtopk":
        assert z is not None
        smallest = z.values.amin().double().view(1, 1) if z.nnz else zero
        full = z.nnz == z.shape[0] * (spec.k or 0)
        return Cut(smallest if full else zero, exact.edge.amax().view(1, 1), full)
    kth = torch.topk(exact.pre, spec.k or 1, dim=1)
    edge = exact.edge.gather(1, kth.indices[:, -1:])
    value = kth.values[:, -1:]
    return Cut(value.clamp_min(0), torch.where(value > 0, edge, torch.zeros_like(edge)), True)


def _sizes(p: Problem, spec: Encode, z: pk.SparseLatents) -> Findings:
    if spec.activation == "topk":
        return (Finding("largest row beyond k", float(z.counts().max()) - (spec.k or 0), 0),)
    if spec.activation == "batchtopk":
        return (Finding("entries beyond N k", float(z.nnz - z.shape[0] * (spec.k or 0)), 0),)
    return ()


def decode(p: Problem, z: pk.SparseLatents, y: Tensor, W_dec: Tensor, keep: Tensor | None = None) -> Findings:
    """A reconstruction [N, D] from ``z``; ``keep`` is bool [sample, S] of the sampled tokens."""
    dense = z.select_rows(p.rows).to_dense().double()
    if keep is not None:
        dense = dense * keep
    expected = dense @ W_dec.double() + p.b_dec.double()
    return (Finding("relative error", relative(y[p.rows], expected), SUMS), finite(y))


def sweep(p: Problem, z: pk.SparseLatents, on: Tensor, off: Tensor, W_dec: Tensor) -> Findings:
    """All reconstructions of a sweep over the problem's ks; the largest error of any of them counts."""
    dense = z.select_rows(p.rows).to_dense().double()
    rank = p.rank[p.class_ids[p.rows]]
    W = W_dec.double()
    errors = []
    for i, k in enumerate(p.size.sweep):
        kept = rank < k
        errors.append(relative(on[i, p.rows], (dense * kept) @ W + p.b_dec.double()))
        errors.append(relative(off[i, p.rows], (dense * ~kept) @ W + p.b_dec.double()))
    bare = float((off[-1] - p.b_dec).abs().max())
    return (
        Finding("relative error", largest(errors), SUMS),
        Finding("ablating everything leaves b_dec, difference", bare, 0),
        finite(on),
        finite(off),
    )


def stats(p: Problem, z: pk.SparseLatents, found: pk.LatentStats, tau: float) -> Findings:
    """All statistics in full against those of the same values in float64."""
    s = pk.LatentStats.empty(z.shape[1], p.size.tokens, p.size.classes, p.device)
    totals = (s.sums, s.counts, s.image_counts, s.max_values, s.max_position, s.class_counts)
    held = float(torch.tensor(tau))  # as values in float32 are compared with it
    OPS.latent_stats_(z.values.double(), z.indices, z.indptr, p.size.tokens, held, p.labels, 0, *totals)
    assert found.class_counts is not None
    assert s.class_counts is not None
    pairs = {
        "counts": (found.counts, s.counts),
        "image counts": (found.image_counts, s.image_counts),
        "maxima": (found.max_values, s.max_values),
        "positions of maxima": (found.max_position, s.max_position),
        "class counts": (found.class_counts, s.class_counts),
    }
    equal = [Finding(f"{name} that differ", float((a != b).sum()), 0) for name, (a, b) in pairs.items()]
    return (Finding("relative error of sums", relative(found.sums, s.sums), 1e-12), *equal)


def reconstruction(p: Problem, spec: Encode, found: Any, W_dec: Tensor, x: Tensor | None = None) -> Findings:
    """The reconstruction and its loss terms from the tokens on, through float64."""
    x = p.x if x is None else x
    exact = truth(p, x, spec.precision)
    cut = threshold(p, spec, exact)
    reached = exact.pre >= cut.value if cut.inclusive else exact.pre > cut.value
    dense = exact.pre * (reached & (exact.pre > 0))
    y = dense @ W_dec.double() + p.b_dec.double()
    near = ((exact.pre - cut.value).abs() <= exact.edge + cut.edge).sum(1)
    extra = (found.l0[p.rows].double() - (dense > 0).sum(1)).abs() - near
    limit = values_limit(spec.precision)
    squared_error = (y - x[p.rows].double()).square().sum(1)
    errors = {
        "relative error": relative(found.y[p.rows], y),
        "relative error of squared errors": relative(found.squared_error[p.rows], squared_error),
        "relative error of L1": relative(found.l1[p.rows], dense.sum(1)),
    }
    bounds = [Finding(name, error, limit) for name, error in errors.items()]
    return (*bounds, Finding("L0 beyond what rounding allows", float(extra.max()), 0), finite(found.y))


def agreement(name: str, found: Tensor, other: Tensor, limit: float) -> Finding:
    """An opponent's whole result against ours, so that both did the same work."""
    return Finding(f"{name}: relative difference from ours", relative(found, other), limit)


def close(name: str, found: Tensor, other: Tensor, rtol: float = 1e-4, atol: float = 0.0) -> Finding:
    """Element by element, as `torch.testing.assert_close`."""
    allowed = atol + rtol * other.abs()
    excess = torch.where(found == other, 0.0, (found - other).abs() / allowed)
    return Finding(
        f"{name}: largest difference over what is allowed", float(excess.max()) if excess.numel() else 0.0, 1
    )


def same_latents(z: pk.SparseLatents, h: Tensor) -> Findings:
    """Equal to dense ``h`` up to float32 rounding, which may also move a latent across its threshold."""
    actual = z.to_dense()
    apart = ~torch.isclose(actual, h, rtol=1e-4, atol=1e-5)
    at_threshold = (actual == 0) != (h == 0)
    return (
        Finding("values that differ from the dense ones", float((apart & ~at_threshold).sum()), 0),
        Finding("latents active on one side only", float((apart & at_threshold).sum()), 1e-4 * z.nnz + 1),
    )


def stepped(name: str, found: Tensor, other: Tensor, lr: float) -> Finding:
    """Parameters after steps of Adam of together ``lr``, which moves an element by about that whatever its gradient.

    So elements with a gradient of rounding size may go either way.
    """
    apart = float(((found - other).abs() > lr / 10).float().mean())
    return Finding(f"{name}: share of elements that differ", apart, 0.01)


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> Finding:
    """Tensors that differ in shape, dtype or any element."""
    pairs = zip(a, b, strict=True)
    differing = sum(x.shape != y.shape or x.dtype != y.dtype or not torch.equal(x, y) for x, y in pairs)
    return Finding("tensors that differ", float(differing), 0)


def finite(y: Tensor) -> Finding:
    return Finding("elements that are not finite", float((~torch.isfinite(y)).sum()), 0)


def relative(found: Tensor, expected: Tensor) -> float:
    """``|found - expected| / |expected|``; 0 when both are 0, infinite when only the second is."""
    difference = float((found.double() - expected.double()).norm())
    if difference == 0:
        return 0.0
    scale = float(expected.double().norm())
    return difference / scale if scale else float("inf")


def largest(values: Sequence[float]) -> float:
    """The largest; NaN when any is."""
    return max(values) if all(value == value for value in values) else float("nan")


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN or the largest integer, so that an element nobody wrote is seen.

    PyTorch does this itself under its deterministic mode, which is asked only to warn.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
