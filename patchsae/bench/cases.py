"""What is timed: every op at a named size, beside plain PyTorch doing the same on dense latents; and MaPLe's tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import patchsae_kernels as pk

if TYPE_CHECKING:
    from patchsae.maple import MaPLe

KS = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)
CLASSES = 10


class Size(NamedTuple):
    """``images`` of ``tokens`` tokens of width ``d_in``, ``d_sae`` latents, about ``l0`` of them active per token."""

    images: int
    tokens: int
    d_in: int
    d_sae: int
    l0: int


SIZES = {
    "small": Size(images=4, tokens=65, d_in=128, d_sae=2048, l0=20),
    "paper": Size(images=8, tokens=197, d_in=768, d_sae=49152, l0=149),
}
PAPER_BATCH_ON_GPU = 128


@dataclass(frozen=True, eq=False)
class Inputs:
    """Seeded random inputs of one size; x is standard normal and the encoder bias gives the wanted L0."""

    size: Size
    x: Tensor  # [N, D]
    W_enc: Tensor  # [D, S], latent-major, unit columns
    b_enc: Tensor  # [S]
    W_dec: Tensor  # [S, D], unit rows
    b_dec: Tensor  # [D]
    weights: pk.PreparedWeights
    z: pk.SparseLatents  # ReLU latents of x
    rank: Tensor  # [C, S] int32
    labels: Tensor  # [B] int64
    class_ids: Tensor  # [N] int64

    @cached_property
    def rows_used(self) -> int:
        """Latents that are active at all: rows of W_dec that a decode must read."""
        return torch.unique(self.z.indices).numel()

    @cached_property
    def rows_kept(self) -> int:
        """The same under the keep set of the masked case."""
        kept = (self.rank < 100)[self.class_ids[self.z.rows()], self.z.indices.long()]
        return torch.unique(self.z.indices[kept]).numel()

    @cached_property
    def dense(self) -> Tensor:
        """[N, S], the same latents for the dense baselines: what they are about, and made only for them."""
        return self.z.to_dense()

    @cached_property
    def maple(self) -> MaPLe:
        """An untrained MaPLe on a CLIP of this size: the shipped one, or a random ViT-B/16."""
        from patchsae.clip import load_clip
        from patchsae.maple import load_maple

        name = {128: "tiny", 768: "ViT-B-16-quickgelu"}[self.size.d_in]
        return load_maple(load_clip(name, device=self.x.device), None, ["thing"])

    @cached_property
    def pixels(self) -> Tensor:
        """[B, 3, H, W], standard normal."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.size.images, 3, *self.maple.image_size, generator=generator).to(self.x.device)


class Work(NamedTuple):
    """Something to time, and what to call it."""

    name: str
    run: Callable[[Inputs], Any]


@dataclass(frozen=True)
class Case:
    """One op: ours, the dense baseline, and the floor that no implementation can pass.

    Attributes:
        floor: does only what cannot be left out (a product by the vendor's library, or a copy of the bytes that must
            move); the share of the limit is its time over ours.
        check: raises AssertionError unless the results of ours and of the baseline agree.
    """

    name: str
    ours: Callable[[Inputs], Any]
    baseline: Work
    floor: Work
    check: Callable[[Inputs, Any, Any], None]


def make_inputs(size: Size, device: str = "cpu", seed: int = 0) -> Inputs:
    """Inputs of a size on a device."""
    g = torch.Generator().manual_seed(seed)
    n, d, s = size.images * size.tokens, size.d_in, size.d_sae

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    x, b_dec = normal(n, d), 0.1 * normal(d)
    W_enc = F.normalize(normal(s, d), dim=1).t()
    # x - b_dec is normal with variance 1.01, so a pre-activation is too: the quantile sets the share of active latents.
    level = 1.01**0.5 * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - size.l0 / s)).item()
    b_enc = torch.full((s,), -level, device=device)
    weights = pk.prepare(W_enc, b_enc, b_dec)
    z = pk.encode(x, weights)
    labels = torch.arange(size.images, device=device) % CLASSES
    rank = torch.stack([torch.randperm(s, generator=g) for _ in range(CLASSES)]).to(device, torch.int32)
    return Inputs(
        size=size,
        x=x,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=F.normalize(normal(s, d), dim=1),
        b_dec=b_dec,
        weights=weights,
        z=z,
        rank=rank,
        labels=labels,
        class_ids=labels.repeat_interleave(size.tokens),
    )


def all_cases() -> list[Case]:
    """Every case, by op."""
    return [*_encode_cases(), *_decode_cases(), *_statistics_cases(), *_training_cases(), _maple_case()]


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


def _topk(i: Inputs) -> int:
    return min(64, i.size.d_sae)


def _encode_cases() -> list[Case]:
    product = Work("fp32 product", _dense_pre)
    return [
        Case(
            "encode",
            lambda i: pk.encode(i.x, i.weights),
            Work("addmm + relu, fp32", lambda i: _dense_pre(i).relu_()),
            product,
            lambda i, ours, dense: _close_latents(ours, dense),
        ),
        Case(
            "encode_topk",
            lambda i: pk.encode(i.x, i.weights, activation="topk", k=_topk(i)),
            Work("addmm + relu + topk 64, fp32", lambda i: torch.topk(_dense_pre(i).relu_(), _topk(i), dim=1)),
            product,
            _check_topk,
        ),
        Case(
            "encode_jumprelu",
            lambda i: pk.encode(i.x, i.weights, activation="jumprelu", threshold=torch.full_like(i.b_enc, 0.3)),
            Work("addmm + compare + multiply, fp32", _dense_jump),
            product,
            lambda i, ours, dense: _close_latents(ours, dense),
        ),
    ]


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
            lambda i: pk.sae_step(_images(i), _parameters(i), l1=8e-5),
            Work("dense autograd step, fp32", _dense_step),
            Work("one fp32 product", _dense_pre),
            _check_step,
        ),
        Case(
            "adam_step",
            _our_adam,
            Work("torch.optim.Adam + projection + rescaling", _torch_adam),
            Work("copy of the bytes it moves", lambda i: [i.W_dec.clone() for _ in range(7)]),
            lambda i, ours, dense: torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-5),
        ),
    ]


def _maple_case() -> Case:
    return Case(
        "maple_forward",
        _our_maple,
        Work("CLIP on as many tokens", lambda i: _clip_forward(i, i.maple.prompt_tokens)),
        Work("CLIP without prompt tokens", lambda i: _clip_forward(i, 0)),
        _check_maple,
    )


def sweep_ks(latents: int) -> list[int]:
    """The paper's ks that fit, and S."""
    return [k for k in KS if k < latents] + [latents]


def dense_sweep(i: Inputs) -> tuple[Tensor, Tensor]:
    """One masked dense product for every k, on and off."""
    on, off = [], []
    for k in sweep_ks(i.size.d_sae):
        kept = i.dense * (i.rank < k)[i.class_ids]
        on.append(torch.addmm(i.b_dec, kept, i.W_dec))
        off.append(torch.addmm(i.b_dec, i.dense - kept, i.W_dec))
    return torch.stack(on), torch.stack(off)


def _images(i: Inputs) -> Tensor:
    return i.x.view(i.size.images, i.size.tokens, -1)


def _parameters(i: Inputs) -> dict[str, Tensor]:
    return {"W_enc": i.W_enc, "b_enc": i.b_enc, "W_dec": i.W_dec, "b_dec": i.b_dec}


def _dense_step(i: Inputs) -> tuple[Tensor, list[Tensor]]:
    W_enc, b_enc, W_dec, b_dec = leaves = [p.detach().clone().requires_grad_() for p in _parameters(i).values()]
    h = torch.addmm(b_enc, i.x - b_dec, W_enc).relu()
    error = torch.addmm(b_dec, h, W_dec) - i.x
    total = (error.square() / i.x.norm(dim=1, keepdim=True)).mean() + 8e-5 * h.sum(1).mean()
    total.backward()
    return total.detach(), [_gradient(leaf) for leaf in leaves]


def _check_step(i: Inputs, ours: Any, dense: Any) -> None:
    terms, grads = ours
    torch.testing.assert_close(terms.total, dense[0], rtol=1e-4, atol=0)
    for mine, other in zip(grads.values(), dense[1], strict=True):
        assert (mine - other).abs().max() <= 1e-3 * other.abs().max()


def _our_adam(i: Inputs) -> Tensor:
    params = {name: p.clone(memory_format=torch.preserve_format) for name, p in _parameters(i).items()}
    pk.adam_step(params, _parameters(i), pk.adam_init(params), lr=4e-4)
    return params["W_dec"]


def _torch_adam(i: Inputs) -> Tensor:
    params = [p.clone(memory_format=torch.preserve_format).requires_grad_() for p in _parameters(i).values()]
    for p, grad in zip(params, _parameters(i).values(), strict=True):
        p.grad = grad.clone(memory_format=torch.preserve_format)
    W = params[2].detach()
    grad = _gradient(params[2])
    grad -= (grad * W).sum(1, keepdim=True) * W
    torch.optim.Adam(params, lr=4e-4).step()
    return W / W.norm(dim=1, keepdim=True)


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


@torch.no_grad()
def _our_maple(i: Inputs) -> Tensor:
    """Image embeddings [B, E]."""
    return i.maple.embed(i.maple.residual(i.pixels))


@torch.no_grad()
def _clip_forward(i: Inputs, more: int) -> Tensor:
    """CLIP's own tower, cut as ours is, with ``more`` copies of patches behind the image's tokens."""
    clip, visual = i.maple.clip, i.maple.clip.model.visual
    tokens = visual._embeds(i.pixels)
    tokens = torch.cat([tokens, tokens[:, 1 : 1 + more]], dim=1)
    for block in visual.transformer.resblocks[: clip.layer + 1]:
        tokens = block(tokens)
    return clip.embed(tokens)


@torch.no_grad()
def _check_maple(i: Inputs, ours: Tensor, _: Tensor) -> None:
    """The published forward pass, block by block."""
    visual, learned, images = i.maple.clip.model.visual, i.maple.trainable(), i.maple.image_tokens
    contexts = {"ctx": "proj"} | {
        f"compound_prompts_text.{n}": f"compound_prompt_projections.{n}" for n in range(i.maple.config.depth - 1)
    }
    prompts = [
        F.linear(learned[context], learned[f"{name}.weight"], learned[f"{name}.bias"])
        for context, name in contexts.items()
    ]
    prompts[0] = visual.ln_pre(prompts[0])
    tokens = visual._embeds(i.pixels)
    for n, block in enumerate(visual.transformer.resblocks):
        if n < len(prompts):
            tokens = torch.cat([tokens[:, :images], prompts[n].expand(len(tokens), -1, -1)], dim=1)
        tokens = block(tokens)
    expected = F.normalize(visual._pool(tokens[:, :images])[0] @ visual.proj, dim=-1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
