"""Ground truth of concepts: the shapes world's factors where they show, the classes of other datasets."""

from __future__ import annotations

import numpy as np
import torch

from patchsae.data import open_images
from patchsae.data.shapes import FACTORS, ShapesWorld
from patchsae.experiments.evaluate.concept_truth import Classes, ShapeFactors, concepts_of, truth_of

GRID = (8, 8)


def test_masks_are_the_patches_that_a_factor_covers_by_half() -> None:
    world = ShapesWorld("val", n=25)
    concepts = concepts_of(world, GRID)
    assert isinstance(concepts, ShapeFactors)
    assert len(concepts.names) == sum(map(len, FACTORS.values()))
    images, present, masks = truth_of(concepts, torch.arange(25))
    assert masks is not None
    for i in images.tolist():
        for v, (factor, value) in enumerate(concepts.names):
            assert np.array_equal(masks[i, v].numpy(), world.patch_mask(i, factor, GRID, value).flatten() >= 0.5)
            assert bool(present[i, v]) == bool(world.mask(i, factor, value).any())
    two = next(i for i in range(25) if len(world.factors(i).objects) == 2)
    small = world.factors(two).objects[1]
    assert bool(present[two, concepts.names.index(("colour", small.colour))]), "the small object counts"


def test_positions_are_those_of_the_dataset_whatever_it_is_cut_from() -> None:
    world = ShapesWorld("val", n=25)
    part = world.subset([20, 3, 7, 11]).subset([2, 0])
    direct, cut = (concepts_of(dataset, GRID) for dataset in (world, part))
    assert direct is not None
    assert cut is not None
    assert torch.equal(cut.present([0, 1]), direct.present([7, 20]))
    assert torch.equal(cut.masks([0, 1]), direct.masks([7, 20]))


def test_a_grid_that_does_not_divide_the_picture_has_masks_too() -> None:
    concepts = concepts_of(ShapesWorld("val", n=1), (14, 14))
    assert concepts is not None
    masks = concepts.masks([0])
    assert masks is not None
    assert masks.shape == (1, len(concepts.names), 196)
    assert bool(masks.any())


def test_other_datasets_have_their_classes_without_masks(tmp_path) -> None:
    world = ShapesWorld("val", n=6)
    for i in range(6):
        for folder in (tmp_path / "classes" / "ab"[i % 2], tmp_path / "plain"):
            folder.mkdir(parents=True, exist_ok=True)
            world.sample(i).image.save(folder / f"{i}.png")
    dataset = open_images(str(tmp_path / "classes"))
    concepts = concepts_of(dataset, GRID)
    assert isinstance(concepts, Classes)
    assert list(concepts.names) == [("class", "a"), ("class", "b")]
    truth = truth_of(concepts, torch.tensor([5, 0]))
    assert truth.present.int().argmax(1).tolist() == [dataset.labels[5], dataset.labels[0]]
    assert truth.masks is None
    assert concepts_of(open_images(str(tmp_path / "plain")), GRID) is None
