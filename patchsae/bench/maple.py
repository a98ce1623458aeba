"""MaPLe's image tower beside CLIP's own on as many tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae.bench.case import Case, Work
from patchsae.bench.inputs import Inputs


def maple_case() -> Case:
    return Case(
        "maple_forward",
        _our_maple,
        Work("CLIP on as many tokens", lambda i: _clip_forward(i, i.maple.prompt_tokens)),
        Work("CLIP without prompt tokens", lambda i: _clip_forward(i, 0)),
        _check_maple,
    )


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
