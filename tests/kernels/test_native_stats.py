"""The native statistics and token pooling have the bits of the reference, for any number of threads and any cut."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import cpu, reference
from patchsae_kernels.calls import PoolCall, StatsCall
from patchsae_kernels.reference import checked
from tests.kernels.cases import assert_same, random_latents

pytestmark = pytest.mark.skipif(not cpu.available, reason=f"the extension is not here: {cpu.missing}")
TENSORS = ("sums", "counts", "image_counts", "max_values", "max_position", "class_counts")
CLASSES = 3


@pytest.fixture
def with_threads():
    """Sets the number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@st.composite
def batches(draw):
    """Latents with ties, zeros and negative values stored, and labels of which some are -1."""
    images, tokens, s = draw(st.integers(0, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 90))
    z = random_latents(draw(st.integers(0, 2**31)), images * tokens, s, draw(st.sampled_from([0.1, 0.6])))
    steps = draw(st.sampled_from([4, 1000]))
    z = z.with_values(((z.values - 0.2) * steps).round() / steps)
    if draw(st.booleans()):
        z = z.with_values(z.values.bfloat16())
    labels = torch.tensor(draw(st.lists(st.integers(-1, 2), min_size=images, max_size=images)), dtype=torch.int64)
    return z, tokens, labels


def by_reference(z, tokens, threshold, labels, first_image=0):
    e = pk.LatentStats.empty(z.shape[1], tokens, None if labels is None else CLASSES)
    totals = (e.sums, e.counts, e.image_counts, e.max_values, e.max_position, e.class_counts)
    checked.latent_stats_(StatsCall(z.values, z.indices, z.indptr, tokens, threshold, labels, first_image, *totals))
    return e


def assert_same_stats(a, b):
    for name in TENSORS:
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None and other is None) or torch.equal(one, other), name


def cut(z, tokens, start, stop):
    return z.select_rows(torch.arange(start * tokens, stop * tokens))


@given(batches(), st.sampled_from([0.0, 0.2, 0.25, -0.1]), st.booleans(), st.integers(1, 4))
def test_statistics_have_the_bits_of_the_reference(batch, threshold, labelled, threads):
    z, tokens, labels = batch
    labels = labels if labelled else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = pk.latent_stats(z, tokens, threshold, labels, CLASSES if labelled else None, first_image=5)
    finally:
        torch.set_num_threads(before)
    assert_same_stats(ours, by_reference(z, tokens, threshold, labels, 5))


@given(batches(), st.data())
def test_a_fold_gives_the_same_bits_for_any_cut(batch, data):
    z, tokens, labels = batch
    images = labels.shape[0]
    whole = pk.latent_stats(z, tokens, 0.2, labels, CLASSES)
    folded = pk.LatentStats.empty(z.shape[1], tokens, CLASSES)
    cuts = sorted({0, images, *data.draw(st.lists(st.integers(0, images), max_size=3))})
    for start, stop in pairwise(cuts):
        part = cut(z, tokens, start, stop)
        folded = pk.latent_stats(part, tokens, 0.2, labels[start:stop], CLASSES, start, folded)
    assert_same_stats(folded, whole)


@given(batches(), st.data())
def test_images_in_another_order_give_the_same_integers_and_maxima(batch, data):
    z, tokens, labels = batch
    whole = pk.latent_stats(z, tokens, 0.2, labels, CLASSES)
    folded = pk.LatentStats.empty(z.shape[1], tokens, CLASSES)
    for image in data.draw(st.permutations(range(labels.shape[0]))):
        part = cut(z, tokens, image, image + 1)
        folded = pk.latent_stats(part, tokens, 0.2, labels[image : image + 1], CLASSES, image, folded)
    torch.testing.assert_close(folded.sums, whole.sums)
    for name in TENSORS[1:]:
        assert torch.equal(getattr(folded, name), getattr(whole, name)), name


def test_no_bit_depends_on_threads(with_threads):
    z = random_latents(4, 90, 500, 0.3)
    labels = torch.arange(15) % CLASSES
    with_threads(1)
    stats, pooled = pk.latent_stats(z, 6, 0.2, labels, CLASSES), pk.pool_tokens(z, 6)
    for threads in (2, 3, 4):
        with_threads(threads)
        assert_same_stats(pk.latent_stats(z, 6, 0.2, labels, CLASSES), stats)
        assert_same(pk.pool_tokens(z, 6), pooled)


def test_rows_that_do_not_ascend_are_counted_all_the_same(with_threads):
    """A matrix put together by hand may break the promise; threads must then not miss entries."""
    z = pk.SparseLatents(
        torch.tensor([1.0, 2.0, 0.5, 4.0, 3.0]),
        torch.tensor([7, 1, 4, 9, 0], dtype=torch.int32),
        torch.tensor([0, 3, 5]),
        (2, 10),
    )
    with_threads(4)
    assert_same_stats(pk.latent_stats(z, 2), by_reference(z, 2, 0.2, None))


@given(batches(), st.integers(1, 4))
def test_pooled_tokens_have_the_bits_of_the_reference(batch, threads):
    z, tokens, _ = batch
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = pk.pool_tokens(z, tokens).validate()
    finally:
        torch.set_num_threads(before)
    expected = reference.pool_tokens(PoolCall(z.values, z.indices, z.indptr, z.shape[1], tokens, 2**20))
    assert ours.values.dtype == z.values.dtype
    assert_same(ours, pk.SparseLatents(*expected, ours.shape))


def test_float64_takes_the_reference():
    z = random_latents(0, 6, 20, 0.4)
    z = z.with_values(z.values.double() + 1e-12)
    assert_same_stats(pk.latent_stats(z, 3), by_reference(z, 3, 0.2, None))
    assert pk.pool_tokens(z, 3).values.dtype == torch.float64


def test_places_beyond_the_entries_are_not_looked_at():
    z = random_latents(0, 6, 10)
    bounded = pk.SparseLatents(
        torch.cat([z.values, torch.full((9,), torch.nan)]),
        torch.cat([z.indices, torch.full((9,), 77, dtype=torch.int32)]),
        z.indptr,
        z.shape,
    )
    assert_same_stats(pk.latent_stats(bounded, 3), pk.latent_stats(z, 3))
    assert_same(pk.pool_tokens(bounded, 3), pk.pool_tokens(z, 3))


def test_a_matrix_put_together_wrongly_is_an_error_and_changes_nothing():
    for indices, indptr in (([0, 5], [0, 1, 2]), ([0, -1], [0, 1, 2]), ([0, 1], [0, 1, 7]), ([0, 1], [0, 3, 2])):
        z = pk.SparseLatents(torch.ones(2), torch.tensor(indices, dtype=torch.int32), torch.tensor(indptr), (2, 5))
        untouched = pk.LatentStats.empty(5, 2)
        with pytest.raises(ValueError, match="indices reach|indptr does not ascend"):
            pk.latent_stats(z, 2, previous=untouched)
        assert_same_stats(untouched, pk.LatentStats.empty(5, 2))
        with pytest.raises(ValueError, match="indices reach|indptr does not ascend"):
            pk.pool_tokens(z, 2)


def test_labels_outside_of_the_classes_are_an_error():
    z = random_latents(0, 2, 5)
    for labels in ([0, 3], [-2, 0]):
        with pytest.raises(ValueError, match=r"labels reach .*; expected -1\.\.2"):
            pk.latent_stats(z, 1, 0.2, torch.tensor(labels), CLASSES)
