"""How the autoencoders of a sweep are cut into groups that fit into the memory, each a pass over the images."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

from patchsae import words
from patchsae.errors import PatchsaeError
from patchsae.parallel.base import Parallel
from patchsae.training import sizes
from patchsae.training.origin import Origin
from patchsae.training.sweep.grid import Trial


class TooLarge(PatchsaeError):
    """One autoencoder of a grid does not fit into the memory."""


def memory_budget(gigabytes: float | None, parallel: Parallel) -> int:
    """Bytes that each process may take, the same in all: so many GB, or four fifths of its share of what is free."""
    if gigabytes is not None:
        return int(1e9 * gigabytes)
    device = parallel.device
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1  # a GPU is one process's own
    return -parallel.largest(-(sizes.free_memory(str(device)) * 4 // 5 // here))


def group_bytes(origin: Origin, trials: Sequence[Trial], processes: int = 1) -> int:
    """Memory that some trials take when they are trained together: every state, one working set, and what is read.

    processes: that share the images; the figure is that of each of them.
    """
    shared = [_share_of(trial, processes) for trial in trials]
    each = [sizes.training_sizes(trial.config, origin.width, origin.image_tokens) for trial in shared]
    reading = origin.reading_bytes(shared[0].config, len({trial.layer for trial in trials}))
    return sum(size.state for size in each) + reading + max(size.working for size in each)


def fit(origin: Origin, trials: Sequence[Trial], memory: int, processes: int = 1) -> list[list[Trial]]:
    """The trials in groups that fit into `memory` bytes of each process. Raises TooLarge where one alone does not."""
    groups: list[list[Trial]] = []
    for trial in trials:
        alone = group_bytes(origin, [trial], processes)
        if alone > memory:
            raise TooLarge(
                f"{trial.name} needs {words.size(alone)} and {words.size(memory)} may be used: give a smaller "
                "--expansion or --batch-size, --accumulate, or more with --memory-gb"
            )
        if groups and group_bytes(origin, [*groups[-1], trial], processes) <= memory:
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return groups


def announce(origin: Origin, groups: Sequence[Sequence[Trial]], memory: int, processes: int = 1) -> None:
    """Say on standard error what a sweep takes."""
    trials = [trial for group in groups for trial in group]
    how = "together" if len(groups) == 1 else f"in {len(groups)} groups, each with a pass over the images"
    most = max(group_bytes(origin, group, processes) for group in groups)
    each = "" if processes == 1 else f" in each of {processes} processes"
    print(
        f"sweep: {words.counted(len(trials), 'autoencoder')} {how}; {words.size(most)} of memory at most{each}, of "
        f"{words.size(memory)}; {words.size(_disk_bytes(origin, trials))} on disk while they run",
        file=sys.stderr,
    )


def _share_of(trial: Trial, processes: int) -> Trial:
    """A trial as it is for one of the processes that share the images of a batch."""
    images = -(-trial.config.batch_size // processes)
    micro = min(trial.config.accumulate, images)
    return dataclasses.replace(trial, config=dataclasses.replace(trial.config, batch_size=images, accumulate=micro))


def _disk_bytes(origin: Origin, trials: Sequence[Trial]) -> int:
    each = [sizes.training_sizes(trial.config, origin.width, origin.image_tokens) for trial in trials]
    kept = trials[0].config.keep_checkpoints
    return sum(kept * size.state for size in each) + max(size.state for size in each)
