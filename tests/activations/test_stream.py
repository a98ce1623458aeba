"""Tokens of images through a tower, against the batches of the released loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.activations import Stream
from patchsae.activations.plan import Place
from patchsae.data import BadImage, ImageDataset, batches, open_images, train_order
from patchsae.models.clip import SplitCLIP
from tests.activations.small import D, T, all_same, same, union, wanted
from tests.examples import examples


def released_batches(clip: SplitCLIP, dataset: ImageDataset, batch_size: int, count: int, seed: int) -> list:
    """(tokens, ids, next_start) of the first batches of a training."""
    order = train_order(len(dataset), batch_size * count, seed, dataset.read_groups)
    found = batches(dataset, clip.preprocess, batch_size, order, on_bad_image="skip")
    return [(clip.residual(batch.pixels).float(), batch.ids, batch.next_start) for batch in found]


@pytest.mark.parametrize("workers", [0, 2])
def test_unmixed_batches_are_those_of_the_released_loop_bit_for_bit(
    clip: SplitCLIP, dataset: ImageDataset, workers: int
) -> None:
    settings = wanted(seed=3)
    stream = Stream(clip, dataset, settings, workers)
    found = [*stream.first(1), *stream.batches(4)]
    expected = released_batches(clip, dataset, 4, 13, seed=3)
    assert len(found) == len(expected) == 13
    for batch, (tokens, ids, next_start) in zip(found, expected, strict=True):
        assert torch.equal(batch.tokens, tokens)
        assert (batch.ids, batch.next_start, batch.images) == (ids, next_start, 4)
    assert (stream.width, stream.images_total, stream.bad) == (D, 52, [])
    assert found[0].tokens.shape == (4, T, D)


@examples(10)
@given(st.integers(0, 3), st.sampled_from([None, 2]), st.integers(1, 4), st.integers(0, 7), st.sampled_from([0, 0, 1]))
def test_going_on_gives_the_same_bits(
    clip: SplitCLIP, dataset: ImageDataset, shuffle: int, count: int | None, size: int, done: int, workers: int
) -> None:
    chosen = wanted(size, steps=7, shuffle=shuffle, tokens_per_image=count)
    whole = list(Stream(clip, dataset, chosen).batches(size))
    assert all_same(Stream(clip, dataset, chosen, workers).batches(size * (done + 1)), whole[done:])


@pytest.mark.parametrize("shuffle", [0, 3])
@pytest.mark.parametrize("count", [None, 2])
def test_the_parts_of_processes_are_the_batch_of_one(
    clip: SplitCLIP, dataset: ImageDataset, shuffle: int, count: int | None
) -> None:
    chosen = wanted(shuffle=shuffle, tokens_per_image=count)
    alone = Stream(clip, dataset, chosen)
    parts = [Stream(clip, dataset, chosen, parallel=Place(3, rank)) for rank in range(3)]
    for one, *others in zip(alone.batches(4), *(part.batches(4) for part in parts), strict=True):
        # The tower rounds differently for batches of another size; tokens of a window are rounded to bfloat16 besides
        tolerance = {"rtol": 2**-7, "atol": 2**-7} if shuffle else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(union(others), one.tokens.flatten(0, -2), **tolerance)
        assert sum(other.images for other in others) == one.images == 4
    first = [part.first(1)[0] for part in parts]
    assert all(same(found, alone.first(1)[0]) for found in first)


@pytest.fixture
def partly_bad(tmp_path: Path, dataset: ImageDataset) -> ImageDataset:
    """Eleven images of which 2, 3 and 7 cannot be decoded."""
    for i in range(11):
        path = tmp_path / f"{i:02}.png"
        if i in (2, 3, 7):
            path.write_bytes(b"no picture")
        else:
            dataset.sample(i).image.save(path)
    return open_images(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_as_in_the_released_loop(
    clip: SplitCLIP, partly_bad: ImageDataset, workers: int
) -> None:
    stream = Stream(clip, partly_bad, wanted(2, steps=20, on_bad_image="skip"), workers)
    found = list(stream.batches(2))
    expected = released_batches(clip, partly_bad, 2, 21, seed=42)
    expected = [item for item in expected if item[2] > 2]
    assert [batch.ids for batch in found] == [ids for _, ids, _ in expected]
    assert [batch.next_start for batch in found] == [end for _, _, end in expected]
    assert all(torch.equal(batch.tokens, tokens) for batch, (tokens, _, _) in zip(found, expected, strict=True))
    assert sorted(record.id for record in stream.bad) == ["02.png", "03.png", "07.png"]
    with pytest.raises(BadImage, match=r"0[237]\.png"):
        list(Stream(clip, partly_bad, wanted(2, steps=20), workers).batches(2))


def test_a_bad_image_is_named_with_its_batch_and_no_sooner(clip: SplitCLIP, partly_bad: ImageDataset) -> None:
    chosen = wanted(2, steps=20, on_bad_image="skip")
    order = train_order(11, 42, chosen.seed)
    stream = Stream(clip, partly_bad, chosen, workers=1)
    for batch in stream.batches(2):
        so_far = {int(i) for i in order[2 : batch.next_start] if i in (2, 3, 7)}
        assert {record.index for record in stream.bad} == so_far


def test_processes_stay_in_step_over_batches_without_images(clip: SplitCLIP, partly_bad: ImageDataset) -> None:
    chosen = wanted(2, steps=20, on_bad_image="skip")
    parts = [Stream(clip, partly_bad, chosen, parallel=Place(2, rank)) for rank in range(2)]
    ends = [[batch.next_start for batch in part.batches(2)] for part in parts]
    assert ends[0] == ends[1] == list(range(4, 44, 2))


def test_a_start_without_any_image_is_refused(clip: SplitCLIP, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    stream = Stream(clip, open_images(tmp_path), wanted(on_bad_image="skip"))
    with pytest.raises(ValueError, match="none of the images of the first batch can be decoded"):
        stream.first(1)


def test_a_subset_is_of_each_image_and_new_in_every_pass(clip: SplitCLIP, dataset: ImageDataset) -> None:
    chosen = wanted(30, steps=2, tokens_per_image=2)
    grids = {
        id: tokens
        for batch in Stream(clip, dataset, wanted(30, steps=1)).batches(30)
        for id, tokens in zip(batch.ids, batch.tokens, strict=True)
    }
    seen: dict[str, set[tuple[int, ...]]] = {id: set() for id in grids}
    for batch in Stream(clip, dataset, chosen).batches(30):
        assert batch.tokens.shape == (60, D)
        for id, tokens in zip(batch.ids, batch.tokens.reshape(30, 2, D), strict=True):
            distances = torch.cdist(tokens, grids[id])
            assert (distances.amin(1) < 1e-3).all()
            seen[id].add(tuple(distances.argmin(1).tolist()))
    assert np.mean([len(chosen) for chosen in seen.values()]) > 1.5


def test_more_tokens_than_an_image_has_are_refused_before_anything_is_decoded(
    clip: SplitCLIP, dataset: ImageDataset
) -> None:
    with pytest.raises(ValueError, match=f"tokens_per_image is {T + 1}; expected at most {T}, the tokens of an image"):
        Stream(clip, dataset, wanted(tokens_per_image=T + 1))
