"""Every place where a tensor is due: the name of the argument, a right tensor, and the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import patchsae_kernels as pk
from tests.kernels.cases import make_case, random_latents
from tests.kernels.every_op import parameters

CASE, Z = make_case(0, 4, 6, 10), random_latents(0, 4, 10, 0.5)
KEEP, RANK = torch.ones(10, dtype=torch.bool), torch.arange(10, dtype=torch.int32)


PARAMS, GRADS = parameters(CASE), parameters(CASE)
STATE = pk.adam_init(PARAMS)


def step(x: Any = CASE.x, dead: Any = None, **changed: Any) -> None:
    pk.sae_step(x, PARAMS | changed, l1=0.1, dead=dead)


def adam(grad: Any = GRADS["b_enc"], moment: Any = STATE.exp_avg["b_enc"], p: Any = PARAMS["b_enc"]) -> None:
    state = pk.AdamState(0, STATE.exp_avg | {"b_enc": moment}, STATE.exp_avg_sq)
    pk.adam_step(PARAMS | {"b_enc": p}, GRADS | {"b_enc": grad}, state, lr=0.1)


def encode(x: Any = CASE.x, **changed: Any) -> None:
    weights = [changed.pop(name, getattr(CASE, name)) for name in ("W_enc", "b_enc", "b_dec")]
    pk.encode(x, *weights, **changed)


PLACES: dict[str, tuple[str, torch.Tensor, Callable[[Any], object]]] = {
    "encode x": ("x", CASE.x, lambda t: encode(t)),
    "encode W_enc": ("W_enc", CASE.W_enc, lambda t: encode(W_enc=t)),
    "encode b_enc": ("b_enc", CASE.b_enc, lambda t: encode(b_enc=t)),
    "encode b_dec": ("b_dec", CASE.b_dec, lambda t: encode(b_dec=t)),
    "threshold": ("threshold", CASE.b_enc.abs(), lambda t: encode(activation="jumprelu", threshold=t)),
    "prepare": ("W_enc", CASE.W_enc, lambda t: pk.prepare(t, CASE.b_enc, CASE.b_dec)),
    "decode W_dec": ("W_dec", CASE.W_dec, lambda t: pk.decode(Z, t, CASE.b_dec)),
    "decode b_dec": ("b_dec", CASE.b_dec, lambda t: pk.decode(Z, CASE.W_dec, t)),
    "values": ("values", Z.values, lambda t: Z.with_values(t)),
    "keep": ("keep", KEEP, lambda t: pk.decode_masked(Z, t, CASE.W_dec, CASE.b_dec)),
    "rank": ("rank", RANK, lambda t: pk.decode_sweep(Z, t, [1], CASE.W_dec, CASE.b_dec)),
    "class_ids": (
        "class_ids",
        torch.zeros(4, dtype=torch.int64),
        lambda t: pk.decode_masked(Z, KEEP.expand(2, 10), CASE.W_dec, CASE.b_dec, t),
    ),
    "labels": ("labels", torch.zeros(2, dtype=torch.int64), lambda t: pk.latent_stats(Z, 2, 0.1, t, 3)),
    "step x": ("x", CASE.x, lambda t: step(t)),
    "step W_dec": ("W_dec", CASE.W_dec, lambda t: step(W_dec=t)),
    "dead": ("dead", KEEP, lambda t: step(dead=t)),
    "grad": (r"grads\['b_enc'\]", CASE.b_enc, lambda t: adam(grad=t)),
    "moment": (r"state.exp_avg\['b_enc'\]", CASE.b_enc, lambda t: adam(moment=t)),
    "p": ("b_enc", CASE.b_enc, lambda t: adam(p=t)),
    "auxk x": ("x", CASE.x, lambda t: pk.reconstruct_dead(t, PARAMS, KEEP, k=2)),
    "auxk dead": ("dead", KEEP, lambda t: pk.reconstruct_dead(CASE.x, PARAMS, t, k=2)),
    "from_dense": ("dense", Z.to_dense(), lambda t: pk.SparseLatents.from_dense(t)),
    "where": ("keep", torch.ones(Z.nnz, dtype=torch.bool), lambda t: Z.where(t)),
    "reconstruct": ("W_dec", CASE.W_dec, lambda t: pk.reconstruct(CASE.x, pk.prepare(*WEIGHTS), t)),
}
WEIGHTS = CASE.W_enc, CASE.b_enc, CASE.b_dec
