"""A fold over a dataset that can be stopped anywhere: batches go by, accumulators take them in, the state is saved.

A run that was killed continues at the image after its last saved state, with the batches of an unbroken run, and so
ends with the same bits.

Several processes take the batches in turns: of W processes, the r-th takes in batches r, r + W, r + 2 W, ... of those
that one process would see, each into its own accumulators, and in the end the first process merges them in the order of
ranks. So everything that is counted or compared equals what one process finds, and a float64 sum is
(sum of process 0 + sum of process 1) + ..., each in the order of the images: the same bits for the same W and batch
size, and those of another W to float64 rounding.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from patchsae import progress
from patchsae.data import BadImageRecord, Batch, ImageDataset, batches
from patchsae.data.left_out import left_out
from patchsae.disk.runs import Stage
from patchsae.experiments.options import StreamOptions
from patchsae.experiments.stream.fold_state import FILE, Accumulator, FoldState
from patchsae.interrupt import Interrupted, StopRequest
from patchsae.parallel.base import Alone, Parallel


@dataclass(frozen=True)
class FoldResult:
    """How a fold went."""

    images: int
    """Images in the dataset, bad ones included."""
    bad: tuple[BadImageRecord, ...]
    """Images that were left out."""

    @property
    def used(self) -> int:
        """Images that went into the accumulators."""
        return self.images - len(self.bad)

    def require_images(self, dataset: ImageDataset) -> None:
        """ValueError where all images of the dataset were left out."""
        if self.used == 0:
            raise ValueError(f"no image of dataset {dataset.name!r} could be read; expected at least one")

    def lines(self) -> list[str]:
        """A printed line for every image left out; none when all were good."""
        return left_out(self.bad, self.images)


def fold(
    dataset: ImageDataset,
    preprocess: Callable[[Any], Tensor],
    update: Callable[[Batch], None],
    accumulators: Mapping[str, Accumulator],
    options: StreamOptions,
    *,
    label: str,
    stage: Stage | None = None,
    parallel: Parallel | None = None,
) -> FoldResult:
    """Call ``update`` with every batch of the dataset, in its order, showing rate and time left.

    Images that were left out are named on standard error at the end.

    Args:
        preprocess: PIL image -> float [3, H, W].
        update: feeds the accumulators; nothing else that it changes survives a restart.
        accumulators: name -> accumulator; their state is saved together with the position. Of several processes the
            first one's hold everything in the end, and the others' are of no use.
        options: batch size, workers, what to do about bad images, how often to save.
        label: what the progress line says.
        stage: where the state is saved, begun by the caller (on the first process); a fold that was stopped there goes
            on, also with another number of processes. None saves nothing.
        parallel: the processes that share the batches; None is this one alone. All of them call this.

    Raises:
        Interrupted: after SIGINT or SIGTERM to any of the processes, in all of them, once the batch in hand is taken in
            and the state saved.
        BadImage: an image cannot be decoded and ``options.on_bad_image`` is "stop".
        ValueError: ``parallel`` divides the latents.
    """
    parallel = parallel or Alone()
    if parallel.latent_size > 1:
        raise ValueError(f"parallel divides the latents by {parallel.latent_size}; a fold divides images only")
    state = FoldState(accumulators, stage, parallel)
    with StopRequest() as stop, _shown(len(dataset), label, state.position, parallel) as shown:
        # opened here: the workers inherit the handlers, and so outlive a Ctrl-C that reaches the whole process group
        turns = _Turns(dataset, preprocess, options, state.position, parallel)
        signum = 0
        for batch in turns.until(stop):
            # the same place for all: none takes its batch in where one has lost its own to the signal
            if signum := parallel.largest(turns.cut_by or 0):
                break
            if batch is not None:
                update(batch)
            position = min(state.position + turns.width, len(dataset))
            shown.advance(position - state.position)
            state.advance(position, turns.stream.bad)
            if signum := parallel.largest(stop.signum or 0):
                break
            if parallel.largest(int(parallel.is_first and state.age >= 60 * options.save_minutes)):
                state.save()
        if signum:
            state.save()
            reached = f"{label}: stopped after {state.position:,} of {len(dataset):,} images"
            raise Interrupted(signum, f"{reached}; the same command goes on from there")
    state.save()
    result = FoldResult(len(dataset), state.merge())
    for line in result.lines() if parallel.is_first else ():
        print(line, file=sys.stderr)
    return result


def discard_state(stage: Stage) -> None:
    """Remove the saved state of a fold whose results have been written."""
    stage.remove(FILE)


class _Turns:
    """This process's batches: one a turn, in which all processes together go `width` images further."""

    def __init__(
        self,
        dataset: ImageDataset,
        preprocess: Callable[[Any], Tensor],
        options: StreamOptions,
        start: int,
        parallel: Parallel,
    ) -> None:
        size, self._batch_size = parallel.data_size, options.batch_size
        self.width = size * self._batch_size
        self.cut_by: int | None = None
        """The signal that ended the batches before they were all there (it may have ended the data workers)."""
        self.count = -(-(len(dataset) - start) // self.width)
        places = np.arange(start, len(dataset))
        mine = (places - start) // self._batch_size % size == parallel.data_rank
        self.stream = batches(
            dataset,
            preprocess,
            self._batch_size,
            places[mine],
            workers=options.workers,
            on_bad_image=options.on_bad_image or "stop",
        )

    def until(self, stop: StopRequest) -> Iterator[Batch | None]:
        """The batch of every turn; None where all its images are bad, where there is none left, and when cut."""
        stream = stop.until_workers_die(self.stream)
        ahead: Batch | None = None
        for turn in range(self.count):
            if ahead is None:
                ahead = next(stream, None)
                self.cut_by = stop.signum if ahead is None else None
            # the loader leaves out a batch without any good image
            due = ahead is not None and ahead.next_start <= (turn + 1) * self._batch_size
            yield ahead if due else None
            if due:
                ahead = None


@contextmanager
def _shown(total: int, label: str, start: int, parallel: Parallel) -> Iterator[progress.Progress]:
    """The progress line of the first process; the others count in silence."""
    with ExitStack() as stack:
        stream = None if parallel.is_first else stack.enter_context(open(os.devnull, "w"))
        yield stack.enter_context(progress.track(total, label, start=start, stream=stream))
