"""Settings of the tests of activations."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from patchsae.activations import CacheOptions, TokenBatch
from patchsae.activations.plan import StreamPlan

SOURCE = "shapes:train?n=30&seed=5&size=16"
T, D, SHARD = 5, 16, 8


def options(**changes: object) -> CacheOptions:
    """Shards of 8 images of T = 5 tokens of width D = 16."""
    size = T * (D + 4) if changes.get("store") == "int8" else T * 2 * D
    return CacheOptions(**{"batch_size": 4, "shard_mb": SHARD * size / 1e6, **changes})  # type: ignore[arg-type]


def wanted(batch_size: int = 4, steps: int = 12, **changes: object) -> StreamPlan:
    return StreamPlan(batch_size, steps, **{"seed": 42, **changes})  # type: ignore[arg-type]


def same(a: TokenBatch, b: TokenBatch) -> bool:
    """Bit for bit."""
    return torch.equal(a.tokens, b.tokens) and (a.ids, a.images, a.next_start) == (b.ids, b.images, b.next_start)


def all_same(a: Iterable[TokenBatch], b: Iterable[TokenBatch]) -> bool:
    return all(same(x, y) for x, y in zip(a, b, strict=True))


def union(parts: Iterable[TokenBatch]) -> torch.Tensor:
    """The tokens of a batch of which each process has a part."""
    return torch.cat([part.tokens.flatten(0, -2) for part in parts])
