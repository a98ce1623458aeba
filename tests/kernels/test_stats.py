"""latent_stats and pool_tokens against dense sums; folds do not depend on how images are cut into batches."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from tests.kernels.cases import assert_same, random_latents

TENSORS = ("sums", "counts", "image_counts", "max_values", "max_position", "class_counts")


@st.composite
def image_batches(draw):
    images, tokens, s = draw(st.integers(0, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 12))
    z = random_latents(draw(st.integers(0, 2**31)), images * tokens, s, draw(st.sampled_from([0.1, 0.6])))
    labels = torch.tensor(draw(st.lists(st.integers(-1, 2), min_size=images, max_size=images)), dtype=torch.int64)
    return z, images, tokens, labels


@given(image_batches(), st.sampled_from([0.0, 0.2, 0.7]))
def test_statistics_are_the_dense_ones(batch, threshold):
    z, images, tokens, labels = batch
    s = pk.latent_stats(z, tokens, threshold, labels, 3)
    dense = z.to_dense().double().view(images, tokens, z.shape[1])
    over = dense > torch.tensor(threshold, dtype=torch.float32).double()
    torch.testing.assert_close(s.sums, dense.sum((0, 1)))
    assert torch.equal(s.counts, over.sum((0, 1)))
    assert torch.equal(s.image_counts, (dense > 0).any(1).sum(0))
    for c in range(3):
        assert torch.equal(s.class_counts[c], over[labels == c].sum((0, 1)))
    flat = dense.view(-1, z.shape[1])
    for latent in range(z.shape[1]):
        column = flat[:, latent]
        if not (column > 0).any():
            assert (s.max_values[latent], s.max_image[latent], s.max_token[latent]) == (0, -1, -1)
        else:
            first = int((column == column.max()).nonzero()[0])
            assert float(s.max_values[latent]) == float(column.max())
            assert (int(s.max_image[latent]), int(s.max_token[latent])) == (first // tokens, first % tokens)


@given(image_batches(), st.data())
def test_a_fold_gives_the_same_bits_for_any_cut(batch, data):
    z, images, tokens, labels = batch
    whole = pk.latent_stats(z, tokens, labels=labels, num_classes=3)
    cuts = sorted({0, images, *data.draw(st.lists(st.integers(0, images), max_size=3))})
    folded = None
    for start, stop in pairwise(cuts):
        part = z.select_rows(torch.arange(start * tokens, stop * tokens))
        folded = pk.latent_stats(
            part, tokens, labels=labels[start:stop], num_classes=3, first_image=start, previous=folded
        )
    if folded is not None:
        assert folded.images == whole.images
        for name in TENSORS:
            assert torch.equal(getattr(folded, name), getattr(whole, name)), name


@given(image_batches(), st.integers(0, 6))
def test_merge_is_commutative_and_equals_the_whole(batch, cut):
    z, images, tokens, labels = batch
    cut = min(cut, images)
    a, b = (
        pk.latent_stats(
            z.select_rows(torch.arange(lo * tokens, hi * tokens)), tokens, 0.2, labels[lo:hi], 3, first_image=lo
        )
        for lo, hi in ((0, cut), (cut, images))
    )
    whole = pk.latent_stats(z, tokens, labels=labels, num_classes=3)
    for name in TENSORS:
        assert torch.equal(getattr(a.merge(b), name), getattr(b.merge(a), name)), name
        torch.testing.assert_close(getattr(a.merge(b), name), getattr(whole, name))
    assert {f.name for f in fields(whole)} >= set(TENSORS)


@given(image_batches(), st.sampled_from([0.0001, 256]))
def test_pooled_tokens_are_the_sums_over_an_image(batch, budget_mb):
    z, images, tokens, _ = batch
    pooled = pk.pool_tokens(z, tokens, budget_mb).validate()
    dense = z.to_dense().double().view(images, tokens, z.shape[1]).sum(1)
    assert torch.equal(pooled.to_dense(), dense.float())


def test_pooling_images_one_by_one_gives_the_same_bits():
    z = random_latents(5, 12, 30)
    parts = [pk.pool_tokens(part, 4) for part in z.reshape_tokens(3, 4)]
    assert_same(pk.SparseLatents.cat(parts), pk.pool_tokens(z, 4))


def test_errors():
    z = random_latents(0, 6, 5)
    with pytest.raises(ValueError, match="not whole images of tokens_per_image = 4"):
        pk.latent_stats(z, 4)
    with pytest.raises(ValueError, match="belong together"):
        pk.latent_stats(z, 3, labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels reach"):
        pk.latent_stats(z, 3, labels=torch.tensor([0, 4]), num_classes=2)
    with pytest.raises(ValueError, match="labels has shape"):
        pk.latent_stats(z, 3, labels=torch.tensor([0]), num_classes=2)
    with pytest.raises(ValueError, match="previous has 5 latents and 3 tokens"):
        pk.latent_stats(z, 2, previous=pk.latent_stats(z, 3))
    with pytest.raises(ValueError, match="folded without labels"):
        pk.latent_stats(z, 3, labels=torch.tensor([0, 1]), num_classes=2, previous=pk.latent_stats(z, 3))
