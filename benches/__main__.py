"""Everything on this machine's CPU in one table: ``python -m benches [--out FILE.json]``.

Ops at the paper's size, those that matter most also for one image and for 32, then masking and extraction end to end.
Every line is checked against plain PyTorch first; ours, PyTorch and the limit then take turns in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benches.bench_extraction import EXTRACTION, EXTRACTION_BF16
from benches.bench_masking import MASKING
from benches.vit import build_case
from patchsae.bench import run
from patchsae.bench.measure import Record, measure

EVERY_SIZE = ("encode", "encode_topk_64", "decode", "decode_bag", "latent_stats")


def records(rounds: int, images: int) -> Iterator[Record]:
    """All lines, as they come."""
    yield from run.measured((), "paper", "cpu", rounds)
    for size in ("image", "large"):
        yield from run.measured(EVERY_SIZE, size, "cpu", rounds)
    case = build_case(images)
    for each in (EXTRACTION, EXTRACTION_BF16):
        yield measure(each, case, "end to end", rounds)
    yield measure(MASKING, case, "end to end", 1)  # minutes, most of them PyTorch's


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8, help="of the end-to-end lines")
    parser.add_argument("--out", type=Path, help="also write the records here, as JSON")
    arguments = parser.parse_args()
    console, found = Console(), []
    for record in records(arguments.rounds, arguments.images):
        found.append(record)
        console.print(f"{record.op} ({record.size}): {record.ratio:.2f}x of {record.baseline}")
        if arguments.out is not None:
            run.save(found, arguments.out)
    console.print(run.table(found))
