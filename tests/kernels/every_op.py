"""Every public op once, on a case of its own, for laws that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import patchsae_kernels as pk
from tests.kernels.cases import Case, make_case

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
Results = list[Tensor]


def parameters(case: Case) -> dict[str, Tensor]:
    return {name: getattr(case, name).clone(memory_format=torch.preserve_format) for name in NAMES}


def csr(z: pk.SparseLatents) -> Results:
    return [z.values, z.indices, z.indptr]


def encode(case: Case, **options: object) -> Results:
    return csr(case.encode(**options))


def gradients(case: Case, activation: str, k: int | None) -> Results:
    """Of encode, then decode, then decode_masked: by everything that they are differentiable in."""
    leaves = Case(*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in case))
    with torch.enable_grad():
        z = leaves.encode(activation=activation, k=k)
        keep = torch.arange(z.shape[1], device="cpu") % 3 > 0
        y = pk.decode(z, leaves.W_dec, leaves.b_dec) + pk.decode_masked(z, keep, leaves.W_dec, leaves.b_dec)
        return list(torch.autograd.grad(y.square().sum(), list(leaves)))


def step(case: Case, **options: object) -> Results:
    dead = torch.arange(case.b_enc.shape[0], device="cpu") % 5 == 0
    terms, grads = pk.sae_step(case.x, parameters(case), l1=0.03, dead=dead, **options)
    return [*terms, *grads.values()]


def adam(case: Case) -> Results:
    params = parameters(case)
    grads = {name: p.sin() for name, p in params.items()}
    state = pk.adam_init(params)
    for _ in range(2):
        pk.adam_step(params, grads, state, lr=0.01)
    return [*params.values(), *state.exp_avg.values(), *state.exp_avg_sq.values()]


def decodes(case: Case) -> Results:
    z, s = case.encode(), case.b_enc.shape[0]
    keep = torch.arange(s, device="cpu") % 3 > 0
    rank = torch.arange(s, device="cpu").flip(0).to(torch.int32)
    to = case.W_dec, case.b_dec
    low = pk.decode(z, case.W_dec.to(torch.bfloat16), case.b_dec)
    return [pk.decode(z, *to), low, pk.decode_masked(z, keep, *to), *pk.decode_sweep(z, rank, [0, 5, s], *to)]


def statistics(case: Case, dtype: torch.dtype = torch.float32) -> Results:
    z = case.encode()
    z = z.with_values(z.values.to(dtype))
    images = z.shape[0] // 2
    labels = torch.arange(images, device="cpu") % 3
    stats = pk.latent_stats(z, 2, labels=labels, num_classes=3)
    more = pk.latent_stats(z, 2, labels=labels, num_classes=3, first_image=images, previous=stats)
    held = [more.sums, more.counts, more.image_counts, more.max_values, more.max_position, more.class_counts]
    return [t for t in held if t is not None] + csr(pk.pool_tokens(z, 2))


def steering(case: Case, dtype: torch.dtype = torch.float32) -> Results:
    z = case.encode()
    z = pk.SparseLatents.cat([z.with_values(z.values.to(dtype))] * 2)
    order = torch.arange(z.shape[1], device="cpu").flip(0)
    several = [z.scale([1, 3], 0.5), z.set([0, 2], 1.5), z.add([1], 0.25), z.permute(order), z.reshape_tokens(4, 8)[1]]
    return [t for one in several for t in csr(one)] + [z.to_dense(), pk.SparseLatents.from_dense(z.to_dense()).values]


def bounded(case: Case) -> Results:
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    z, status = pk.encode_bounded(case.x, w, capacity=2000, activation="topk", k=9)
    return [*csr(z), status, *pk.reconstruct(case.x, w, case.W_dec)]


def jumprelu(case: Case) -> Results:
    theta = torch.full_like(case.b_enc, 0.1).requires_grad_()
    with torch.enable_grad():
        z, l0 = pk.encode_jumprelu(case.x, case.W_enc, case.b_enc, case.b_dec, theta, bandwidth=0.2)
        (grad,) = torch.autograd.grad((z.values.sum() + l0), theta)
    return [*csr(z.detach()), l0.detach(), grad]


def dead(case: Case) -> Results:
    return [pk.reconstruct_dead(case.x, parameters(case), case.b_enc > 0, k=3)]


EVERY_OP: dict[str, Callable[[Case], Results]] = {
    "encode relu": lambda c: encode(c),
    "encode fp32": lambda c: encode(c, precision="fp32"),
    "encode bf16": lambda c: encode(c, precision="bf16"),
    "encode of bfloat16": lambda c: encode(c._replace(x=c.x.to(torch.bfloat16))),
    "encode by weights in float64": lambda c: encode(Case(c.x, *(t.double() for t in c[1:]))),
    "encode topk": lambda c: encode(c, activation="topk", k=9),
    "encode topk of many": lambda c: encode(c, activation="topk", k=600),
    "encode batchtopk": lambda c: encode(c, activation="batchtopk", k=160),
    "encode jumprelu": lambda c: encode(c, activation="jumprelu", threshold=torch.full_like(c.b_enc, 0.1)),
    "bounded": bounded,
    "decodes": decodes,
    "gradients": lambda c: gradients(c, "relu", None),
    "gradients of topk": lambda c: gradients(c, "topk", 600),
    "learned threshold": jumprelu,
    "statistics": statistics,
    "statistics of bfloat16": lambda c: statistics(c, torch.bfloat16),
    "steering": steering,
    "steering of bfloat16": lambda c: steering(c, torch.bfloat16),
    "dead latents": dead,
    "sparse step": lambda c: step(c._replace(b_enc=c.b_enc - 3)),
    "dense step": lambda c: step(c._replace(b_enc=c.b_enc + 1)),
    "dense step in fp32": lambda c: step(c._replace(b_enc=c.b_enc + 1), precision="fp32"),
    "bf16 step": lambda c: step(c, precision="bf16"),
    "Adam": adam,
}


def the_case() -> Case:
    """Wide enough for 600 of the latents of a token to be active; bits of W_enc's products show in float32 alone."""
    case = make_case(3, 16, 48, 1400, bias=0.0)
    return case._replace(W_dec=case.W_dec.contiguous())


def assert_same_bits(found: Results, expected: Results) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
