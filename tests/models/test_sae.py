from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import patchsae
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests.examples import examples

D, S = 12, 40


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(activation: str = "relu", k: int | None = None) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(D, S, activation, k), seeded())
    with torch.no_grad():
        for parameter in (sae.b_enc, sae.b_dec):
            parameter.uniform_(-0.2, 0.2, generator=seeded(1))
    if activation == "jumprelu":
        sae.threshold.uniform_(0, 0.3, generator=seeded(2))
    return sae


def weights() -> dict[str, torch.Tensor]:
    """The tensors of `make`; under inference mode they belong to it."""
    return {name: tensor.clone() for name, tensor in make().state_dict().items()}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=seeded(3))


def dense_latents(sae: SparseAutoencoder, r: torch.Tensor) -> torch.Tensor:
    """The equation, dense, in float64."""
    pre = (r.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    if sae.config.activation == "jumprelu":
        return torch.where(pre > sae.threshold, pre, 0)
    pre = pre.clamp(min=0)
    if sae.config.activation == "topk":
        values, index = pre.topk(sae.config.k)
        return torch.zeros_like(pre).scatter(-1, index, values)
    return pre


@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("topk", 3), ("jumprelu", None)])
def test_encode_and_forward_are_the_equation(activation: str, k: int | None) -> None:
    sae, r = make(activation, k), tokens(2, 5)
    expected = dense_latents(sae, r)
    torch.testing.assert_close(sae.encode(r).to_dense().double(), expected.flatten(0, 1), rtol=1e-5, atol=1e-5)
    reconstruction = expected @ sae.W_dec.double() + sae.b_dec.double()
    torch.testing.assert_close(sae(r).double(), reconstruction, rtol=1e-5, atol=1e-5)


@given(shape=st.lists(st.integers(0, 3), min_size=0, max_size=3))
@examples(25)
def test_any_leading_dimensions_are_flattened_and_restored(shape: list[int]) -> None:
    sae, r = make(), tokens(*shape)
    z = sae.encode(r)
    assert z.shape == (r.numel() // D, S)
    assert sae.decode(z).shape == (r.numel() // D, D)
    assert sae.decode(z, like=r).shape == sae(r).shape == r.shape


@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("topk", 3)])
def test_every_gradient_is_that_of_the_dense_equation(activation: str, k: int | None) -> None:
    sae, r = make(activation, k), tokens(2, 4)
    leaf = r.clone().requires_grad_()
    sae(leaf).square().sum().backward()
    double = copy.deepcopy(sae).double()
    other = r.double().requires_grad_()
    (dense_latents(double, other) @ double.W_dec + double.b_dec).square().sum().backward()
    torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in sae.parameters_by_name().items():
        torch.testing.assert_close(parameter.grad.double(), getattr(double, name).grad, rtol=1e-4, atol=1e-5)


def test_w_enc_stays_latent_major(tmp_path: Path) -> None:
    sae = make()
    sae(tokens(4)).sum().backward()
    optimiser = torch.optim.Adam(sae.parameters())
    optimiser.step()
    moved = make().to(torch.float64).to(torch.float32)
    loaded, assigned = make(), make()
    plain = {name: tensor.clone().contiguous() for name, tensor in sae.state_dict().items()}
    loaded.load_state_dict(plain)
    assigned.load_state_dict(plain, assign=True)
    torch.save(sae.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["W_enc"]
    moment = optimiser.state[sae.W_enc]["exp_avg"]
    for weight in (sae.W_enc, sae.W_enc.grad, moment, moved.W_enc, loaded.W_enc, assigned.W_enc, saved):
        assert weight.shape == (D, S)
        assert weight.stride() == (1, D)
    assert copy.deepcopy(sae).W_enc.stride() == pickle.loads(pickle.dumps(sae)).W_enc.stride() == (1, D)
    assert torch.equal(assigned.W_enc, sae.W_enc)


def test_encode_sees_every_kind_of_change() -> None:
    sae, r = make(), tokens(6)

    def current() -> bool:
        return torch.allclose(sae.encode(r).to_dense().double(), dense_latents(sae, r), atol=1e-5)

    before = sae.encode(r).to_dense()
    optimiser = torch.optim.SGD(sae.parameters(), lr=0.5)
    sae(r).square().sum().backward()
    optimiser.step()
    assert current()
    assert not torch.allclose(before, sae.encode(r).to_dense())
    other = SparseAutoencoder(sae.config, seeded(9))
    sae.load_state_dict(other.state_dict())
    assert current()
    sae.load_state_dict({name: tensor.clone() for name, tensor in make().state_dict().items()}, assign=True)
    assert current()
    sae.W_enc.data.mul_(2)
    sae.refresh()
    assert current()
    copied = copy.deepcopy(sae)
    with torch.no_grad():
        sae.b_enc.add_(1)
    assert current()
    torch.testing.assert_close(copied.encode(r).to_dense().double(), dense_latents(copied, r), atol=1e-5, rtol=1e-5)


def test_refresh_checks_what_was_written_behind_autograds_back() -> None:
    sae = make()
    sae.encode(tokens(1))
    sae.W_enc.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="W_enc"):
        sae.refresh()


def test_weights_are_prepared_once() -> None:
    sae = make()
    assert sae.prepared is sae.prepared


@pytest.mark.slow
def test_it_compiles_as_one_graph_and_still_runs_without() -> None:
    sae, r = make(), tokens(2, 5)
    compiled = torch.compile(sae, fullgraph=True, backend="aot_eager")(r)
    torch.testing.assert_close(compiled, sae(r), rtol=1e-6, atol=1e-6)


def test_the_start_is_the_released_one_and_comes_from_the_generator() -> None:
    config = SAEConfig(D, S)
    sae, again = SparseAutoencoder(config, seeded(4)), SparseAutoencoder(config, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), again.parameters(), strict=True))
    assert not torch.equal(sae.W_enc, SparseAutoencoder(config, seeded(5)).W_enc)
    bound = (6 / S) ** 0.5
    assert 0.9 * bound < sae.W_enc.abs().max() <= bound
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(S))
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()


def test_other_float_types_become_float32() -> None:
    sae = make()
    half = {name: tensor.half() for name, tensor in sae.state_dict().items()}
    loaded = SparseAutoencoder.from_tensors(sae.config, half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.W_dec, half["W_dec"].float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_are_float32_whatever_the_default_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        sae = SparseAutoencoder(SAEConfig(D, S, "jumprelu"), seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in sae.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_in": 0}, "d_in=0"),
        ({"d_in": True}, "d_in=True"),
        ({"metadata": {"lr": float("nan")}}, r"metadata\['lr'\] is a float"),
        ({"d_sae": 2.5}, "d_sae=2.5"),
        ({"activation": "gelu"}, "activation='gelu'; expected one of relu, topk, jumprelu"),
        ({"activation": "topk"}, "k=None with activation='topk'"),
        ({"k": 3}, "k=3 with activation='relu'"),
        ({"activation": "topk", "k": S + 1}, f"k={S + 1}; expected 1 <= k <= d_sae = {S}"),
    ],
)
def test_impossible_configurations_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAEConfig(**{"d_in": D, "d_sae": S, **arguments})


def test_wrong_tensors_are_named() -> None:
    sae = make()
    state = sae.state_dict()
    with pytest.raises(ValueError, match=r"W_dec has shape \(12, 40\); expected \[S, D\] = \(40, 12\): transpose it"):
        SparseAutoencoder.from_tensors(sae.config, {**state, "W_dec": state["W_dec"].T})
    with pytest.raises(ValueError, match=r"b_enc has shape \(12,\); expected \[S\] = \(40,\)$"):
        SparseAutoencoder.from_tensors(sae.config, {**state, "b_enc": state["b_dec"]})
    with pytest.raises(ValueError, match="threshold"):
        SparseAutoencoder.from_tensors(sae.config, {**state, "threshold": state["b_enc"]})
    with pytest.raises(ValueError, match=r"r has shape \(3, 5\); expected \[..., D\] with D = 12"):
        sae.encode(torch.zeros(3, 5))


def test_pixels_arrays_and_pictures_are_no_tokens() -> None:
    sae = make()
    with pytest.raises(ValueError, match=r"r has shape \(3, 224, 224\); .*look like pixels, of which `clip\.residual"):
        sae.encode(torch.zeros(3, 224, 224))
    with pytest.raises(TypeError, match=r"r is a ndarray of shape \(2, 12\); expected .*torch\.as_tensor makes one"):
        sae.encode(np.zeros((2, D)))
    with pytest.raises(TypeError, match=r"r is a PIL picture; expected the residual stream \[\.\.\., D\] with D = 12"):
        sae.encode(Image.new("RGB", (4, 4)))
    with pytest.raises(TypeError, match=r"r is the text 'cat\.png'; .*load_image\(path\)"):
        sae("cat.png")
    with pytest.raises(TypeError, match="r has dtype int64; expected the residual stream"):
        sae.encode(torch.zeros(2, D, dtype=torch.long))
    with pytest.raises(TypeError, match="z is a Tensor of shape \\(2, 40\\); expected SparseLatents"):
        sae.decode(torch.zeros(2, S))
    with pytest.raises(ValueError, match=r"like has shape \(3, 12\); expected the 2 tokens of z"):
        sae.decode(sae.encode(tokens(2)), like=tokens(3))


@pytest.mark.parametrize("inside", [True, False], ids=["made inside", "made outside"])
def test_inference_mode_leaves_nothing_behind(tmp_path: Path, inside: bool) -> None:
    make().save(tmp_path)
    expected = make()(tokens(5))
    with torch.inference_mode(inside):
        copies = [
            make(),
            patchsae.load_sae(tmp_path, "cpu"),
            SparseAutoencoder.from_tensors(SAEConfig(D, S), weights()),
        ]
    for sae in copies:
        with torch.inference_mode(not inside):
            sae(tokens(5))
        sae(tokens(5)).sum().backward()
        assert sae.W_enc.grad is not None
    torch.testing.assert_close(copies[0](tokens(5)), expected)


def test_the_package_offers_it_lazily() -> None:
    assert patchsae.SparseAutoencoder is SparseAutoencoder
    assert patchsae.SAEConfig is SAEConfig
