"""Ops as users call them, on the input set of a turn, with what checks their answers against float64."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench import checks
from patchsae.bench.case import Case, Side
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Findings
from patchsae.bench.inputs import TAU, Problem
from patchsae.bench.sizes import Size

PRECISIONS = ("exact", "bf16", "fp32")


def every(size: Size) -> list[Case]:
    """Encode, decode, statistics and reconstruction, in every precision that they have."""
    spec = Encode("topk", "exact", size.middle_k)
    return [
        *(encode(spec) for spec in encodes(size)),
        *(
            make(precision)
            for precision in ("fp32", "bf16")
            for make in (decode, decode_topk, decode_masked, decode_masked_alike, decode_sweep)
        ),
        latent_stats(),
        *(reconstruct(each) for each in (*(Encode("relu", precision) for precision in PRECISIONS), spec)),
    ]


def encodes(size: Size) -> list[Encode]:
    """Every activation in every precision."""
    kinds = [("relu", None), ("jumprelu", None), *(("topk", k) for k in size.topk), ("batchtopk", size.middle_k)]
    return [Encode(activation, precision, k) for activation, k in kinds for precision in PRECISIONS]


def encode(spec: Encode) -> Case:
    return Case(
        f"encode {spec.name}",
        Side("encode", spec.precision, lambda p, turn: spec.run(p, in_turn(p.xs, turn))),
        lambda p, z: checks.encode(p, spec, z),
    )


def decode(precision: str) -> Case:
    return Case(
        f"decode, {precision}",
        Side("decode", precision, lambda p, turn: pk.decode(in_turn(p.zs, turn), p.dictionary(precision), p.b_dec)),
        lambda p, y: checks.decode(p, p.z, y, p.dictionary(precision)),
    )


def decode_topk(precision: str) -> Case:
    """Of the latents of the middle k."""
    return Case(
        f"decode of top-k, {precision}",
        Side("decode", precision, lambda p, turn: pk.decode(in_turn(p.top_zs, turn), p.dictionary(precision), p.b_dec)),
        lambda p, y: checks.decode(p, p.top_zs[0], y, p.dictionary(precision)),
    )


def decode_masked(precision: str, kept: int | None = None) -> Case:
    """One keep set a class."""

    def run(p: Problem, turn: int) -> Any:
        return pk.decode_masked(in_turn(p.zs, turn), p.keep(kept), p.dictionary(precision), p.b_dec, p.class_ids)

    return Case(
        f"decode_masked, {precision}",
        Side("decode_masked", precision, run),
        lambda p, y: checks.decode(p, p.z, y, p.dictionary(precision), p.keep(kept)[p.class_ids[p.rows]]),
    )


def decode_masked_alike(precision: str) -> Case:
    """One keep set for all."""

    def run(p: Problem, _: int) -> Any:
        return pk.decode_masked(p.z, p.keep()[0], p.dictionary(precision), p.b_dec)

    return Case(
        f"decode_masked, one set, {precision}",
        Side("decode_masked", precision, run),
        lambda p, y: checks.decode(p, p.z, y, p.dictionary(precision), p.keep()[:1]),
    )


def decode_sweep(precision: str) -> Case:
    def run(p: Problem, turn: int) -> Any:
        W = p.dictionary(precision)
        return pk.decode_sweep(in_turn(p.zs, turn), p.rank, p.size.sweep, W, p.b_dec, p.class_ids)

    def check(p: Problem, found: tuple[Tensor, Tensor]) -> Findings:
        return checks.sweep(p, p.z, *found, p.dictionary(precision))

    return Case(f"decode_sweep, {precision}", Side("decode_sweep", precision, run), check)


def latent_stats() -> Case:
    def run(p: Problem, turn: int) -> pk.LatentStats:
        return pk.latent_stats(in_turn(p.zs, turn), p.size.tokens, TAU, p.labels, p.size.classes)

    return Case("latent_stats", Side("latent_stats", "fp32", run), lambda p, found: checks.stats(p, p.z, found, TAU))


def reconstruct(spec: Encode) -> Case:
    """Encode, activation and decode with the loss terms."""
    stored = "bf16" if spec.precision == "bf16" else "fp32"
    return Case(
        f"reconstruct {spec.name}",
        Side(
            "reconstruct",
            spec.precision,
            lambda p, turn: spec.reconstruct(p, p.dictionary(stored), in_turn(p.xs, turn)),
        ),
        lambda p, found: checks.reconstruction(p, spec, found, p.dictionary(stored)),
    )


def in_turn(sets: tuple[Any, ...], turn: int) -> Any:
    return sets[turn % len(sets)]
