"""How an order of images is cut: batches for the start, then one batch a step, each shared out among processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from patchsae.activations.options import OnBadImage


class DataPlace(Protocol):
    """Which of the data-parallel processes this one is."""

    @property
    def data_size(self) -> int: ...

    @property
    def data_rank(self) -> int: ...


class Place(NamedTuple):
    """The simplest `DataPlace`."""

    data_size: int = 1
    data_rank: int = 0


ALONE = Place()


class NeedsImages(NamedTuple):
    """A setting that some tokens of each image, in place of whole images, cannot serve."""

    setting: str
    """"cls_only is True"."""
    expected: str
    """What it would have to be."""


@dataclass(frozen=True)
class StreamPlan:
    """Which tokens are wanted, in which order."""

    batch_size: int
    """Images of a step, over all processes."""
    steps: int
    start_batches: int = 1
    """Batches that come before the first step."""
    seed: int = 0
    """Of the order of the images and of everything else that is drawn."""
    shuffle: int = 0
    """Batches whose tokens are mixed with one another; 0 mixes nothing."""
    tokens_per_image: int | None = None
    """Tokens drawn at random from each image; None is all of them."""
    on_bad_image: OnBadImage = "stop"
    needs_images: NeedsImages | None = None


@dataclass(frozen=True)
class BatchPlan:
    """Places 0 .. images_total - 1, in batches of `batch_size`; a slot is a position within a batch."""

    batch_size: int
    start_batches: int
    steps: int
    slots: range
    """The slots of this process, the same in every batch, so that what a slot has seen is known to one process."""
    processes: int

    @property
    def first_place(self) -> int:
        """Where training begins."""
        return self.batch_size * self.start_batches

    @property
    def images_total(self) -> int:
        """Places in all."""
        return self.first_place + self.batch_size * self.steps

    def step_at(self, start: int) -> int:
        """The step, from 0, whose batch begins at place `start`; the number of steps at the end.

        Raises ValueError for a place where no batch of a step begins.
        """
        step, rest = divmod(start - self.first_place, self.batch_size)
        if rest or not 0 <= step <= self.steps:
            raise ValueError(
                f"start is {start}; expected {self.first_place} plus a multiple of {self.batch_size}, "
                f"at most {self.images_total}"
            )
        return step

    def begin(self, step: int) -> int:
        """The place where the step's batch begins."""
        return self.first_place + step * self.batch_size


def plan_of(plan: StreamPlan, parallel: DataPlace) -> BatchPlan:
    """What one of the processes has of a plan. ValueError where a process would never have an image."""
    size, rank, batch = parallel.data_size, parallel.data_rank, plan.batch_size
    if batch < size:
        raise ValueError(f"batch_size is {batch}; expected at least {size}, an image for every data-parallel process")
    slots = range(batch * rank // size, batch * (rank + 1) // size)
    return BatchPlan(batch, plan.start_batches, plan.steps, slots, size)
