"""The lines of training: the step, sparse and at the dense start, with dead latents, top-k, and the optimiser."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench import checks, dense
from patchsae.bench.case import Bar, Case, Opponent, Side
from patchsae.bench.checks import OPS
from patchsae.bench.findings import Finding, Findings
from patchsae.bench.inputs import Problem
from patchsae.bench.sizes import Size
from patchsae.bench.timing import Pace

L1, CLS_WEIGHT, RATE = 8e-5, 1.0, 4e-4
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
GRADIENTS = 1e-4
"""Relative error of a gradient in float32, given the active set: errors of a small difference y - x."""
LIMITS = {"fp32": 1e-2, "tf32": 0.05, "bf16": 0.15}
"""The same where an entry within rounding of zero may be active on one side only: in float32 about 30 of 3.8 million.
With bfloat16 products that alone moves W_enc's gradient by 5 % (200 tokens, 6,144 latents, in float64)."""
GHOST_LIMITS = {"fp32": 2e-2, "tf32": 0.3, "bf16": 0.6}
"""With dead latents: the ghost term divides by squares of differences, and where one is near 0 its gradient has a spike
whose sign is rounding's. With bfloat16 products it was off by 27 % in the same place, in float32 by 1e-4."""
TOTALS = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 1e-2}
FIRED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 1e-2}
OFF_EDGE = 1e-3
"""Added to the biases: their calibration ends on the pre-activation of some token, which would be 0 up to rounding."""
SLOW = Pace(seconds=0.0, min_rounds=3, max_rounds=3, warm_ups=1)
"""For steps of a quarter of a second, and opponents of that."""
Step = tuple[Any, dict[str, Tensor]]


class State(NamedTuple):
    """What one line trains: latent-major parameters as the package stores them, dead latents or None."""

    params: dict[str, Tensor]
    dead: Tensor | None


def training_lines(size: Size) -> list[Case]:
    trained, start = f"L0 {size.l0}", f"half of {size.d_sae} active"
    low = "bfloat16 products"
    return [
        _step_line(f"SAE step, {trained}, none dead", "trained", "fp32", Bar(False, 14), "tf32", Bar(False, 4)),
        _step_line(
            f"SAE step, {trained}, none dead, {low}",
            "trained",
            *("fp32", Bar(False, 20), "tf32", Bar(False, 6)),
            ours="bf16",
        ),
        _step_line(f"SAE step, {trained}, 20 % dead", "dead", "fp32", None, "tf32", None),
        _step_line(f"SAE step, {trained}, 20 % dead, {low}", "dead", "fp32", None, "tf32", None, ours="bf16"),
        _step_line(f"SAE step at the dense start, {start}", "start", "fp32", Bar(False, 1.2)),
        _step_line(f"SAE step at the dense start, {start}, TF32", "start", "tf32", Bar(False, 1.2), ours="tf32"),
        _step_line(f"SAE step at the dense start, {start}, {low}", "start", "bf16", Bar(False, 1.2), ours="bf16"),
        _topk_line(size.middle_k),
        _adam_line("Adam, projection, unit rows", False, 28),
        _adam_line("Adam, bfloat16 moments, encoder packed", True, 21),
    ]


def _step_line(name: str, kind: str, *against: Any, ours: str = "fp32") -> Case:
    """``against``: precisions of the dense step, each followed by the bar."""
    pairs = zip(against[::2], against[1::2], strict=True)
    opponents = tuple(
        Opponent(
            Side("dense step as released, eager", precision, functools.partial(_dense, kind, precision)),
            bar,
            functools.partial(_same_gradients, max(_limits(kind)[precision], _limits(kind)[ours])),
        )
        for precision, bar in pairs
    )
    side = Side("sae_step", "exact" if ours == "fp32" else ours, functools.partial(_ours, kind, ours))
    return Case(name, side, functools.partial(_check_step, kind, ours), opponents, SLOW)


def _limits(kind: str) -> dict[str, float]:
    return GHOST_LIMITS if kind == "dead" else LIMITS


def _topk_line(k: int) -> Case:
    eager = Side("encode, top-k, scatter, decode, autograd", "bf16", functools.partial(_dense_topk, k))
    return Case(
        f"top-k {k} step",
        Side("encode + decode + autograd", "bf16", functools.partial(topk_gradients, k)),
        functools.partial(_check_topk, k),
        (Opponent(eager, Bar(False, 3)),),
    )


def _adam_line(name: str, packing: bool, bytes_each: int) -> Case:
    """28 bytes an element; with bfloat16 moments 20, and 2 more for the packed half of them."""
    copy = Side("copy of the bytes it must move", "fp32", functools.partial(_copy, bytes_each))
    side = Side("adam_step", "fp32", functools.partial(_adam, packing))
    return Case(name, side, _check_adam, (Opponent(copy, Bar(True, 1.25)),))


def state(p: Problem, kind: str) -> State:
    """``"trained"``: the problem's parameters; ``"dead"``: a fifth of the latents never fires; ``"start"``: no bias."""
    params = {**p.parameters, "b_enc": p.b_enc + OFF_EDGE}
    if kind == "start":
        return State({**params, "b_enc": torch.zeros_like(p.b_enc)}, None)
    if kind == "trained":
        return State(params, None)
    dead = torch.arange(p.size.d_sae, device=p.device) % 5 == 0
    return State({**params, "b_enc": params["b_enc"] - 4 * dead}, dead)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """PyTorch's switch for float32 products."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _ours(kind: str, precision: str, p: Problem, turn: int) -> Step:
    s = p.cached(f"state {kind}", lambda: state(p, kind))
    ours = {"bf16": "bf16", "tf32": "fp32"}.get(precision, "exact")  # "fp32" alone follows the switch
    with products(precision):
        return pk.sae_step(p.images(turn), s.params, l1=L1, dead=s.dead, cls_weight=CLS_WEIGHT, precision=ours)


def _dense(kind: str, precision: str, p: Problem, turn: int) -> Step:
    """As the released code computes it: whole [N, S] tensors, autograd."""
    s = p.cached(f"state {kind}", lambda: state(p, kind))
    leaves = p.cached(f"leaves {kind}", lambda: {n: t.contiguous().requires_grad_() for n, t in copies(s).items()})
    with products(precision), torch.autocast(p.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = dense_loss(p.images(turn), leaves, s.dead)
        return loss, dict(zip(NAMES, torch.autograd.grad(loss, [leaves[n] for n in NAMES]), strict=True))


def copies(s: State) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in s.params.items()}


def dense_loss(x: Tensor, p: dict[str, Tensor], dead: Tensor | None) -> Tensor:
    """The released loss of x ``[B, T, D]``, weight 1 on CLS."""
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    h = pre.relu()
    error = h @ p["W_dec"] + p["b_dec"] - x
    total = dense.relative_error(error, x) + L1 * h.abs().sum(-1).mean()
    return total if dead is None else total + dense.ghost(pre[..., dead], p["W_dec"][dead], error.detach(), x)


def _check_step(kind: str, precision: str, p: Problem, found: Step) -> Findings:
    """Against the dense formula in float64, in chunks."""
    s = state(p, kind)
    wide = {name: t.double() for name, t in s.params.items()}
    dead = None if s.dead is None else s.dead.nonzero().squeeze(1)
    x = p.images().double().view(p.size.n, -1)
    exact = OPS.sae_step(
        x, *(wide[n] for n in NAMES), dead, L1, CLS_WEIGHT, p.size.tokens, 8 << 30 if p.x.is_cuda else 2**20
    )
    terms, grads = found
    limit = _limits(kind)[precision]
    total, exact_grads = checks.relative(terms.total, exact[0]), zip(NAMES, exact[7:], strict=True)
    differing = float((terms.fired != exact[6]).sum()) / p.size.d_sae
    return (
        Finding("relative error of the total", total, TOTALS[precision]),
        Finding("share of latents whose firing differs", differing, FIRED[precision]),
        *(Finding(f"relative error of {n}", checks.relative(grads[n], e), limit) for n, e in exact_grads),
    )


def _same_gradients(limit: float, p: Problem, ours: Step, theirs: Step) -> Findings:
    return tuple(checks.agreement(f"dense {name}", ours[1][name], theirs[1][name], limit) for name in NAMES)


def topk_gradients(k: int, p: Problem, turn: int) -> list[Tensor]:
    """Gradients of the mean squared error."""
    leaves = p.cached("top-k leaves", lambda: _leaves(p))
    x = p.xs[turn % len(p.xs)]
    z = pk.encode(x, *(leaves[n] for n in ("W_enc", "b_enc", "b_dec")), activation="topk", k=k, precision="bf16")
    loss = (pk.decode(z, leaves["W_dec"], leaves["b_dec"]) - x).square().mean()
    return list(torch.autograd.grad(loss, [leaves[n] for n in NAMES]))


def _leaves(p: Problem) -> dict[str, Tensor]:
    return {name: t.requires_grad_() for name, t in p.copied_parameters().items()}


def _dense_topk(k: int, p: Problem, turn: int) -> list[Tensor]:
    """What one writes in eager PyTorch: both products in bfloat16, float32 parameters."""
    leaves = p.cached("dense top-k leaves", lambda: {n: t.detach().contiguous() for n, t in _leaves(p).items()})
    W_enc, b_enc, W_dec, b_dec = (leaves[n].requires_grad_() for n in NAMES)
    x = p.xs[turn % len(p.xs)]
    pre = (x - b_dec).bfloat16() @ W_enc.bfloat16() + b_enc.bfloat16()
    values, indices = pre.relu().topk(k, dim=1)
    h = torch.zeros_like(pre).scatter(1, indices, values)
    loss = ((h @ W_dec.bfloat16()).float() + b_dec - x).square().mean()
    return list(torch.autograd.grad(loss, [W_enc, b_enc, W_dec, b_dec]))


def _check_topk(k: int, p: Problem, found: list[Tensor]) -> Findings:
    """Against float64 on the active set and the values of the same encode, which has checks of its own."""
    z = pk.encode(p.x, p.weights, activation="topk", k=k, precision="bf16")
    csr, x = (z.values.double(), z.indices, z.indptr), p.x.double()
    W_enc, W_dec, b_dec = p.W_enc.double(), p.W_dec.double(), p.b_dec.double()
    g = (OPS.decode(*csr, W_dec, b_dec) - x) * (2 / x.numel())
    at_entries, grad_dec, grad_b = OPS.decode_backward(g, *csr, W_dec, 1 << 30)
    _, grad_enc, grad_b_enc, through = OPS.encode_backward(at_entries, *csr[1:], x, W_enc, b_dec)
    exact = (grad_enc, grad_b_enc, grad_dec, grad_b + through)
    pairs = zip(NAMES, found, exact, strict=True)
    return tuple(Finding(f"relative error of {n}", checks.relative(a, e), GRADIENTS) for n, a, e in pairs)


class Optimiser(NamedTuple):
    params: dict[str, Tensor]
    grads: dict[str, Tensor]
    state: pk.AdamState
    prepared: pk.PreparedWeights | None


def _optimiser(p: Problem, packing: bool) -> Optimiser:
    g = torch.Generator(p.device).manual_seed(0)
    params = copies(state(p, "trained"))
    grads = {n: torch.empty_like(t).normal_(generator=g) for n, t in params.items()}
    if not packing:
        return Optimiser(params, grads, pk.adam_init(params), None)
    prepared = pk.prepare(params["W_enc"], params["b_enc"], params["b_dec"])
    prepared.packed("exact")
    return Optimiser(params, grads, pk.adam_init(params, moments=torch.bfloat16), prepared)


def _adam(packing: bool, p: Problem, turn: int) -> Optimiser:
    held = p.cached(f"optimiser, packing {packing}", lambda: _optimiser(p, packing))
    pk.adam_step(held.params, held.grads, held.state, lr=RATE, prepared=held.prepared)
    return held


def _check_adam(p: Problem, found: Optimiser) -> Findings:
    """The first step, whose moments start at 0, in float64, and an encode with what was packed on the way."""
    start, findings = _optimiser(p, packing=False), []
    for name in NAMES:
        exact, grad = start.params[name].double(), start.grads[name].double()
        moments = torch.zeros_like(exact), torch.zeros_like(exact)
        OPS.adam_step_(exact, grad, *moments, 1, RATE, 0.9, 0.999, 1e-8, name == "W_dec")
        findings.append(Finding(f"relative error of {name}", checks.relative(found.params[name], exact), 1e-6))
    if found.prepared is not None:
        encoder = (found.params[name] for name in ("W_enc", "b_enc", "b_dec"))
        packed, fresh = pk.encode(p.x[p.rows], found.prepared), pk.encode(p.x[p.rows], *encoder)
        findings.append(checks.same_bits((packed.values, packed.indices), (fresh.values, fresh.indices)))
    return tuple(findings)


def _copy(bytes_each: int, p: Problem, turn: int) -> Tensor:
    """Half of the bytes of all elements are read and half written."""
    half = bytes_each * sum(getattr(p, name).numel() for name in NAMES) // 2
    buffer = p.cached(f"copied {bytes_each}", lambda: torch.zeros(2, half, dtype=torch.uint8, device=p.device))
    return buffer[1].copy_(buffer[0])
