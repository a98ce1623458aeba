"""Verbs that look at what is there: check, data check, bench, doctor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from patchsae.cli.choices import Model


def check(run: tyro.conf.Positional[Path]) -> None:
    """Look through every file that a run holds, by its checksum, and say what to run again.

    Exits with status 1 where a file is damaged, or a stage was made from an earlier training.

    Args:
        run: directory of the experiment, one stage of it, or a cache.
    """
    from patchsae.cli.check import check as look_through
    from patchsae.cli.check import summary

    found = look_through(run)
    for stage in found:
        for line in stage.lines:
            print(line)
    print(summary(found))
    if any(stage.damaged or stage.stale for stage in found):
        raise SystemExit(1)


def data_check(
    source: tyro.conf.Positional[str], split: str | None = None, workers: int = 0, outside: bool = False
) -> None:
    """Look through a dataset: layout, classes, counts, sizes, files that cannot be decoded.

    Exits with status 1 where something is wrong.

    Args:
        source: path, glob or "shapes", as for --images.
        split: one split; left out: all.
        workers: processes that decode images; 0 decodes in this one.
        outside: as for --images.
    """
    from patchsae import progress
    from patchsae.data import check

    with progress.track(None, "data check") as shown:
        report = check(source, split, workers, _increments(shown.advance), outside)
    for line in report.lines():
        print(line)
    if not report.ok:
        raise SystemExit(1)


def bench(
    op: tuple[str, ...] = (),
    size: Literal["small", "image", "paper", "large"] = "small",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    rounds: int = 5,
    json: Path | None = None,
) -> None:
    """Time ops against plain PyTorch, after checking their answers.

    Args:
        op: names of ops; left out: all.
        size: "small" takes seconds; the others are ViT-B/16 with 49,152 latents and one image, 8 ("paper"; 128 on a
            GPU) or 32 (minutes on a CPU).
        device: where.
        rounds: timings of each; the median counts.
        json: also write the records here.
    """
    from patchsae.bench.run import bench as measure
    from patchsae.cli import opening

    measure(op, size, opening.device(Model(device=device)), rounds, json)


def doctor() -> None:
    """Print what runs here and why: device, implementation of each op, versions, threads."""
    from patchsae.cli import doctor as description

    for line in description.lines():
        print(line)


def _increments(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """From (images read of a split, images in it) to images read since the last call."""
    last = 0

    def update(done: int, _: int) -> None:
        nonlocal last
        advance(done - last if done > last else done)
        last = done

    return update
