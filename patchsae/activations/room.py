"""How large a cache will be, and whether there is room for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from patchsae.activations.index import CacheIndex
from patchsae.disk.atomic import DiskFull
from patchsae.words import counted, size


def announce(index: CacheIndex, out: Path, overwrite: bool = False) -> None:
    """Say on standard error how large the cache will be. DiskFull where it does not fit.

    overwrite: the shards in `out` will be removed first.
    """
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    removed = sum(path.stat().st_size for path in out.glob("shard-*.safetensors")) if overwrite else 0
    free, needed = shutil.disk_usage(folder).free + removed, index.bytes_left
    shape = f"{counted(index.images, 'image')} x {index.tokens} tokens x {index.width} in {index.options.store}"
    room = f"{size(needed)}{' to go' if index.shards else ''}, {size(free)} free in {out}"
    print(f"cache: {shape}, {counted(index.shard_count, 'shard')}: {room}", file=sys.stderr)
    if needed > free:
        smaller = "" if index.options.store == "int8" else "--store int8 halves that, and "
        raise DiskFull(
            f"the cache needs {size(needed)} and {out} has {size(free)} free: {smaller}--tokens-per-image or --limit "
            "make it as small as you like"
        )
