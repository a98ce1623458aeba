"""SparseLatents: laws that tie it to the dense matrix it stands for."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae_kernels import SparseLatents
from tests.kernels.cases import assert_same, latents, random_latents


@given(latents)
def test_dense_round_trip(z):
    z.validate()
    assert_same(SparseLatents.from_dense(z.to_dense()), z)
    assert z.l0 == pytest.approx(z.nnz / max(z.shape[0], 1))


@given(latents, st.data())
def test_steering_is_the_dense_edit(z, data):
    chosen = data.draw(st.lists(st.integers(0, z.shape[1] - 1), max_size=4))
    value = data.draw(st.sampled_from([0.0, 0.5, -2.0]))
    dense = z.to_dense()
    scaled, fixed, raised = dense.clone(), dense.clone(), dense.clone()
    scaled[:, chosen] *= value
    fixed[:, chosen] = value
    raised[:, sorted(set(chosen))] += value
    for edited, expected in (
        (z.scale(chosen, value), scaled),
        (z.set(chosen, value), fixed),
        (z.add(chosen, value), raised),
    ):
        assert torch.equal(edited.validate().to_dense(), expected)


@given(latents, st.randoms(use_true_random=False))
def test_permute_is_dense_column_order(z, random):
    order = list(range(z.shape[1]))
    random.shuffle(order)
    assert torch.equal(z.permute(order).validate().to_dense(), z.to_dense()[:, order])


@given(latents, st.data())
def test_select_rows_and_where(z, data):
    if z.shape[0]:
        index = torch.tensor(data.draw(st.lists(st.integers(0, z.shape[0] - 1), max_size=6)), dtype=torch.int64)
        assert torch.equal(z.select_rows(index).validate().to_dense(), z.to_dense()[index])
    keep = z.values > 0.5
    dense = z.to_dense()
    assert torch.equal(z.where(keep).validate().to_dense(), torch.where(dense > 0.5, dense, 0.0))


@given(st.integers(0, 4), st.integers(1, 4), st.integers(0, 1000))
def test_reshape_tokens_and_cat_are_inverse(images, tokens, seed):
    z = random_latents(seed, images * tokens, 7)
    parts = z.reshape_tokens(images, tokens)
    assert [part.shape for part in parts] == [(tokens, 7)] * images
    if images:
        assert_same(SparseLatents.cat(parts), z)


def test_save_load(tmp_path):
    z = random_latents(0, 5, 9)
    z.save(tmp_path / "z.safetensors")
    assert_same(SparseLatents.load(tmp_path / "z.safetensors"), z)
    assert os.listdir(tmp_path) == ["z.safetensors"]


def test_load_refuses_other_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"values": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a SparseLatents file"):
        SparseLatents.load(tmp_path / "other.safetensors")


def test_load_refuses_a_damaged_matrix(tmp_path):
    z = random_latents(0, 5, 9, density=0.9)
    SparseLatents(z.values, z.indices.flip(0), z.indptr, z.shape).save(tmp_path / "z.safetensors")
    with pytest.raises(ValueError, match="ascend"):
        SparseLatents.load(tmp_path / "z.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(3, dtype=torch.int64)}, "values has dtype"),
        ({"indices": torch.zeros(3, dtype=torch.int64)}, "indices has dtype"),
        ({"indptr": torch.zeros(3, dtype=torch.int32)}, "indptr has dtype"),
        ({"values": torch.zeros(4)}, "same \\[nnz\\]"),
        ({"indptr": torch.zeros(9, dtype=torch.int64)}, r"indptr has shape \(9,\)"),
    ],
)
def test_constructor_names_what_is_wrong(change, message):
    good = {
        "values": torch.zeros(3),
        "indices": torch.zeros(3, dtype=torch.int32),
        "indptr": torch.tensor([0, 1, 3]),
        "shape": (2, 5),
    }
    SparseLatents(**good)
    with pytest.raises((TypeError, ValueError), match=message):
        SparseLatents(**(good | change))


def test_steering_refuses_latents_out_of_range():
    z = random_latents(0, 3, 5)
    with pytest.raises(IndexError, match=r"expected 0\.\.4"):
        z.scale([5], 2.0)
    with pytest.raises(ValueError, match="permutation"):
        z.permute([0, 0, 1, 2, 3])
