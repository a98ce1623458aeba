"""How fast a cache of activations is read: ``python -m benches.cache_reading [--store int8] [--gb 0.5] ...``.

Writes a cache of random tokens, then reads it from the page cache as training does, in one thread of this process, and
its parts by themselves. Times are of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from patchsae.activations import CachedTokens, CacheIndex, CacheOptions
from patchsae.activations.index import FILE, ShardRecord
from patchsae.activations.packing import pack
from patchsae.activations.plan import StreamPlan
from patchsae.activations.shard import write_shard
from patchsae.disk import atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("bfloat16", "int8"), default="int8")
    parser.add_argument("--gb", type=float, default=0.5, help="size of the cache")
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--shard-mb", type=float, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        index = random_cache(Path(folder), given.store, given.gb, given.tokens, given.width, given.shard_mb)
        measure(Path(folder), index, given.batch_size)


def random_cache(folder: Path, store: str, gb: float, tokens: int, width: int, shard_mb: float) -> CacheIndex:
    """A cache of about `gb` GB; every shard has the same tokens."""
    options = CacheOptions(store=store, shard_mb=shard_mb, batch_size=1)  # type: ignore[arg-type]
    model = {"model": "random", "layer": 0}
    index = CacheIndex(model, "0" * 16, "random", "0" * 16, {}, options, width, tokens, images=1)
    shards = max(1, round(gb * 1e9 / (index.shard_images * index.image_bytes)))
    packed = pack(torch.randn(index.shard_images, tokens, width), options.store)
    records = []
    for number in range(shards):
        path = folder / f"shard-{number:05d}.safetensors"
        ids = [f"{number}/{i}.jpg" for i in range(index.shard_images)]
        records.append(ShardRecord(path.name, len(ids), write_shard(path, packed, range(len(ids)), ids)))
    images = shards * index.shard_images
    index = CacheIndex(model, "0" * 16, "random", "0" * 16, {}, options, width, tokens, images, tuple(records))
    atomic.write_text(folder / FILE, index.text())
    return index


def measure(folder: Path, index: CacheIndex, batch_size: int) -> None:
    """Print what reading takes, whole and in parts."""
    steps = index.images // batch_size - 1
    per_batch = batch_size * index.tokens
    for label, shuffle in (("whole images", 0), ("mixed over 8 batches", 8)):
        source = CachedTokens(folder, StreamPlan(batch_size, steps, shuffle=shuffle))
        seconds = _seconds(lambda source=source: sum(len(b.tokens) for b in source.batches(batch_size))) / steps
        rate = batch_size * index.image_bytes / seconds / 1e9
        print(
            f"{label}: {seconds * 1e3:.1f} ms a batch of {per_batch:,} tokens, "
            f"{per_batch / seconds / 1e6:.2f} M tokens/s, {rate:.2f} GB/s"
        )
    reader = source._reader
    places = np.arange(batch_size, batch_size * (steps + 1))
    read = _seconds(lambda: sum(len(chunk.places) for chunk in reader.chunks(places))) / steps
    packed = pack(torch.randn(batch_size, index.tokens, index.width), index.options.store)
    unpack = _seconds(lambda: packed.unpack().float())
    checked = packed.tokens.view(torch.uint8).numpy()
    crc = _seconds(lambda: zlib.crc32(checked))
    parts = f"reading and verifying {read * 1e3:.1f} ms (checksums {crc * 1e3:.1f}), to float32 {unpack * 1e3:.1f}"
    print(f"of it, a batch: {parts}")


def _seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """Processor seconds, the least of some rounds."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


if __name__ == "__main__":
    main()
