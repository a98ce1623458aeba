"""MaPLe's image tower beside CLIP's own on as many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae.bench import checks
from patchsae.bench.case import Case, floor, side, unchecked
from patchsae.bench.findings import Findings
from patchsae.bench.inputs import Problem

if TYPE_CHECKING:
    from patchsae.adapters.maple import MaPLe


def maple_case() -> Case:
    return unchecked(_our_maple).beside(
        "maple_forward",
        side("CLIP on as many tokens", lambda p: _clip_forward(p, _maple(p).prompt_tokens)),
        floor("CLIP without prompt tokens", lambda p: _clip_forward(p, 0)),
        _check_maple,
    )


def _maple(p: Problem) -> MaPLe:
    """An untrained MaPLe on a CLIP of this size: the shipped one, or a random ViT-B/16."""
    from patchsae.adapters.maple import load_maple
    from patchsae.models.clip import load_clip

    name = {128: "tiny", 768: "ViT-B-16-quickgelu"}[p.size.d_in]
    return p.cached("maple", lambda: load_maple(load_clip(name, None, device=p.device), None, ["thing"]))


def _pixels(p: Problem) -> Tensor:
    """[B, 3, H, W], standard normal."""
    shape, g = (p.size.images, 3, *_maple(p).image_size), torch.Generator().manual_seed(1)
    return p.cached("pixels", lambda: torch.randn(shape, generator=g).to(p.device))


@torch.no_grad()
def _our_maple(p: Problem) -> Tensor:
    """Image embeddings [B, E]."""
    maple = _maple(p)
    return maple.embed(maple.residual(_pixels(p)))


@torch.no_grad()
def _clip_forward(p: Problem, more: int) -> Tensor:
    """CLIP's own tower, cut as ours is, with ``more`` copies of patches behind the image's tokens."""
    clip = _maple(p).clip
    visual = clip.model.visual
    tokens = visual._embeds(_pixels(p))
    tokens = torch.cat([tokens, tokens[:, 1 : 1 + more]], dim=1)
    for block in visual.transformer.resblocks[: clip.layer + 1]:
        tokens = block(tokens)
    return clip.embed(tokens)


@torch.no_grad()
def _check_maple(p: Problem, found: Tensor, _: Tensor) -> Findings:
    """The published forward pass, block by block."""
    maple = _maple(p)
    visual, learned, images = maple.clip.model.visual, maple.trainable(), maple.image_tokens
    contexts = {"ctx": "proj"} | {
        f"compound_prompts_text.{n}": f"compound_prompt_projections.{n}" for n in range(maple.config.depth - 1)
    }
    prompts = [
        F.linear(learned[context], learned[f"{name}.weight"], learned[f"{name}.bias"])
        for context, name in contexts.items()
    ]
    prompts[0] = visual.ln_pre(prompts[0])
    tokens = visual._embeds(_pixels(p))
    for n, block in enumerate(visual.transformer.resblocks):
        if n < len(prompts):
            tokens = torch.cat([tokens[:, :images], prompts[n].expand(len(tokens), -1, -1)], dim=1)
        tokens = block(tokens)
    expected = F.normalize(visual._pool(tokens[:, :images])[0] @ visual.proj, dim=-1)
    return (checks.close("embeddings", found, expected, atol=1e-5),)
