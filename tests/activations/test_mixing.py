"""Windows of batches whose tokens are mixed: nothing lost, exact from any place, whoever holds the slots."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.activations import TokenBatch
from patchsae.activations.mixing import Share, chosen_tokens, take_tokens, token_batches
from patchsae.activations.plan import ALONE, BatchPlan, Place, StreamPlan, plan_of
from tests.activations.small import all_same, union, wanted

T = 3


def tokens_at(places: list[int]) -> torch.Tensor:
    """[b, T, 2]: token t of the image at a place says (place, t), exactly also in bfloat16."""
    grid = [[(place, t) for t in range(T)] for place in places]
    return torch.tensor(grid, dtype=torch.float32).reshape(-1, T, 2)


def shares_of(plan: BatchPlan, bad: frozenset[int] = frozenset()):
    """Shares whose images say where they are from; those at the places `bad` are left out."""

    def shares(step: int) -> Iterator[Share]:
        for number in range(step, plan.steps):
            slots = [slot for slot in plan.slots if plan.begin(number) + slot not in bad]
            places = [plan.begin(number) + slot for slot in slots]
            yield Share(tokens_at(places), slots, [str(place) for place in places])

    return shares


def batches_of(
    chosen: StreamPlan, place: Place = ALONE, start: int | None = None, bad: frozenset[int] = frozenset()
) -> list[TokenBatch]:
    plan = plan_of(chosen, place)
    begin = plan.first_place if start is None else start
    return list(token_batches(shares_of(plan, bad), plan, begin, chosen, tokens=T))


def rows(batches: list[TokenBatch]) -> list[tuple[int, int]]:
    return [(int(place), int(t)) for batch in batches for place, t in batch.tokens.reshape(-1, 2).tolist()]


settings_of = st.builds(
    wanted,
    batch_size=st.integers(1, 5),
    steps=st.integers(1, 7),
    shuffle=st.integers(0, 4),
    start_batches=st.integers(1, 2),
    tokens_per_image=st.sampled_from([None, 1, 2, 3]),
    seed=st.integers(0, 3),
)


@given(settings_of, st.sets(st.integers(0, 40)))
def test_every_token_comes_exactly_once(chosen: StreamPlan, bad: set[int]) -> None:
    found = rows(batches_of(chosen, bad=frozenset(bad)))
    places = [p for p in range(chosen.batch_size * chosen.start_batches, 45) if p not in bad]
    places = [p for p in places if p < chosen.batch_size * (chosen.start_batches + chosen.steps)]
    count = chosen.tokens_per_image or T
    assert len(found) == len(set(found)) == count * len(places)
    assert {place for place, _ in found} == set(places)
    if count == T:
        assert set(found) == {(place, t) for place in places for t in range(T)}


@given(settings_of, st.data())
def test_going_on_from_any_place_gives_the_rest_of_an_unbroken_run(chosen: StreamPlan, data: st.DataObject) -> None:
    whole = batches_of(chosen)
    done = data.draw(st.integers(0, len(whole)))
    start = whole[done - 1].next_start if done else chosen.batch_size * chosen.start_batches
    assert all_same(whole[done:], batches_of(chosen, start=start))


@given(settings_of, st.integers(1, 4), st.sets(st.integers(0, 40)))
def test_the_parts_of_processes_are_the_batch_of_one(chosen: StreamPlan, size: int, bad: set[int]) -> None:
    if size > chosen.batch_size:
        return
    alone = {batch.next_start: batch for batch in batches_of(chosen, bad=frozenset(bad))}
    parts = [batches_of(chosen, Place(size, rank), bad=frozenset(bad)) for rank in range(size)]
    for of_step in zip(*parts, strict=True):
        (end,) = {part.next_start for part in of_step}
        if end in alone or size == 1:
            assert torch.equal(union(of_step), alone[end].tokens.flatten(0, -2))
            assert sum(part.images for part in of_step) == alone[end].images
        else:
            assert len(union(of_step)) == 0


def test_a_step_mixes_the_images_of_its_window_and_of_no_other() -> None:
    settings = wanted(batch_size=8, steps=6, shuffle=3)
    for batch in batches_of(settings):
        window = (batch.next_start // 8 - 2) // 3
        within = {place for place, _ in rows([batch])}
        assert within <= set(range(8 + window * 24, 8 + (window + 1) * 24))
        assert len(within) > 12  # of 24 tokens from 24 images; 8 if nothing were mixed
        assert set(batch.ids) == {str(place) for place in range(8 + window * 24, 8 + (window + 1) * 24)}


def test_windows_and_lanes_are_permuted_differently() -> None:
    found = np.array(rows(batches_of(wanted(batch_size=2, steps=40, shuffle=20)))).reshape(2, 20, 2, T, 2)
    lanes = found.transpose(0, 2, 1, 3, 4).reshape(4, 20 * T, 2)
    relative = [[(int(place - lane[:, 0].min()) // 2, int(t)) for place, t in lane] for lane in lanes]
    assert len({tuple(lane) for lane in relative}) == 4


def test_whole_images_keep_their_shape_and_others_do_not() -> None:
    assert batches_of(wanted(steps=1))[0].tokens.shape == (4, T, 2)
    assert batches_of(wanted(steps=1, shuffle=1))[0].tokens.shape == (4 * T, 2)
    assert batches_of(wanted(steps=1, tokens_per_image=T))[0].tokens.shape == (4 * T, 2)
    plan = plan_of(wanted(steps=1), ALONE)
    selected = token_batches(shares_of(plan), plan, 4, wanted(steps=1), tokens=None)
    assert next(selected).tokens.shape == (4 * T, 2)


@given(st.integers(1, 50), st.data(), st.integers(0, 9), st.integers(0, 10**6))
def test_chosen_tokens_are_different_tokens_of_the_image(
    tokens: int, data: st.DataObject, seed: int, place: int
) -> None:
    count = data.draw(st.integers(1, tokens))
    chosen = chosen_tokens(tokens, count, seed, place)
    assert len(set(chosen.tolist())) == count
    assert 0 <= chosen.min() <= chosen.max() < tokens
    assert (chosen == chosen_tokens(tokens, count, seed, place)).all()


def test_every_token_of_an_image_is_as_likely_to_be_chosen() -> None:
    counts = np.bincount(np.concatenate([chosen_tokens(10, 3, 1, place) for place in range(2000)]), minlength=10)
    assert np.abs(counts - 600).max() < 5 * np.sqrt(600)


def test_more_tokens_than_an_image_has_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_image is 4; expected 1 .. 3"):
        take_tokens(tokens_at([0]), [0], 4, seed=0)


def test_a_place_where_no_batch_begins_is_refused() -> None:
    for start in (0, 5, 400):
        with pytest.raises(ValueError, match=f"start is {start}; expected 4 plus a multiple of 4, at most 52"):
            batches_of(wanted(), start=start)


def test_fewer_images_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 4; expected at least 5"):
        plan_of(wanted(), Place(5, 0))


@pytest.mark.slow
def test_a_window_is_in_memory_once() -> None:
    settings = wanted(3, steps=10, shuffle=4)
    plan = plan_of(settings, ALONE)
    held: list[int] = []

    def shares(step: int) -> Iterator[Share]:
        for share in shares_of(plan)(step):
            held.append(_bytes_of(torch.bfloat16))
            yield share

    before = _bytes_of(torch.bfloat16)
    for _ in token_batches(shares, plan, plan.first_place, settings, tokens=T):
        held.append(_bytes_of(torch.bfloat16))
    batch = 3 * T * 2 * 2  # bytes
    assert 4 * batch <= max(held) - before <= (4 + 1) * batch  # the window, and what was just taken from it


def _bytes_of(dtype: torch.dtype) -> int:
    """Memory of all living tensors of a type, each piece of it once."""
    tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.dtype == dtype]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())
