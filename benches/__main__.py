"""Everything on this machine's CPU in one table: ``python -m benches [PART ...] [--out FILE.json]``.

Ops at the paper's size, those that matter most also for one image and for 32; a training step of every variant at
the paper's size; then extraction and masking end to end. Parts: ops, training, end-to-end; none means all.
Every line is checked against plain PyTorch first; ours, PyTorch and the limit then take turns in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benches.extraction import EXTRACTION, EXTRACTION_BF16
from benches.masking import MASKING
from benches.training import training_records
from benches.vit import build_case
from patchsae.bench import run
from patchsae.bench.records import Record, record, save
from patchsae.bench.sizes import SIZES
from patchsae.bench.tables import table, training_table

PARTS = ("ops", "training", "end-to-end")
EVERY_SIZE = ("encode", "encode_topk_64", "decode", "decode_bag", "latent_stats")


def records(parts: Sequence[str], size: str, rounds: int, images: int) -> Iterator[Record]:
    """The lines of some parts, as they come."""
    if "ops" in parts:
        yield from run.measured((), size, "cpu", rounds)
        for other in ("image", "large") if size == "paper" else ():
            yield from run.measured(EVERY_SIZE, other, "cpu", rounds)
    if "training" in parts:
        yield from training_records(size, rounds)
    if "end-to-end" in parts:
        yield from _end_to_end(rounds, images)


def _end_to_end(rounds: int, images: int) -> Iterator[Record]:
    case = build_case(images)
    for each in (EXTRACTION, EXTRACTION_BF16):
        yield record(each, case, "end to end", rounds)
    yield record(MASKING, case, "end to end", 1)  # minutes, most of them PyTorch's


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; none means all")
    parser.add_argument("--size", choices=SIZES, default="paper", help="of the ops and the training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8, help="of the end-to-end lines")
    parser.add_argument("--out", type=Path, help="also write the records here, as JSON")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"PART is {', '.join(sorted(unknown))}; expected one of {', '.join(PARTS)}")
    console, found = Console(), []
    for each in records(parts, arguments.size, arguments.rounds, arguments.images):
        found.append(each)
        console.print(f"{each.op} ({each.size}): {each.ratio:.2f}x of {each.baseline}")
        if arguments.out is not None:
            save(found, arguments.out)
    console.print(table(found))
    trained = [each for each in found if each.op.startswith("train_")]
    if trained:
        console.print(training_table(trained))
