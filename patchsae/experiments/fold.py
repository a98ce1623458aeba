"""A fold over a dataset that can be stopped anywhere: batches go by, accumulators take them in, the state is saved.

A run that was killed continues at the image after its last saved state, with the batches of an unbroken run, and so
ends with the same bits.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from patchsae import progress
from patchsae.data import BadImageRecord, Batch, ImageDataset, batches
from patchsae.data.left_out import left_out
from patchsae.experiments.config import StreamOptions
from patchsae.interrupt import Interrupted, StopRequest

if TYPE_CHECKING:
    from patchsae.runs import Stage

_STATE = "fold"


class Accumulator(Protocol):
    """What a fold needs of an accumulator; it is fed by the caller's ``update``."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


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
) -> FoldResult:
    """Call ``update`` with every batch of the dataset, in its order, showing rate and time left.

    Images that were left out are named on standard error at the end.

    Args:
        preprocess: PIL image -> float [3, H, W].
        update: feeds the accumulators; nothing else that it changes survives a restart.
        accumulators: name -> accumulator; their state is saved together with the position.
        options: batch size, workers, what to do about bad images, how often to save.
        label: what the progress line says.
        stage: where the state is saved, begun by the caller; a fold that was stopped there goes on. None saves nothing.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once the batch in hand is taken in and the state saved.
        BadImage: an image cannot be decoded and ``options.on_bad_image`` is "stop".
    """
    progressed = _State(accumulators, stage)
    with StopRequest() as stop, progress.track(len(dataset), label, start=progressed.position) as shown:
        # opened here: the workers inherit the handlers, and so outlive a Ctrl-C that reaches the whole process group
        stream = batches(
            dataset,
            preprocess,
            options.batch_size,
            workers=options.workers,
            on_bad_image=options.on_bad_image,  # type: ignore[arg-type]
            start=progressed.position,
        )
        for batch in stop.until_workers_die(stream):
            update(batch)
            shown.advance(batch.next_start - progressed.position)
            progressed.advance(batch.next_start, stream.bad)
            if stop.signum is not None:
                break
            if progressed.age >= 60 * options.save_minutes:
                progressed.save()
        if stop.signum is not None:
            progressed.save()
            reached = f"{label}: stopped after {progressed.position:,} of {len(dataset):,} images"
            raise Interrupted(stop.signum, f"{reached}; the same command goes on from there")
        shown.advance(len(dataset) - progressed.position)
    progressed.advance(len(dataset), stream.bad)
    progressed.save()
    result = FoldResult(len(dataset), progressed.bad)
    for line in result.lines():
        print(line, file=sys.stderr)
    return result


def discard_state(stage: Stage) -> None:
    """Remove the saved state of a fold whose results have been written."""
    stage.own(f"{_STATE}.safetensors").unlink(missing_ok=True)


class _State:
    """Position, bad images and accumulators, saved as one file so that they cannot disagree."""

    def __init__(self, accumulators: Mapping[str, Accumulator], stage: Stage | None) -> None:
        self._accumulators = accumulators
        self._stage = stage
        self._saved = time.monotonic()
        self._earlier_bad: tuple[BadImageRecord, ...] = ()
        self.position = 0
        self.bad: tuple[BadImageRecord, ...] = ()
        if stage is not None and (stage.path / f"{_STATE}.safetensors").exists():
            self._load(stage)

    @property
    def age(self) -> float:
        """Seconds since the last save."""
        return time.monotonic() - self._saved

    def advance(self, position: int, bad: list[BadImageRecord]) -> None:
        self.position = position
        self.bad = (*self._earlier_bad, *bad)

    def save(self) -> None:
        if self._stage is None:
            return
        records = json.dumps([asdict(record) for record in self.bad]).encode()
        bad = torch.from_numpy(np.frombuffer(records, np.uint8).copy())
        tensors = {"position": torch.tensor(self.position), "bad": bad}
        for name, accumulator in self._accumulators.items():
            tensors |= {f"{name}.{key}": value for key, value in accumulator.state_dict().items()}
        self._stage.save_tensors(_STATE, tensors)
        self._saved = time.monotonic()

    def _load(self, stage: Stage) -> None:
        tensors = stage.load_tensors(_STATE)
        self.position = int(tensors.pop("position"))
        records = json.loads(tensors.pop("bad").numpy().tobytes())
        self.bad = self._earlier_bad = tuple(BadImageRecord(**record) for record in records)
        for name, accumulator in self._accumulators.items():
            own = {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}
            accumulator.load_state_dict({key.removeprefix(f"{name}."): value for key, value in own.items()})
