"""MaPLe's published forward pass, written from the description of it and from nothing else.

One image or one class at a time, plain arithmetic on the weights of the state dict, attention head by head, the text
padded to its full length. Blocks are numbered from 1, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]


class Published:
    """A CLIP's state dict, its numbers of heads and its activation, with MaPLe's tensors under their names."""

    def __init__(self, model: torch.nn.Module, prompts: State) -> None:
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
        self.prompts = {name: tensor.detach() for name, tensor in prompts.items()}
        text = getattr(model, "text", model)
        self.vision_heads = model.visual.transformer.resblocks[0].attn.num_heads
        self.text_heads = text.transformer.resblocks[0].attn.num_heads
        self.quick = type(text.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
        self.later = sum(name.startswith("compound_prompts_text.") for name in prompts)

    def image(self, pixels: Tensor, after: int | None = None) -> Tensor:
        """Unit-norm embedding ``[E]`` of an image ``[3, H, W]``; with ``after`` the tokens behind that many blocks."""
        s = self.state
        kernel = s["visual.conv1.weight"]  # [D, 3, p, p]
        size = kernel.shape[-1]
        patches = pixels.unfold(1, size, size).unfold(2, size, size)  # [3, h, w, p, p]
        patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * size * size) @ kernel.flatten(1).T
        image = torch.cat([s["visual.class_embedding"][None], patches]) + s["visual.positional_embedding"]
        tokens = norm(torch.cat([image, self.project("proj", self.prompts["ctx"])]), s, "visual.ln_pre")
        for number in range(1, self.blocks("visual.") + 1):
            if 2 <= number <= self.later + 1:
                own = self.prompts[f"compound_prompts_text.{number - 2}"]
                own = self.project(f"compound_prompt_projections.{number - 2}", own)
                tokens = torch.cat([tokens[: len(image)], own])
            tokens = self.block(tokens, f"visual.transformer.resblocks.{number - 1}", self.vision_heads, causal=False)
            if number == after:
                return tokens
        embedding = norm(tokens[:1], s, "visual.ln_post")[0] @ s["visual.proj"]
        return embedding / embedding.norm()

    def text(self, name: str, tokenizer: Callable[[list[str]], Tensor]) -> Tensor:
        """Unit-norm embedding ``[E]`` of a class."""
        s, n = self.state, len(self.prompts["ctx"])
        lead = "a photo of a" if n <= 4 else " ".join(["X"] * n)
        ids = tokenizer([f"{lead} {name.replace('_', ' ')}."])[0]
        tokens = s["token_embedding.weight"][ids].clone()
        tokens[1 : 1 + n] = self.prompts["ctx"]
        tokens += s["positional_embedding"]
        for number in range(1, self.blocks("") + 1):
            if 2 <= number <= self.later + 1:
                tokens[1 : 1 + n] = self.prompts[f"compound_prompts_text.{number - 2}"]
            tokens = self.block(tokens, f"transformer.resblocks.{number - 1}", self.text_heads, causal=True)
        end = ids.tolist().index(49407)
        embedding = norm(tokens, s, "ln_final")[end] @ s["text_projection"]
        return embedding / embedding.norm()

    def project(self, name: str, context: Tensor) -> Tensor:
        return context @ self.prompts[f"{name}.weight"].T + self.prompts[f"{name}.bias"]

    def blocks(self, tower: str) -> int:
        return sum(name.startswith(f"{tower}transformer.") and name.endswith("ln_1.weight") for name in self.state)

    def block(self, tokens: Tensor, name: str, heads: int, causal: bool) -> Tensor:
        s = self.state
        inner = norm(tokens, s, f"{name}.ln_1")
        q, k, v = linear(inner, s[f"{name}.attn.in_proj_weight"], s[f"{name}.attn.in_proj_bias"]).chunk(3, dim=1)
        width = q.shape[1] // heads
        seen = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width)
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            seen.append(scores.softmax(dim=1) @ v[:, part])
        out = linear(torch.cat(seen, dim=1), s[f"{name}.attn.out_proj.weight"], s[f"{name}.attn.out_proj.bias"])
        tokens = tokens + out
        hidden = linear(norm(tokens, s, f"{name}.ln_2"), s[f"{name}.mlp.c_fc.weight"], s[f"{name}.mlp.c_fc.bias"])
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else torch.nn.functional.gelu(hidden)
        return tokens + linear(hidden, s[f"{name}.mlp.c_proj.weight"], s[f"{name}.mlp.c_proj.bias"])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


def norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]
