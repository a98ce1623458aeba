"""From what `compare` and `table` are told to the two sides that are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from patchsae.cli import opening
from patchsae.cli.choices import Images, Model, Sides
from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import AnyCLIP, kind_of
from patchsae.experiments.compare import Side
from patchsae.experiments.table import Cell, OpenCell
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder


@dataclass(frozen=True, eq=False)
class OpenSides:
    """Both sides of a comparison, and what to record of how they were opened."""

    first: Side
    second: Side
    tested: ImageDataset | None
    """Images to classify with both models; None where none were named."""
    settings: dict[str, Any]
    test_settings: dict[str, Any]
    """Of the classification: ``settings``, and how ``tested`` was opened."""


def open_sides(choice: Sides, images: Images, model: Model, sae: SparseAutoencoder) -> OpenSides:
    """The two sides that a command line names.

    Raises ValueError as `Sides.require_two`, and where an adapter meets images without classes.
    """
    choice.require_two()
    for path in (choice.adapter, choice.other_adapter):
        if path is not None:
            opening.adapter_folder(path)
    origin = sae.config.metadata
    clip, dataset, settings = opening.clip_and_images(model, images, origin)
    other, second_dataset = _other_clip(choice, clip, model), dataset
    if choice.other_images is not None or choice.other_split is not None:
        theirs = replace(images, images=choice.other_images or images.images, split=choice.other_split)
        second_dataset, found = opening.images(theirs, origin, option="--other-split")
        settings |= {f"other_{key}": value for key, value in found.items()}
    if other is not clip or second_dataset is not dataset:
        opening.say_what_is_used(other, second_dataset)
    models = (_adapted(choice.adapter, clip, dataset), _adapted(choice.other_adapter, other, second_dataset))
    labels = _labels(choice.labels, models)
    if other is not clip:
        settings["other_model"] = other.name
    named = {
        "other_pretrained": choice.other_pretrained,
        "adapter": choice.adapter and opening.absolute(choice.adapter),
        "other_adapter": choice.other_adapter and opening.absolute(choice.other_adapter),
    }
    settings |= {key: value for key, value in named.items() if value is not None}
    tested, found = _tested(choice, images, sae)
    first, second = Side(labels[0], models[0], dataset), Side(labels[1], models[1], second_dataset)
    return OpenSides(first, second, tested, settings, settings | {f"test_{key}": value for key, value in found.items()})


def open_cell(cell: Cell, clip: SplitCLIP) -> OpenCell:
    """Images and adapter of a table's cell.

    Raises ValueError that begins with the cell's name.
    """
    try:
        ranked, found = _of_cell(Images(cell.images, cell.rank_split, cell.rank_limit or None), "rank_split", cell)
        theirs = Images(cell.test_images or cell.images, cell.test_split, cell.test_limit or None)
        tested, test = _of_cell(theirs, "test_split", cell)
        opening.say_what_is_used(clip, ranked)
        model = _adapted(cell.adapter, clip, ranked)
    except (ValueError, OSError) as error:
        raise ValueError(f"cell {cell.name}: {error}") from error
    second = Side(cell.label or kind_of(model) or "adapted", model, ranked)
    tests = {f"test_{key}": value for key, value in test.items()}
    settings = {**found, **tests, "adapter": opening.absolute(cell.adapter)}
    return OpenCell(Side("CLIP", clip, ranked), second, tested, settings)


def _of_cell(choice: Images, key: str, cell: Cell) -> tuple[ImageDataset, dict[str, Any]]:
    """Images of a cell, which says all there is to say of them."""
    return opening.images(replace(choice, split=choice.split or None, outside=cell.outside), {}, option=key)


def _adapted(path: str | None, clip: SplitCLIP, dataset: ImageDataset) -> AnyCLIP:
    """The CLIP with the adapter of this path for the classes of the dataset; no path: the CLIP itself."""
    if path is None:
        return clip
    if dataset.classnames is None:
        raise ValueError(f"the adapter {path} tells classes apart; dataset {dataset.name!r} has none")
    return opening.adapter(path, clip, dataset.classnames)


def _other_clip(choice: Sides, clip: SplitCLIP, model: Model) -> SplitCLIP:
    """The second CLIP, cut at the block of the first; the first where neither name nor weights are given."""
    if choice.other_model is None and choice.other_pretrained is None:
        return clip
    name = choice.other_model or clip.name
    return opening.clip(replace(model, model=name, pretrained=choice.other_pretrained, layer=clip.layer), {})


def _labels(given: tuple[str, str] | None, models: tuple[AnyCLIP, AnyCLIP]) -> tuple[str, str]:
    if given is not None:
        return given
    first, second = (kind_of(model) or "CLIP" for model in models)
    return (first, second) if first != second else ("A", "B")


def _tested(choice: Sides, images: Images, sae: SparseAutoencoder) -> tuple[ImageDataset | None, dict[str, Any]]:
    if choice.test_images is None and choice.test_split is None:
        return None, {}
    theirs = Images(
        choice.test_images or images.images, choice.test_split, choice.test_limit, images.limit_seed, images.outside
    )
    return opening.images(theirs, sae.config.metadata, option="--test-split")
