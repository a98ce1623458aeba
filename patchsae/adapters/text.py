"""The text tower with learned context vectors in front of each class name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from patchsae.adapters.vision import block_output
from patchsae.models.clip import SplitCLIP

# Values per token, block and channel that autograd keeps: two norms, queries, keys and values, attention, the two sums,
# and the MLP's four-fold ones before, inside and after QuickGELU.
KEPT_PER_CHANNEL = 24
KEPT_PER_SCORE = 3


class TextTower:
    """open_clip's own text transformer of a CLIP, run on embeddings in place of token ids.

    Attributes:
        width: W of the token embeddings.
        layers: number of blocks.
        context_length: tokens of a prompt, start and end included.

    Raises:
        ValueError: the text tower is not open_clip's own.
    """

    def __init__(self, clip: SplitCLIP) -> None:
        inner = getattr(clip.model, "text", None)
        if inner is not None and type(inner) is not TextTransformer:
            raise ValueError(
                f"the text tower of {clip.name!r} is a {type(inner).__name__}; text prompts need open_clip's own "
                "TextTransformer (adapters without them, vpt, linear and lora, do not)"
            )
        self._parts: Any = clip.model if inner is None else inner
        self._embeds = _embeds_of_clip if inner is None else TextTransformer._embeds
        self._pool_type: str = clip.model.text_pool_type if inner is None else inner.pool_type
        self._eos_id: Any = getattr(self._parts, "text_eos_id" if inner is None else "eos_id", None)
        self._has_cls = getattr(self._parts, "cls_emb", None) is not None
        self.width: int = self._parts.token_embedding.weight.shape[1]
        self.layers: int = len(self._parts.transformer.resblocks)
        self.context_length: int = self._parts.context_length

    def encode(self, ids: Tensor, *layered: Tensor) -> Tensor:
        """Unit-norm embeddings ``[n, E]`` of prompts whose tokens 1..P are learned.

        Args:
            ids: int64 ``[n, L]``; those of tokens 1..P are never looked up.
            layered: ``layered[i]`` is ``[P, W]`` and takes the places of tokens 1..P in front of block i; the first
                gets their positional embeddings, the others none.
        """
        parts = self._parts
        tokens, mask = self._embeds(parts, ids)
        tokens = tokens.to(parts.transformer.get_cast_dtype())
        if mask is not None and mask.dim() == 2:
            mask = mask[: tokens.shape[1], : tokens.shape[1]]
        position = parts.positional_embedding[1 : 1 + len(layered[0])]
        tokens = _with_context(tokens, layered[0].to(tokens.dtype) + position.to(tokens.dtype))
        for i, block in enumerate(parts.transformer.resblocks):
            if 0 < i < len(layered):
                tokens = _with_context(tokens, layered[i])
            tokens = block_output(block, tokens, parts.transformer.batch_first, mask)
        return F.normalize(self._projected(parts.ln_final(self._pooled(tokens, ids))), dim=-1)

    def needed(self, ids: Tensor) -> int:
        """How many of the L tokens can reach the embeddings of these prompts; the rest is padding they never see."""
        if self._parts.attn_mask is None or self._has_cls or self._pool_type not in ("argmax", "eos"):
            return ids.shape[1]
        ends = ids.argmax(dim=-1) if self._pool_type == "argmax" else (ids == self._eos_id).int().argmax(dim=-1)
        return int(ends.max()) + 1

    def prompts_within(self, budget_mb: float, length: int) -> int:
        """How many prompts of ``length`` tokens may be in work at once, at least 1."""
        transformer = self._parts.transformer
        heads = getattr(transformer.resblocks[0].attn, "num_heads", 1)
        values = length * self.layers * (KEPT_PER_CHANNEL * self.width + KEPT_PER_SCORE * heads * length)
        return max(1, int(budget_mb * 2**20 / (values * transformer.get_cast_dtype().itemsize)))

    def embedding_of(self, ids: Tensor) -> Tensor:
        """Token embeddings, float32 on the CPU."""
        table: Tensor = self._parts.token_embedding.weight
        return table[ids.to(table.device)].detach().float().cpu()

    def _pooled(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """The one token ``[n, W]`` that becomes the embedding. The final norm looks at one token, so it may follow."""
        if self._has_cls:
            return tokens[:, -1]
        last: Tensor = text_global_pool(tokens, ids, self._pool_type, self._eos_id)
        return last

    def _projected(self, pooled: Tensor) -> Tensor:
        projection = self._parts.text_projection
        if projection is None:
            return pooled
        embedding: Tensor = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return embedding


def class_prompts(clip: SplitCLIP, tower: TextTower, classnames: Sequence[str], words: str, n_ctx: int) -> Tensor:
    """Token ids of ``[start] + n_ctx learned + words + class name + "."``, int64 ``[C, L]``, L no longer than needed.

    Underscores in names become spaces, as in CoOp's and MaPLe's code.

    Raises:
        ValueError: a prompt is longer than the context, or the tokenizer has no start token for the learned ones to
            follow.
    """
    tokenizer: Any = clip.tokenizer
    texts = [f"{words} {name.replace('_', ' ')}.".strip() for name in classnames]
    room = tower.context_length - n_ctx
    probe = tokenizer(["a", "b"])
    if probe[0, 0] != probe[1, 0]:
        raise ValueError(f"the tokenizer of {clip.name!r} begins no text with a start token; learned prompts follow it")
    if room < 3:
        raise ValueError(f"n_ctx={n_ctx}; the text tower of {clip.name!r} takes {tower.context_length} tokens in all")
    ids = tokenizer(texts, context_length=room)
    # One token more changes what is there only where something was cut off.
    whole = (tokenizer(texts, context_length=room + 1)[:, :room] == ids).all(dim=1)
    if not whole.all():
        label = int(whole.int().argmin())
        raise ValueError(
            f"classnames[{label}] is {_short(classnames[label])}: its prompt does not fit in the "
            f"{tower.context_length} tokens of the text tower, {n_ctx} of which are learned; shorten the name"
        )
    learned = probe[:1, 1:2].expand(len(ids), n_ctx)  # any word: neither padding nor an end, which pooling looks for
    ids = torch.cat([ids[:, :1], learned, ids[:, 1:]], dim=1)
    return ids[:, : tower.needed(ids)].to(clip.device)


def class_features(tower: TextTower, ids: Tensor, layered: Sequence[Tensor], budget_mb: float) -> Tensor:
    """Unit-norm embedding of every class, ``[C, E]``, with the gradients of one pass over all of them.

    Where the classes do not fit in the budget they go through in chunks whose activations are computed again for the
    backward pass, so that those of one chunk exist at a time.
    """
    size = tower.prompts_within(budget_mb, ids.shape[1])
    if len(ids) <= size:
        return tower.encode(ids, *layered)
    chunks = ids.split(size)
    if not torch.is_grad_enabled():
        return torch.cat([tower.encode(chunk, *layered) for chunk in chunks])
    parts = [
        # nothing in the tower is random
        checkpoint(tower.encode, chunk, *layered, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    return torch.cat(parts)


def _embeds_of_clip(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """What `TextTransformer._embeds` gives, of the class open_clip.CLIP, which holds the tower's parts itself."""
    tokens = model.token_embedding(ids).to(model.transformer.get_cast_dtype())
    return tokens + model.positional_embedding[: ids.shape[1]].to(tokens.dtype), model.attn_mask


def _with_context(tokens: Tensor, context: Tensor) -> Tensor:
    """``[n, L, W]`` with ``[P, W]`` in the places of tokens 1..P."""
    learned = context.to(tokens.dtype).expand(len(tokens), -1, -1)
    return torch.cat([tokens[:, :1], learned, tokens[:, 1 + len(context) :]], dim=1)


def _short(name: str) -> str:
    return repr(name) if len(name) <= 60 else repr(name[:57] + "...")
