"""Where activations come from: `Stream` (images through the tower) or `CachedTokens` (a folder `write_cache` made).

Both are a `TokenSource`: batches of tokens from any place of an order that follows from the seed alone. Names load on
first use, so that reading the options (`patchsae.activations.options`) needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.activations.cached import CachedTokens as CachedTokens
    from patchsae.activations.index import CacheIndex as CacheIndex
    from patchsae.activations.options import CacheOptions as CacheOptions
    from patchsae.activations.repair import repair_cache as repair_cache
    from patchsae.activations.source import TokenBatch as TokenBatch
    from patchsae.activations.source import TokenSource as TokenSource
    from patchsae.activations.stream import Stream as Stream
    from patchsae.activations.writer import write_cache as write_cache

_HOMES = {
    "CachedTokens": "cached",
    "CacheOptions": "options",
    "CacheIndex": "index",
    "repair_cache": "repair",
    "TokenBatch": "source",
    "TokenSource": "source",
    "Stream": "stream",
    "write_cache": "writer",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
