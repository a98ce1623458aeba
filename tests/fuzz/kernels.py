"""Attacks on the kernels: random tensors, layouts, dtypes and surroundings, against float64 written down here.

Laws: an answer is that of float64 to the rounding of its sums; surroundings, threads, budgets and cuts change no bit of
it; what is no right argument is refused by name.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from tests.kernels.contexts import CONTEXTS
from tests.kernels.every_op import Results, csr
from tests.kernels.places import PLACES
from tests.training.dense_loss import dense_gradients

UNIT = 2.0**-23
TINY = 2.0**-120
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


class Sae(NamedTuple):
    """A small SAE and its input, in any layout."""

    x: Tensor  # [N, D]
    W_enc: Tensor  # [D, S]
    b_enc: Tensor  # [S]
    W_dec: Tensor  # [S, D]
    b_dec: Tensor  # [D]

    def params(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in NAMES}


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw_sae(r: random.Random, most: int = 700) -> Sae:
    """Sizes about the edges of blocks; outliers, ties, zero rows and magnitudes from 1e-12 to 1e9."""
    n, d = r.choice([0, 1, 2, 5, 16, 17, 33, 40]), r.choice([1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 100])
    s = min(most, r.choice([1, 2, 15, 16, 31, 33, 64, 65, 200, 513, 700]))
    g = torch.Generator().manual_seed(r.getrandbits(40))
    x, W_enc, W_dec = (torch.randn(*shape, generator=g) for shape in ((n, d), (s, d), (s, d)))
    if r.random() < 0.3:  # channels that are larger than the rest
        x[:, torch.randint(0, d, (2,), generator=g)] *= r.choice([30.0, 1e4])
    if r.random() < 0.3:  # ties
        W_enc = W_enc[torch.randint(0, max(1, s // 5), (s,), generator=g)]
    if r.random() < 0.3:  # numbers whose products are exact
        x, W_enc = (4 * x).round() / 4, (4 * W_enc).round() / 4
    if r.random() < 0.2 and n:
        x[r.randrange(n)] = 0
    b_enc = r.choice([-3.0, -0.5, 0.0, 2.0]) + r.choice([0.0, 0.3]) * torch.randn(s, generator=g)
    scale = 10.0 ** r.choice([0, 0, 0, -12, -3, 4, 9])
    b_dec = r.choice([0.0, 0.2, 5.0]) * torch.randn(d, generator=g)
    return Sae(x * scale, (W_enc / d**0.5).t(), b_enc * scale, W_dec / d**0.5, b_dec * scale)


def laid_out(r: random.Random, t: Tensor) -> Tensor:
    """The same numbers elsewhere in memory: any strides, an offset that is aligned to nothing."""
    kind = r.choice(["as it is", "contiguous", "turned", "every other", "offset"])
    if kind == "contiguous":
        return t.contiguous()
    if kind == "turned" and t.dim() == 2:
        return t.t().contiguous().t()
    if kind == "every other" and t.dim():
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan if t.is_floating_point() else 0)
        wide[..., ::2] = t
        return wide[..., ::2]
    if kind == "offset":
        room = t.new_empty(t.numel() + 3)[3:]
        return room.view(t.shape).copy_(t)
    return t


@contextmanager
def surroundings(r: random.Random) -> Iterator[str]:
    """A few contexts, and a number of threads; the text says which."""
    chosen, threads = r.sample(sorted(CONTEXTS), r.choice([0, 1, 1, 2])), r.choice([1, 2, 3])
    if "the switch above" in chosen:  # PyTorch refuses to tell its old switch once the new one is used
        chosen = ["the switch above"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ExitStack() as held:
            for name in chosen:
                held.enter_context(CONTEXTS[name]())
            if r.random() < 0.2:
                held.enter_context(torch.inference_mode())
                chosen = [*chosen, "inference mode"]
            yield f"{chosen} with {threads} threads"
    finally:
        torch.set_num_threads(before)


def same_bits(found: Results, expected: Results, what: str) -> None:
    assert len(found) == len(expected), what
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype, f"{what}: result {place} is {a.dtype}, not {b.dtype}"
        assert a.shape == b.shape, f"{what}: result {place} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        assert torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num()), f"{what}: result {place} differs"


def close(found: Tensor, wanted: Tensor, bound: Tensor | float, what: str) -> None:
    """|found - wanted| <= bound, element by element; NaN is close to nothing."""
    off = (found.double() - wanted.double()).abs()
    bad = ~(off <= bound)
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(f"{what}: {found[first].item()!r} at {first}; float64 gives {wanted[first].item()!r}")


# ---- encode ----------------------------------------------------------------------------------------------------------


def draw_options(r: random.Random, s: int, scale: float) -> dict[str, Any]:
    kind = r.choice(["relu", "topk", "batchtopk", "jumprelu"])
    options: dict[str, Any] = {"activation": kind, "precision": r.choice(["exact", "exact", "fp32", "bf16"])}
    if "topk" in kind:
        options["k"] = r.choice([1, 2, 3, r.randint(1, s), s]) if s > 2 else 1
        options["k"] = min(options["k"], s)
    if kind == "jumprelu":
        g = torch.Generator().manual_seed(r.getrandbits(40))
        options["threshold"] = laid_out(r, torch.rand(s, generator=g) * scale * r.choice([0.0, 0.5, 2.0]))
    return options


def pre_activations(a: Sae, precision: str) -> tuple[Tensor, Tensor]:
    """Of float64 on what the op multiplies, and how far float32 may be from them; ``[N, S]``."""
    centred = a.x.float() - a.b_dec.float()
    W, b = a.W_enc.float(), a.b_enc.double()
    if precision == "bf16":
        centred, W = centred.bfloat16().float(), W.bfloat16().float()
    pre = centred.double() @ W.double() + b
    sums = centred.double().abs() @ W.double().abs() + b.abs()
    # bfloat16 instructions take subnormal operands for zero
    lost = (centred.double().abs().sum(1, keepdim=True) + W.double().abs().sum(0) + 1) * 2.0**-125
    return pre, sums * UNIT * (a.x.shape[1] + 4) + lost


def check_encoded(z: pk.SparseLatents, a: Sae, options: dict[str, Any], what: str) -> None:
    z.validate()
    assert z.values.dtype == torch.float32, what
    pre, bound = pre_activations(a, options["precision"])
    dense = z.to_dense().double()
    stored = torch.zeros(z.shape, dtype=torch.bool)
    stored[z.rows(), z.indices.long()] = True
    least = options["threshold"].double() if "threshold" in options else torch.zeros(())
    close(torch.where(stored, dense, pre), pre, bound, what)
    assert bool((dense > least)[stored].all()), f"{what}: an entry is not above its threshold"
    if "k" not in options:
        assert bool(stored[pre > least + bound].all()), f"{what}: an active latent is missing"
        return
    room = options["k"] if options["activation"] == "topk" else options["k"] * len(pre)
    groups = [slice(n, n + 1) for n in range(len(pre))] if options["activation"] == "topk" else [slice(None)]
    for rows in groups:
        kept, p, e = stored[rows], pre[rows], bound[rows]
        count = int(kept.sum())
        assert int((p > e).sum().clamp(max=room)) <= count <= room, f"{what}: {count} are kept"
        if count == room > 0:
            edge = (p + e)[kept].min()
            assert bool(((p - e)[~kept] <= edge).all()), f"{what}: a larger one than {edge} is missing"
        else:
            assert bool((p <= e)[~kept].all()), f"{what}: there is room for a positive one"


def encode(r: random.Random) -> None:
    a = draw_sae(r)
    scale = float(a.b_enc.abs().mean()) + TINY
    options = draw_options(r, a.W_enc.shape[1], scale)
    low = r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
    if low == torch.float16 and bool((a.x.abs() > 6e4).any()):
        low = torch.float32
    x = a.x.to(low)
    a = a._replace(x=x)
    wide = r.random() < 0.1
    weights = [laid_out(r, t.double() if wide else t) for t in (a.W_enc, a.b_enc, a.b_dec)]
    what = f"encode of x {tuple(x.shape)} {low} by {a.W_enc.shape[1]} latents, float64 weights {wide}, {options}"
    if low == torch.float64:
        options = {**options, "precision": "fp32"}
        z = pk.encode(laid_out(r, x), *weights, **options)
        pre = (x - a.b_dec.double()) @ a.W_enc.double() + a.b_enc.double()
        stored = z.to_dense()
        close(stored[stored > 0], pre[stored > 0], 1e-9 * (1 + pre.abs()[stored > 0]), what)
        return
    z = pk.encode(laid_out(r, x), *weights, **options)
    check_encoded(z, a, options, what)
    with surroundings(r) as around:
        held = pk.prepare(*weights) if r.random() < 0.5 else None
        again = pk.encode(laid_out(r, x), *([held] if held else weights), **options, budget_mb=r.choice([0.01, 1, 256]))
    same_bits(csr(again), csr(z), f"{what}, {around}")
    if options["activation"] != "batchtopk" and len(x) > 1:
        cut = r.randint(1, len(x) - 1)
        parts = [pk.encode(part, *weights, **options) for part in (x[:cut], x[cut:])]
        same_bits(csr(pk.SparseLatents.cat(parts)), csr(z), f"{what}, cut at {cut}")


def huge(r: random.Random) -> None:
    """Magnitudes at the end of float32: the answer of float64, or a refusal that names a row that may overflow."""
    a = draw_sae(r, 65)
    if not len(a.x):
        return
    rows = torch.rand(len(a.x), 1, generator=torch.Generator().manual_seed(r.getrandbits(40))) < 0.3
    a = a._replace(x=torch.where(rows, a.x / a.x.abs().max().clamp(min=TINY) * 10.0 ** r.uniform(30, 38.5), a.x))
    if r.random() < 0.3:
        a = a._replace(b_dec=a.b_dec.sign() * 10.0 ** r.uniform(30, 38.5))
    a = a._replace(W_enc=a.W_enc * 10.0 ** r.choice([0, 0, 3, -3, -30]))
    options = draw_options(r, a.W_enc.shape[1], 1.0) | {"precision": r.choice(["exact", "fp32"])}
    what = f"encode of huge x {tuple(a.x.shape)} by {a.W_enc.shape[1]} latents, {options}"
    centred = a.x.double() - a.b_dec.double()
    largest = (centred.abs() @ a.W_enc.double().abs()).amax(1) + a.b_enc.double().abs().max()
    may = (largest > 2.0**126) | (centred.abs().amax(1) > 2.0**127.9)
    try:
        z = pk.encode(a.x, a.W_enc, a.b_enc, a.b_dec, **options)
    except ValueError as error:
        row = int(str(error).partition("in row ")[2].split()[0])
        if not may[row]:
            raise AssertionError(f"{what}: row {row} is refused") from error
        return
    assert bool(z.values.isfinite().all()), what
    check_encoded(z, a, options, what)


# ---- decode, gradients, statistics -----------------------------------------------------------------------------------


def draw_latents(r: random.Random, n: int, s: int) -> pk.SparseLatents:
    g = torch.Generator().manual_seed(r.getrandbits(40))
    dense = torch.rand(n, s, generator=g) * (torch.rand(n, s, generator=g) < r.choice([0.0, 0.05, 0.5, 1.0]))
    dense *= 10.0 ** r.choice([0, 0, -6, 6])
    return pk.SparseLatents.from_dense(dense.to(r.choice([torch.float32, torch.bfloat16])))


def decode(r: random.Random) -> None:
    a = draw_sae(r)
    n, s = len(a.x), a.W_enc.shape[1]
    z, dtype = draw_latents(r, n, s), r.choice([torch.float32, torch.bfloat16])
    g = torch.Generator().manual_seed(r.getrandbits(40))
    classes = r.choice([0, 1, 3])
    ids = torch.randint(0, classes, (n,), generator=g) if classes else None
    rank = torch.stack([torch.randperm(s, generator=g) for _ in range(max(1, classes))]).to(torch.int32)
    ks = [r.randint(0, s + 2) for _ in range(r.randint(0, 4))]
    if not classes:
        rank = rank[0]
    keep = rank < r.randint(0, s)
    what = f"decode of {n} tokens, {s} latents, {z.values.dtype}, W_dec {tuple(a.W_dec.shape)} {dtype}, ks {ks}"

    def run() -> Results:
        to = laid_out(r, a.W_dec.to(dtype)), laid_out(r, a.b_dec)
        masked = pk.decode_masked(z, laid_out(r, keep), *to, class_ids=ids)
        return [pk.decode(z, *to), masked, *pk.decode_sweep(z, laid_out(r, rank), ks, *to, class_ids=ids)]

    found = run()
    dense, W, b = z.to_dense().double(), a.W_dec.to(dtype).double(), a.b_dec.double()
    per_token = rank if ids is None else rank[ids]
    per_keep = keep if ids is None else keep[ids]
    bound = (dense.abs() @ W.abs() + b.abs()) * UNIT * (s + len(ks) + 4) + TINY
    close(found[0], dense @ W + b, bound, what)
    close(found[1], (dense * per_keep) @ W + b, bound, f"{what}, masked")
    for i, k in enumerate(ks):
        on = per_token < k
        close(found[2][i], (dense * on) @ W + b, bound, f"{what}, on at {k}")
        close(found[3][i], (dense * ~on) @ W + b, bound, f"{what}, off at {k}")
    with surroundings(r) as around:
        again = run()
    same_bits(again, found, f"{what}, {around}")


def gradients(r: random.Random) -> None:
    a = draw_sae(r, 200)
    options = draw_options(r, a.W_enc.shape[1], float(a.b_enc.abs().mean()) + TINY) | {"precision": "exact"}
    wanted_by = [r.random() < 0.7 for _ in a]
    wanted_by[r.randrange(len(a))] = True
    g = torch.Generator().manual_seed(r.getrandbits(40))
    cotangent = torch.randn(a.x.shape, generator=g)
    keep = torch.rand(a.W_enc.shape[1], generator=g) < 0.7
    what = f"gradients of x {tuple(a.x.shape)}, {a.W_enc.shape[1]} latents by {wanted_by}, {options}"

    def run() -> Results:
        leaves = Sae(*(laid_out(r, t).clone().requires_grad_(w) for t, w in zip(a, wanted_by, strict=True)))
        with torch.enable_grad():
            z = pk.encode(leaves.x, leaves.W_enc, leaves.b_enc, leaves.b_dec, **options)
            to = leaves.W_dec, leaves.b_dec
            y = pk.decode_masked(z, keep, *to) if masked else pk.decode(z, *to)
            found = torch.autograd.grad(y, [t for t in leaves if t.requires_grad], cotangent, allow_unused=True)
        return [y.detach(), *(torch.zeros(()) if f is None else f for f in found), z.to_dense().detach()]

    masked = r.random() < 0.3
    if masked:  # a decoder that nothing reaches has no gradient to compare
        wanted_by[3] = True
    *found, dense = run()
    doubles = [t.double().requires_grad_(w) for t, w in zip(a, wanted_by, strict=True)]
    x, W_enc, b_enc, W_dec, b_dec = doubles
    active = (dense != 0).double() * (keep if masked else 1)
    y = (((x - b_dec) @ W_enc + b_enc) * active) @ W_dec + b_dec
    exact = torch.autograd.grad(y, [t for t in doubles if t.requires_grad], cotangent.double(), allow_unused=True)
    # every gradient is a sum of products; absolute values of all of them bound what rounding can do
    sizes = [t.detach().abs().requires_grad_(w) for t, w in zip(doubles, wanted_by, strict=True)]
    ax, aW_enc, ab_enc, aW_dec, ab_dec = sizes
    ay = (((ax + ab_dec) @ aW_enc + ab_enc) * active) @ aW_dec + ab_dec
    weight = cotangent.double().abs()
    largest = torch.autograd.grad(ay, [t for t in sizes if t.requires_grad], weight, allow_unused=True)
    terms = sum(a.x.shape) + a.W_enc.shape[1] + 8
    for f, e, m in zip(found[1:], exact, largest, strict=True):
        if e is not None and m is not None:
            close(f, e, 2 * UNIT * terms * m.abs() + TINY, what)
    with surroundings(r) as around:
        if "inference" in around:
            return
        again = run()[:-1]
    same_bits(again, found, f"{what}, {around}")


def statistics(r: random.Random) -> None:
    images, tokens, s = r.randint(0, 6), r.randint(1, 7), r.choice([1, 15, 33, 200])
    z = draw_latents(r, images * tokens, s)
    classes = r.choice([0, 1, 4])
    g = torch.Generator().manual_seed(r.getrandbits(40))
    labels = torch.randint(-1, classes, (images,), generator=g) if classes else None
    tau = r.choice([0.0, 0.2, 1.0, -1.0])
    what = f"statistics of {images} images of {tokens} tokens, {s} latents, {z.values.dtype}, above {tau}, {labels}"

    def fold(cuts: list[int]) -> Results:
        stats = None
        for first, last in zip([0, *cuts], [*cuts, images], strict=True):
            part = z.select_rows(torch.arange(first * tokens, last * tokens, device="cpu"))
            own = None if labels is None else labels[first:last]
            stats = pk.latent_stats(part, tokens, tau, own, classes or None, first, stats)
        assert stats is not None
        held = (stats.sums, stats.counts, stats.image_counts, stats.max_values, stats.max_position)
        pooled = pk.pool_tokens(z, tokens)
        return [*held, *csr(pooled), *([] if stats.class_counts is None else [stats.class_counts])]

    found = fold([])
    dense = z.to_dense().double().view(images, tokens, s)
    stored = torch.zeros(z.shape, dtype=torch.bool)
    stored[z.rows(), z.indices.long()] = True
    over = (z.to_dense() > tau).view(images, tokens, s) & stored.view(images, tokens, s)
    close(found[0], dense.sum((0, 1)), 1e-12 * dense.abs().sum((0, 1)) + TINY, f"{what}, sums")
    assert torch.equal(found[1], over.sum((0, 1))), f"{what}, counts"
    assert torch.equal(found[2], (dense > 0).any(1).sum(0)), f"{what}, image counts"
    best = dense.flatten(0, 1).amax(0).clamp(min=0) if images else torch.zeros(s)
    assert torch.equal(found[3].double(), best.double()), f"{what}, maxima"
    for latent in range(s):
        places = (dense.flatten(0, 1)[:, latent] == best[latent]).nonzero()
        wanted = int(places[0]) if best[latent] > 0 else -1
        assert int(found[4][latent]) == wanted, f"{what}, position of latent {latent}"
    if labels is not None:
        counts = torch.stack([over[labels == c].sum((0, 1)) for c in range(classes)])
        assert torch.equal(found[-1], counts), f"{what}, class counts"
    cuts = sorted(r.randint(0, images) for _ in range(r.randint(0, 3)))
    with surroundings(r) as around:
        again = fold(cuts)
    same_bits(again, found, f"{what}, cut at {cuts}, {around}")


# ---- training --------------------------------------------------------------------------------------------------------


def step(r: random.Random) -> None:
    a = draw_sae(r, 200)
    if not len(a.x) or float(a.x.abs().max()) > 1e6 or float(a.x.norm(dim=1).min()) < 1e-6:
        return
    pre, bound = pre_activations(a, "exact")
    if bool((pre.abs() <= 4 * bound).any()):
        return  # rounding decides there what is active
    n, s = len(a.x), a.W_enc.shape[1]
    g = torch.Generator().manual_seed(r.getrandbits(40))
    tokens = r.choice([t for t in range(1, n + 1) if n % t == 0])
    x = a.x.view(-1, tokens, a.x.shape[1]) if r.random() < 0.7 else a.x
    dead = torch.rand(s, generator=g) < 0.3 if r.random() < 0.4 and float(pre.max()) < 10 else None
    settings: dict[str, Any] = {"l1": r.choice([0.0, 0.03]), "dead": dead, "cls_weight": r.choice([1.0, 0.0, 2.5])}
    precision = r.choice(["exact", "fp32"])
    what = f"step of x {tuple(x.shape)}, {s} latents, {settings}, {precision}"

    params = {name: laid_out(r, p) for name, p in a.params().items()}

    def run(budget: float) -> Results:
        terms, grads = pk.sae_step(x, params, **settings, precision=precision, budget_mb=budget)
        return [*terms, *(grads[name] for name in NAMES)]

    found = run(256)
    exact, exact_grads = dense_gradients(x, a.params(), **settings, ghost=True)
    loose = 3e-3 if dead is not None and bool(dead.any()) else 1e-4
    total = float(exact.total.detach().abs())
    for value, name in zip(found, ("total", "mse", "l1", "ghost", "l0", "squared_error"), strict=False):
        wanted = getattr(exact, name).detach()
        close(value, wanted, loose * (total + wanted.abs()) + TINY, f"{what}: {name}")
    largest = max(float(grad.abs().max()) for grad in exact_grads.values())
    for value, name in zip(found[7:], NAMES, strict=True):
        close(value, exact_grads[name], 10 * loose * largest + 1e-9, f"{what}: gradient of {name}")
    share = float((pre > 0).double().mean())
    before = torch.get_num_threads()
    with surroundings(r) as around:
        if share > 0.1:  # dense, perhaps: the same threads and budget
            torch.set_num_threads(before)
            again = run(256)
        else:
            again = run(r.choice([0.01, 256]) if dead is None else 256)
    same_bits(again, found, f"{what}, {around}")


def adam(r: random.Random) -> None:
    a = draw_sae(r, 200)
    params = {name: laid_out(r, p).clone(memory_format=torch.preserve_format) for name, p in a.params().items()}
    unit, lr, betas = r.random() < 0.5, 10.0 ** r.uniform(-5, 0), (r.choice([0.0, 0.9]), r.choice([0.9, 0.999]))
    exact = {name: p.double().requires_grad_() for name, p in params.items()}
    optimiser = torch.optim.Adam(list(exact.values()), lr=lr, betas=betas, eps=1e-8)
    state = pk.adam_init(params)
    g = torch.Generator().manual_seed(r.getrandbits(40))
    what = f"Adam of {[tuple(p.shape) for p in params.values()]}, unit rows {unit}, lr {lr}, {betas}"
    for _ in range(r.randint(1, 4)):
        grads = {name: laid_out(r, torch.randn(p.shape, generator=g)) for name, p in params.items()}
        with surroundings(r):
            pk.adam_step(params, grads, state, lr=lr, betas=betas, unit_norm=unit)
        for name, p in exact.items():
            p.grad = grads[name].double()
            if unit and name == "W_dec":
                rows = p.detach()
                p.grad = p.grad - (p.grad * rows).sum(1, keepdim=True) * rows
        optimiser.step()
        with torch.no_grad():
            if unit:
                exact["W_dec"].div_(exact["W_dec"].norm(dim=1, keepdim=True))
            for name, p in exact.items():  # Adam divides by small numbers: each step is held to its own
                near = 1e-4 * (p.abs() + lr) + 1e-5 * float(p.abs().max())
                if unit and name == "W_dec":
                    # what the projection leaves of a gradient along the row is rounding, and Adam makes lr of it
                    left = optimiser.state[p]["exp_avg_sq"].sqrt()
                    near = 1e-3 + 2 * lr * (left < 1e-4 * grads[name].double().norm(dim=1, keepdim=True))
                close(params[name], p, near, f"{what}: {name}")
                p.copy_(params[name])


# ---- latents and arguments -------------------------------------------------------------------------------------------


def latents(r: random.Random) -> None:
    """A chain of the methods of SparseLatents, beside dense ones."""
    z = draw_latents(r, r.randint(0, 9), r.choice([1, 7, 33]))
    dense, what = z.to_dense(), []
    with surroundings(r) as around:
        for _ in range(r.randint(1, 5)):
            n, s = z.shape
            some = r.sample(range(s), r.randint(0, s))
            number = r.choice([0.0, 0.5, 2.0, -1.0])
            kind = r.choice(["scale", "set", "add", "permute", "select", "where", "cat", "reshape"])
            what.append(f"{kind} {some} {number}")
            if kind == "scale":
                z = z.scale(some, number)
                dense[:, some] *= number
            elif kind == "set":
                z = z.set(some, number)
                dense[:, some] = number
            elif kind == "add":
                z = z.add(some, number)
                dense[:, some] += number
            elif kind == "permute":
                order = r.sample(range(s), s)
                z, dense = z.permute(order), dense[:, order]
            elif kind == "select" and n:
                index = torch.tensor([r.randrange(n) for _ in range(r.randint(0, 9))], dtype=torch.int64, device="cpu")
                z, dense = z.select_rows(index), dense[index]
            elif kind == "where":
                z, dense = z.where(z.values > number), torch.where((dense > number) & (dense != 0), dense, 0)
            elif kind == "cat":
                z, dense = pk.SparseLatents.cat([z, z]), dense.repeat(2, 1)
            elif kind == "reshape":
                tokens = r.choice([t for t in range(1, n + 1) if n % t == 0] or [1])
                z = pk.SparseLatents.cat(z.reshape_tokens(n // tokens, tokens)) if n else z
            z.validate()
            assert torch.equal(z.to_dense(), dense), f"{what}, {around}"
    assert math.isclose(z.l0, float((z.counts().double().mean() if z.shape[0] else torch.zeros(())).item()))


def arguments(r: random.Random) -> None:
    """One argument changed at random: the call answers, or refuses it and says what was expected."""
    place = r.choice(sorted(PLACES))
    _, right, call = PLACES[place]
    changes = [r.choice(sorted(CHANGES)) for _ in range(r.choice([1, 1, 2]))]
    given: Any = right
    try:
        for change in changes:
            given = CHANGES[change](r, given) if isinstance(given, Tensor) else given
    except (RuntimeError, TypeError):  # PyTorch has no such tensor
        return
    try:
        with surroundings(r) as around:
            call(given)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        if not re.search("expected|holds|has a|in row|reach|expanded", str(error)):
            raise AssertionError(f"{place} with {changes}, {around}: {error}") from error


def _resized(r: random.Random, t: Tensor) -> Tensor:
    shape = list(t.shape)
    if shape:
        shape[r.randrange(len(shape))] = r.choice([0, 1, 3, 11])
    return t.new_zeros(shape)


def _spoiled(r: random.Random, t: Tensor) -> Tensor:
    if not t.numel() or t.layout is not torch.strided or t.is_meta:
        return t
    changed = t.clone()
    special = [-1, 127, 0] if not t.is_floating_point() else [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45]
    changed[tuple(r.randrange(n) for n in t.shape)] = r.choice(special)
    return changed


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.bool]
CHANGES: dict[str, Callable[[random.Random, Tensor], Any]] = {
    "another dtype": lambda r, t: t.to(r.choice([*DTYPES, torch.complex64, torch.uint16, torch.float8_e4m3fn])),
    "another shape": _resized,
    "one more dimension": lambda r, t: t.unsqueeze(r.randint(0, t.dim())),
    "one dimension less": lambda r, t: t.select(0, 0) if t.dim() and t.shape[0] else t,
    "turned": lambda r, t: t.t() if t.dim() == 2 else t,
    "laid out": laid_out,
    "expanded": lambda r, t: t[:1].expand(t.shape) if t.dim() and t.shape[0] else t,
    "spoiled": _spoiled,
    "sparse": lambda r, t: t.contiguous().to_sparse() if t.layout is torch.strided and not t.is_meta else t,
    "meta": lambda r, t: t.to("meta"),
    "array": lambda r, t: t.numpy() if t.layout is torch.strided and not t.is_meta else t,
    "list": lambda r, t: t.tolist() if t.layout is torch.strided and not t.is_meta else t,
    "text": lambda r, t: "a tensor",
    "requires grad": lambda r, t: t.clone().requires_grad_() if t.is_floating_point() else t,
    "parameter": lambda r, t: torch.nn.Parameter(t.clone()) if t.is_floating_point() else t,
    "conjugate": lambda r, t: torch.complex(t, t).conj().imag if t.dtype == torch.float32 and not t.is_sparse else t,
}


ATTACKS: dict[str, Callable[[random.Random], None]] = {
    "encode": encode,
    "huge": huge,
    "decode": decode,
    "gradients": gradients,
    "statistics": statistics,
    "step": step,
    "adam": adam,
    "latents": latents,
    "arguments": arguments,
}
