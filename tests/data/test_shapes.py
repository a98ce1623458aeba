"""Laws of the shapes world: what is drawn, what is said about it and what is held out agree."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.data import DataError, open_images
from patchsae.data.shapes import FACTORS, ShapesWorld, describe, from_spec, split_of
from patchsae.data.shapes.factors import OBJECT_FACTORS, SPLITS, combinations
from patchsae.data.shapes.render import coverage, render

pictures = st.builds(
    lambda split, seed, i: (ShapesWorld(split, n=i + 1, seed=seed), i),
    st.sampled_from(SPLITS),
    st.integers(0, 2**40),
    st.integers(0, 2000),
)

DIGEST = """
import hashlib
from patchsae.data.shapes import ShapesWorld
world = ShapesWorld("val", n=40, seed=5)
print({i: hashlib.sha256(world.pixels(i).tobytes() + world.caption(i).encode()).hexdigest() for i in (31, 7, 0)})
"""

PINNED = [
    "a drawing of a cyan striped ring on sand in outline style",
    "a rendering of an orange ringed square and a small cyan plain circle on night in shaded style.",
    "a blue dotted square on night in outline style.",
]


def test_another_process_and_another_order_give_the_same_pictures() -> None:
    ran = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    world = ShapesWorld("val", n=40, seed=5)
    here = {i: hashlib.sha256(world.pixels(i).tobytes() + world.caption(i).encode()).hexdigest() for i in (0, 7, 31)}
    assert eval(ran.stdout) == here


def test_the_first_pictures_of_the_world_stay_what_they_are() -> None:
    """Figures that are published for a seed hold only while these do."""
    world = ShapesWorld("test", n=3)
    assert [world.caption(i) for i in range(3)] == PINNED


def test_a_picture_does_not_depend_on_how_many_there_are() -> None:
    few, many = ShapesWorld(n=4, seed=1), ShapesWorld(n=400, seed=1)
    assert few.factors(3) == many.factors(3)
    assert (few.pixels(3) == many.pixels(3)).all()
    assert (few.labels == many.labels[:4]).all()


def test_seeds_and_splits_give_other_pictures() -> None:
    worlds = [ShapesWorld(split, n=8, seed=seed) for split in SPLITS for seed in range(3)]
    noises = [world.factors(i).noise for world in worlds for i in range(8)]
    assert len(set(noises)) == len(noises)


@given(pictures, st.sampled_from(FACTORS["colour"]))
def test_recolouring_the_main_object_changes_it_and_nothing_else(picture: tuple[ShapesWorld, int], colour: str) -> None:
    world, i = picture
    scene = world.factors(i)
    main = replace(scene.main, texture="plain", colour=colour)
    before = replace(scene, style="flat", objects=(replace(scene.main, texture="plain"), *scene.objects[1:]))
    after = replace(before, objects=(main, *scene.objects[1:]))
    changed = (render(before, 64) != render(after, 64)).any(-1)
    assert not changed[coverage(main, 64) == 0].any()
    assert changed[world.mask(i, "colour")].all() == (colour != scene.main.colour)


@given(pictures, st.sampled_from(FACTORS["texture"]), st.sampled_from(FACTORS["style"]))
def test_retexturing_and_restyling_stay_inside_their_masks(
    picture: tuple[ShapesWorld, int], texture: str, style: str
) -> None:
    world, i = picture
    scene = world.factors(i)
    covers = [coverage(o, 64) > 0 for o in scene.objects]
    retextured = replace(scene, objects=(replace(scene.main, texture=texture), *scene.objects[1:]))
    assert not (render(retextured, 64) != world.pixels(i))[~covers[0]].any()
    assert not (render(replace(scene, style=style), 64) != world.pixels(i))[~np.any(covers, axis=0)].any()


@given(pictures, st.sampled_from(FACTORS["background"]))
def test_another_background_leaves_the_objects_alone(picture: tuple[ShapesWorld, int], background: str) -> None:
    world, i = picture
    scene = world.factors(i)
    changed = (render(replace(scene, background=background), 64) != world.pixels(i)).any(-1)
    full = np.any([coverage(o, 64) == 1 for o in scene.objects], axis=0)
    assert not changed[full].any()
    if background != scene.background:
        assert changed[world.mask(i, "background")].mean() > 0.9


@given(pictures)
def test_objects_lie_apart_inside_the_picture_and_the_main_one_is_larger(picture: tuple[ShapesWorld, int]) -> None:
    world, i = picture
    covers = [coverage(o, 64) for o in world.factors(i).objects]
    for cover in covers:
        assert cover[[0, -1]].max() == 0
        assert cover[:, [0, -1]].max() == 0
        assert cover.sum() > 40
    assert np.sum(covers, axis=0).max() <= 1
    assert len(covers) == 1 or covers[0].sum() > covers[1].sum()


@given(pictures)
def test_masks_divide_the_picture(picture: tuple[ShapesWorld, int]) -> None:
    world, i = picture
    assert (world.mask(i, "background") == ~world.mask(i, "style")).all()
    for factor in OBJECT_FACTORS:
        by_value = [world.mask(i, factor, value) for value in FACTORS[factor]]
        assert (np.any(by_value, axis=0) == world.mask(i, "style")).all()
        own = world.mask(i, factor, world.factors(i).value(factor))
        assert own[world.mask(i, factor)].all()
    for factor in ("background", "style"):
        own = world.factors(i).value(factor)
        for value in FACTORS[factor]:
            assert (world.mask(i, factor, value) == (world.mask(i, factor) & (value == own))).all()


@given(pictures, st.sampled_from([(8, 8), (4, 16), (1, 1), (64, 64)]))
def test_patch_masks_are_the_means_of_masks(picture: tuple[ShapesWorld, int], grid: tuple[int, int]) -> None:
    world, i = picture
    share, mask = world.patch_mask(i, "shape", grid), world.mask(i, "shape")
    assert share.shape == grid
    assert share.mean() == pytest.approx(mask.mean())
    top_left = mask[: 64 // grid[0], : 64 // grid[1]]
    assert share[0, 0] == pytest.approx(top_left.mean())


@given(pictures)
def test_the_same_scene_at_twice_the_size(picture: tuple[ShapesWorld, int]) -> None:
    scene = picture[0].factors(picture[1])
    large = coverage(scene.main, 128).reshape(64, 2, 64, 2).mean((1, 3))
    assert np.abs(large - coverage(scene.main, 64)).mean() < 0.01


def test_no_combination_is_in_two_splits_and_every_value_is_in_all() -> None:
    sets = {split: set(combinations(split)) for split in SPLITS}
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) == 8 * 8 * 5
    for split, combos in sets.items():
        assert all(split_of(*combination) == split for combination in combos)
        for column, factor in enumerate(OBJECT_FACTORS):
            assert {combination[column] for combination in combos} == set(FACTORS[factor])


@pytest.mark.parametrize("split", SPLITS)
def test_every_object_of_a_split_has_a_combination_of_the_split(split: str) -> None:
    world = ShapesWorld(split, n=200)
    objects = [o for i in range(200) for o in world.factors(i).objects]
    assert len(objects) > 240  # some pictures have two
    assert {split_of(o.shape, o.colour, o.texture) for o in objects} == {split}


@pytest.mark.parametrize("label", FACTORS)
def test_labels_are_the_factors(label: str) -> None:
    world = ShapesWorld("val", label=label, n=60, seed=2)
    assert world.classnames == list(FACTORS[label])
    assert [world.classnames[k] for k in world.labels] == [world.factors(i).value(label) for i in range(60)]
    assert (world.labels == ShapesWorld("val", n=60, seed=2).factor_labels(label)).all()
    assert world.sample(7).label == world.labels[7]


def test_several_factors_make_a_class_of_every_combination() -> None:
    world = from_spec("shapes:val?label=shape,texture&n=60&seed=2")
    assert world.classnames is not None
    assert world.classnames[:6] == [f"{t} circle" for t in FACTORS["texture"]] + ["plain square"]
    assert len(world.classnames) == len(FACTORS["shape"]) * len(FACTORS["texture"])
    for i in range(60):
        main = world.factors(i).main
        assert world.classnames[world.labels[i]] == f"{main.texture} {main.shape}"


def test_a_class_of_all_factors_reads_as_a_caption() -> None:
    world = ShapesWorld("val", label=",".join(FACTORS), n=20, seed=2)
    assert world.classnames is not None
    for i in range(20):
        article, _, name = describe(world.factors(i), second=False).partition(" ")
        assert article in ("a", "an")
        assert world.classnames[world.labels[i]] == name


def test_every_value_is_about_as_frequent_as_the_others() -> None:
    world = ShapesWorld(n=20_000)
    for factor, values in FACTORS.items():
        counts = np.bincount(world.factor_labels(factor), minlength=len(values))
        assert counts.min() > 0.9 * 20_000 / len(values)


@given(pictures)
def test_captions_name_every_factor(picture: tuple[ShapesWorld, int]) -> None:
    world, i = picture
    scene, words = world.factors(i), world.caption(i).replace(".", " ").split()
    assert {scene.background, scene.style} <= set(words)
    for thing in scene.objects:
        assert {thing.shape, thing.colour, thing.texture} <= set(words)


@given(pictures, st.sets(st.sampled_from(sorted(FACTORS))))
def test_a_description_names_what_was_asked_for_and_no_more(picture: tuple[ShapesWorld, int], asked: set[str]) -> None:
    scene = picture[0].factors(picture[1])
    words = describe(scene, sorted(asked), second=False).split()
    assert {factor for factor in FACTORS if set(words) & set(FACTORS[factor])} == asked


def test_a_restriction_holds_for_every_picture() -> None:
    world = from_spec("shapes:test?label=colour&n=50&seed=3&style=outline&colour=red,blue")
    assert {world.factors(i).style for i in range(50)} == {"outline"}
    assert {world.classnames[k] for k in world.labels} == {"red", "blue"}


def test_a_spec_is_the_dataset_with_those_arguments() -> None:
    world = from_spec("shapes:val?label=colour&n=12&seed=3&size=32&style=outline")
    same = ShapesWorld("val", "colour", 12, 3, 32, only={"style": ["outline"]})
    assert world.fingerprint == same.fingerprint
    assert world.sample(5).image.size == (32, 32)
    assert (world.pixels(5) == same.pixels(5)).all()
    assert from_spec("shapes").split == "train"
    assert from_spec("shapes?n=3", split="test").split == "test"
    assert open_images("shapes:val?label=colour&n=12&seed=3&size=32&style=outline").fingerprint == same.fingerprint


def test_fingerprints_tell_worlds_apart() -> None:
    specs = ["shapes?n=9", "shapes:val?n=9", "shapes?n=9&seed=1", "shapes?n=8", "shapes?n=9&label=style"]
    restricted = ["shapes?n=9&style=flat", "shapes?n=9&size=32"]
    assert len({from_spec(spec).fingerprint for spec in specs + restricted}) == len(specs) + len(restricted)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape", "expected shapes"),
        ("shapes:dev", "split is 'dev'; expected one of train, val, test"),
        ("shapes?colour=redd", "colour is 'redd'; expected one of red, orange"),
        ("shapes?lable=colour", "key 'lable' in the shapes source is unknown; expected one of label, n"),
        ("shapes?label=size", "label is 'size'; expected one of shape"),
        ("shapes?label=shape,shape", "label is 'shape,shape'; expected every factor once"),
        ("shapes?n=many", "n is 'many'; expected an integer"),
        ("shapes?n=-1", "n is '-1'"),
        ("shapes?seed=9999999999999999999", r"expected an integer >= 0 and < 2\*\*62"),
        ("shapes?size=4", "size is 4; expected an integer >= 8"),
        ("shapes?seed", "'seed' in the shapes source has no value"),
        ("shapes?seed=1&seed=2", "key 'seed' comes twice"),
        ("shapes:val?shape=circle&colour=orange&texture=plain", "no combination of split 'val'"),
    ],
)
def test_a_wrong_spec_is_explained(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        from_spec(spec)


def test_two_different_splits_are_an_error() -> None:
    with pytest.raises(DataError, match="names split 'val', and split is 'test'"):
        from_spec("shapes:val", split="test")


def test_a_wrong_question_is_explained() -> None:
    world = ShapesWorld(n=2)
    with pytest.raises(DataError, match="factor is 'size'; expected one of shape"):
        world.mask(0, "size")
    with pytest.raises(DataError, match="colour is 'circle'; expected one of red"):
        world.mask(0, "colour", "circle")
    with pytest.raises(DataError, match=r"grid is \(7, 8\)"):
        world.patch_mask(0, "shape", (7, 8))
    with pytest.raises(IndexError, match=r"position 2 is outside 0 \.\. 1"):
        world.sample(2)


def test_a_worker_gets_the_same_world() -> None:
    world = ShapesWorld("test", "texture", 5, 9, only={"style": ["shaded"]})
    copy = pickle.loads(pickle.dumps(world))
    assert copy.fingerprint == world.fingerprint
    assert (copy.pixels(4) == world.pixels(4)).all()


@pytest.mark.parametrize("source", ["shapes?n=1000000000000000", "shapes?size=1000000000&n=1", "shapes?n=" + "9" * 40])
def test_a_world_that_no_memory_holds_is_refused(source):
    with pytest.raises(DataError, match=r"needs .* of memory|expected an integer"):
        open_images(source, "train")
