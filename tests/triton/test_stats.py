"""latent_stats_ in the interpreter: the reference's meaning, and the same bits for any cut of the images."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae_kernels import reference
from patchsae_kernels.calls import StatsCall
from patchsae_kernels.latents import SparseLatents
from patchsae_kernels.stats import LatentStats
from patchsae_kernels.triton import stats as kernels
from tests.examples import examples
from tests.kernels.cases import random_latents

CLASSES = 3
EXACT = ("counts", "image_counts", "max_values", "max_position", "class_counts")


def totals(s):
    return s.sums, s.counts, s.image_counts, s.max_values, s.max_position, s.class_counts


def fold(implementation, z, tokens, threshold, labels, first_image=0, previous=None):
    """A new LatentStats: ``previous`` and the images of ``z``."""
    start = previous or LatentStats.empty(z.shape[1], tokens, None if labels is None else CLASSES)
    copies = [None if t is None else t.clone() for t in totals(start)]
    implementation(StatsCall(z.values, z.indices, z.indptr, tokens, threshold, labels, first_image, *copies))
    names = ("sums", *EXACT)
    return replace(start, **dict(zip(names, copies, strict=True)), images=start.images + z.shape[0] // tokens)


def assert_agree(ours, theirs):
    torch.testing.assert_close(ours.sums, theirs.sums, rtol=1e-12, atol=0)
    for name in EXACT:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None and b is None) or torch.equal(a, b), name


def assert_same_bits(a, b):
    for one, other in zip(totals(a), totals(b), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@st.composite
def image_batches(draw):
    images, tokens = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    s = draw(st.sampled_from([1, 2, 13, 150]))
    z = random_latents(draw(st.integers(0, 2**31)), images * tokens, s, draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])))
    if draw(st.booleans()):
        z = z.with_values((z.values * 3).ceil() / 3)  # many equal maxima
    if draw(st.booleans()):
        z = z.with_values(z.values.bfloat16())
    labels = st.lists(st.integers(-1, CLASSES - 1), min_size=images, max_size=images)
    return z, images, tokens, draw(st.none() | labels.map(lambda ids: torch.tensor(ids, dtype=torch.int64)))


@examples(15)
@given(image_batches(), st.sampled_from([0.0, 0.2, 0.7]), st.sampled_from([0, 1, 40]))
def test_statistics_are_the_references(batch, threshold, first_image):
    z, _, tokens, labels = batch
    ours, theirs = (
        fold(f, z, tokens, threshold, labels, first_image) for f in (kernels.latent_stats_, reference.latent_stats_)
    )
    assert_agree(ours, theirs)


@examples(15)
@given(image_batches())
def test_statistics_are_the_dense_ones(batch):
    z, images, tokens, labels = batch
    ours = fold(kernels.latent_stats_, z, tokens, 0.25, labels)
    dense = z.to_dense().double().view(images, tokens, z.shape[1])
    torch.testing.assert_close(ours.sums, dense.sum((0, 1)), rtol=1e-12, atol=0)
    assert torch.equal(ours.counts, (dense > 0.25).sum((0, 1)))
    assert torch.equal(ours.image_counts, (dense > 0).any(1).sum(0))
    if images:
        assert torch.equal(ours.max_values.double(), dense.amax((0, 1)))
    for c in range(CLASSES if labels is not None else 0):
        assert torch.equal(ours.class_counts[c], (dense > 0.25)[labels == c].sum((0, 1)))


@examples(15)
@given(image_batches(), st.data())
def test_any_cut_gives_the_same_bits(batch, data):
    z, images, tokens, labels = batch
    whole = fold(kernels.latent_stats_, z, tokens, 0.2, labels)
    cuts = sorted({0, images, *data.draw(st.lists(st.integers(0, images), max_size=3))})
    folded = None
    for start, stop in pairwise(cuts):
        part = z.select_rows(torch.arange(start * tokens, stop * tokens))
        ids = None if labels is None else labels[start:stop]
        folded = fold(kernels.latent_stats_, part, tokens, 0.2, ids, start, folded)
    if folded is not None:
        assert_same_bits(folded, whole)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_groups_of_images_change_no_bit(monkeypatch, at_once):
    z, labels = random_latents(3, 15, 40, 0.5), torch.tensor([0, 2, -1, 1, 0])
    whole = fold(kernels.latent_stats_, z, 3, 0.2, labels)
    monkeypatch.setattr(kernels, "TABLE_BYTES", at_once * 40 * kernels.RECORD_BYTES)
    assert_same_bits(fold(kernels.latent_stats_, z, 3, 0.2, labels), whole)


def test_a_tie_stays_with_the_earlier_position_whatever_is_folded_first():
    z = SparseLatents.from_dense(torch.ones(4, 2))
    later = fold(kernels.latent_stats_, z, 2, 0.2, None, first_image=7)
    assert later.max_position.tolist() == [14, 14]
    assert fold(kernels.latent_stats_, z, 2, 0.2, None, first_image=3, previous=later).max_position.tolist() == [6, 6]
    assert fold(kernels.latent_stats_, z, 2, 0.2, None, first_image=9, previous=later).max_position.tolist() == [14, 14]


def test_rows_longer_than_a_block_and_positions_beyond_32_bits():
    z = random_latents(5, 4, 2 * kernels.ROW_BLOCK + 57, 1.0)
    first_image = 2**33
    ours, theirs = (fold(f, z, 2, 0.5, None, first_image) for f in (kernels.latent_stats_, reference.latent_stats_))
    assert_agree(ours, theirs)
    assert int(ours.max_position.min()) >= 2**34


def test_values_that_do_not_fire_are_summed_and_nothing_else():
    z = SparseLatents(torch.tensor([-1.5, 0.0, 2.0]), torch.tensor([0, 1, 0]).int(), torch.tensor([0, 2, 3]), (2, 3))
    assert_agree(*(fold(f, z, 1, 0.2, None) for f in (kernels.latent_stats_, reference.latent_stats_)))


def test_small_values_survive_next_to_large_ones():
    """A float32 sum would lose them."""
    z = SparseLatents.from_dense(torch.tensor([[2.0**30], [1.0], [2.0**-20]]))
    assert fold(kernels.latent_stats_, z, 3, 0.2, None).sums.tolist() == [2.0**30 + 1 + 2.0**-20]


def test_entries_behind_the_last_row_are_ignored():
    z = random_latents(6, 6, 20, 0.5)
    padded = (torch.cat([z.values, torch.full((9,), 5.0)]), torch.cat([z.indices, torch.full((9,), 3).int()]))
    expected, found = (LatentStats.empty(20, 3) for _ in range(2))
    kernels.latent_stats_(StatsCall(z.values, z.indices, z.indptr, 3, 0.2, None, 0, *totals(expected)))
    kernels.latent_stats_(StatsCall(*padded, z.indptr, 3, 0.2, None, 0, *totals(found)))
    assert_same_bits(found, expected)


@pytest.mark.parametrize("wrong", [-2, CLASSES])
def test_a_label_out_of_range_is_an_error_and_nothing_is_added(wrong):
    z = random_latents(0, 4, 5, 0.9)
    s = LatentStats.empty(5, 2, CLASSES)
    with pytest.raises(ValueError, match="labels reach"):
        kernels.latent_stats_(StatsCall(z.values, z.indices, z.indptr, 2, 0.2, torch.tensor([0, wrong]), 0, *totals(s)))
    assert_same_bits(s, LatentStats.empty(5, 2, CLASSES))


def test_what_the_kernels_do_not_take():
    def served(dtype, tokens):
        z, s = random_latents(0, 0, 5), LatentStats.empty(5, tokens)
        csr = z.values.to(dtype), z.indices, z.indptr
        return kernels.serves(StatsCall(*csr, tokens, 0.2, None, 0, *totals(s)))

    assert served(torch.float32, kernels.MOST_TOKENS)
    assert not served(torch.float32, kernels.MOST_TOKENS + 1)
    assert not served(torch.float64, 197)


def test_strided_inputs_mean_what_they_hold():
    z = random_latents(1, 6, 40, 0.3)
    labels = torch.tensor([2, 0, 1])
    apart = [torch.stack([t, torch.zeros_like(t)], 1)[:, 0] for t in (z.values, z.indices, labels)]
    strided = SparseLatents(apart[0], apart[1], z.indptr, z.shape)
    plain = fold(kernels.latent_stats_, z, 2, 0.2, labels)
    assert_agree(fold(kernels.latent_stats_, strided, 2, 0.2, apart[2]), plain)
