"""`check`: reads a dataset from end to end and says what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from patchsae.data.base import BadImage, BadImageRecord, DataError, Flawed, ImageDataset
from patchsae.data.open import describe, find_layout, open_images, source_and_split, splits
from patchsae.data.workers import in_workers
from patchsae.disk.names import written
from patchsae.words import counted, percent

_CHUNK = 64
_SHOWN_SIZES = 5


@dataclass(frozen=True)
class SplitReport:
    """What one split holds."""

    split: str | None
    name: str
    images: int
    classnames: list[str] | None
    class_counts: list[int]
    """Images per class, in the order of `classnames`."""
    unlabelled: int
    sizes: dict[tuple[int, int], int]
    """Good images by upright (width, height) in pixels, most frequent first."""
    bad: list[BadImageRecord]
    notes: tuple[str, ...] = ()
    """What was found beside the images."""

    def lines(self) -> Iterator[str]:
        """The report as text: classes, then sizes, then bad files."""
        yield f"{self.name}: {counted(self.images, 'image')}, {self._classes()}"
        width = len(str(max(self.class_counts, default=0)))
        for label, (name, count) in enumerate(zip(self.classnames or [], self.class_counts, strict=True)):
            yield f"  {count:>{width}}  {label}: {name}"
        yield from self._notes()
        yield from (f"  {note}" for note in self.notes)
        yield from self._sizes()
        yield f"  bad files: {len(self.bad)}"
        for record in self.bad:
            yield f"    {record.id}: {record.reason}"

    def _classes(self) -> str:
        if self.classnames is None:
            return "no labels"
        used = [count for count in self.class_counts if count]
        spread = f" of {min(used):,} to {counted(max(used), 'image')}" if used else ""
        return f"{counted(len(self.classnames), 'class', 'classes')}{spread}" + (
            f", {self.unlabelled} unlabelled" * bool(self.unlabelled)
        )

    def _notes(self) -> Iterator[str]:
        empty = sum(count == 0 for count in self.class_counts)
        if empty:
            yield f"  {counted(empty, 'class has', 'classes have')} no image here"
        for name, count in Counter(self.classnames).items():
            if count > 1:
                yield f"  {count} classes are called {name!r}; they stay apart, by label"

    def _sizes(self) -> Iterator[str]:
        if not self.sizes:
            return
        good = sum(self.sizes.values())
        for side, axis in (("width", 0), ("height", 1)):
            values = np.repeat([size[axis] for size in self.sizes], list(self.sizes.values()))
            yield f"  {side}: {values.min()} to {values.max()} px, median {int(np.median(values))}"
        common = list(self.sizes.items())[:_SHOWN_SIZES]
        shares = ", ".join(f"{w}x{h} ({percent(count / good, 0)})" for (w, h), count in common)
        yield f"  {counted(len(self.sizes), 'size')}, most often {shares}"


@dataclass(frozen=True)
class CheckReport:
    """What a source holds, split by split."""

    source: str
    layout: str
    splits: list[SplitReport]
    problems: list[str]
    """What is wrong with the splits beside images that cannot be read: what is missing, and where it belongs."""

    @property
    def ok(self) -> bool:
        """Whether all splits are there, have images, and all of them can be read."""
        return not self.problems and all(part.images and not part.bad for part in self.splits)

    def lines(self) -> Iterator[str]:
        """The report as lines of text, ready to print."""
        yield f"{written(self.source)}: {self.layout}"
        for part in self.splits:
            yield from part.lines()
        for problem in self.problems:
            yield f"wrong: {written(problem)}"


def check(
    source: object,
    split: str | None = None,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    outside: bool = False,
) -> CheckReport:
    """Opens a source and decodes every image of the named split, or of all splits.

    Args:
        source, split, outside: as for `open_images`.
        workers: processes that decode; 0 decodes in this one.
        on_progress: called with (images read, images in all) of the split at hand.

    Raises:
        DataError: the source cannot be opened at all; a bad image, a class without images, or one split of several that
            cannot be opened, is part of the report instead.
    """
    base, _ = source_and_split(source, split)
    layout = find_layout(base).name
    wanted: list[str | None] = [split] if split is not None else [*splits(source)] or [None]
    parts: list[SplitReport] = []
    problems: list[DataError] = []
    for name in wanted:
        try:
            dataset = open_images(base, name, outside)
        except Flawed as error:
            problems.append(error)
            dataset = error.rest
        except DataError as error:
            problems.append(error)
            continue
        parts.append(_read(dataset, name, workers, on_progress))
    if not parts:
        raise problems[0]
    return CheckReport(describe(base), layout, parts, list(dict.fromkeys(map(str, problems))))


def _read(
    dataset: ImageDataset, split: str | None, workers: int, on_progress: Callable[[int, int], None] | None
) -> SplitReport:
    sizes: Counter[tuple[int, int]] = Counter()
    bad: list[BadImageRecord] = []
    chunks = -(-len(dataset) // _CHUNK)
    for number, (found, failed) in enumerate(in_workers(_Inspection(dataset), chunks, workers), 1):
        sizes.update(found)
        bad.extend(failed)
        if on_progress is not None:
            on_progress(min(number * _CHUNK, len(dataset)), len(dataset))
    labelled = dataset.labels[dataset.labels >= 0]
    classes = len(dataset.classnames or [])
    return SplitReport(
        split=split,
        name=dataset.name,
        images=len(dataset),
        classnames=dataset.classnames,
        class_counts=np.bincount(labelled, minlength=classes).tolist() if classes else [],
        unlabelled=len(dataset) - len(labelled),
        sizes=dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        bad=bad,
        notes=dataset.notes,
    )


@dataclass(frozen=True)
class _Inspection:
    """Chunk number -> (sizes of its good images, records of its bad ones): what a worker does."""

    dataset: ImageDataset

    def __call__(self, number: int) -> tuple[list[tuple[int, int]], list[BadImageRecord]]:
        sizes, bad = [], []
        for i in range(number * _CHUNK, min((number + 1) * _CHUNK, len(self.dataset))):
            try:
                sizes.append(self.dataset.sample(i).image.size)
            except BadImage as error:
                bad.append(BadImageRecord(i, error.id, error.reason))
        return sizes, bad
