"""SAELens's files, written by hand at D 3 and S 5, against its formulas in numpy; and ours as SAELens reads them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from patchsae import load_sae
from patchsae.models.checkpoints import understood, write
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

D, S, N = 3, 5, 40
SHAPES = {"W_enc": (D, S), "b_enc": (S,), "W_dec": (S, D), "b_dec": (D,)}
GATED = {"W_enc": (D, S), "W_dec": (S, D), "b_dec": (D,), "b_gate": (S,), "b_mag": (S,), "r_mag": (S,)}
Array = NDArray[np.float64]


def tensors(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = GATED if kind == "gated" else SHAPES
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if kind == "jumprelu":
        found["threshold"] = torch.tensor([-1.0, 0.0, 0.3, 0.5, 2.0])
    if kind in ("batchtopk", "matryoshka_batchtopk"):
        found["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
    return found


def save(folder: Path, kind: str, weights: dict[str, torch.Tensor] | None = None, **said: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors(kind) if weights is None else weights, folder / "sae_weights.safetensors")
    record = {"architecture": kind, "d_in": D, "d_sae": S, "dtype": "float32", "normalize_activations": "none"}
    record |= {"apply_b_dec_to_input": True, "metadata": {"sae_lens_version": "6.54.12"}} | said
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in record.items() if value != "absent"}))
    return folder


def normalised(x: Array, how: str) -> tuple[Array, Array, Array]:
    mean, scale = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if how == "layer_norm":
        mean, scale = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
        return (x - mean) / (scale + 1e-5), mean, scale
    if how == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
    return (x - mean) / scale, mean, scale


def theirs(
    x: Array, kind: str, k: int = 2, apply: bool = True, how: str = "none", rescale: bool = False
) -> tuple[Array, Array]:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in tensors(kind).items()}
    u, mean, scale = normalised(x, how)
    u = u - apply * w["b_dec"]
    norm = np.linalg.norm(w["W_dec"], axis=1) if rescale else np.ones(S)
    if kind == "gated":
        z = ((u @ w["W_enc"] + w["b_gate"]) > 0) * np.maximum(u @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
    else:
        pre = (u @ w["W_enc"] + w["b_enc"]) * norm
        z = np.maximum(pre, 0)
        if kind == "topk":
            z = np.where(pre >= -np.sort(-pre, axis=1)[:, k - 1 : k], z, 0)
        elif kind != "standard":
            z = np.where(pre > w["threshold" if kind == "jumprelu" else "topk_threshold"], z, 0)
    return z, ((z / norm) @ w["W_dec"] + w["b_dec"]) * scale + mean


def answers_as(sae: SparseAutoencoder, kind: str, **settings: Any) -> None:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.5
    latents, y = theirs(x.numpy().astype(np.float64), kind, **settings)
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y, atol=2e-5)
    assert (latents > 0).any()


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("how", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["standard", "gated", "topk", "jumprelu"])
def test_a_file_answers_as_saelens_does(tmp_path: Path, kind: str, how: str, apply: bool) -> None:
    more = {"k": 2} if kind == "topk" else {}
    path = save(tmp_path / "sae", kind, apply_b_dec_to_input=apply, normalize_activations=how, **more)
    answers_as(load_sae(path, "cpu"), kind, apply=apply, how=how)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("apply", [True, False])
def test_what_is_chosen_by_decoder_norm_is_folded(tmp_path: Path, kind: str, rescale: bool, apply: bool) -> None:
    path = save(tmp_path / "sae", kind, k=2, rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=apply)
    answers_as(load_sae(path, "cpu"), kind, rescale=rescale, apply=apply)


def test_a_latent_without_a_direction_stays_finite(tmp_path: Path) -> None:
    weights = tensors("topk")
    weights["W_dec"][2] = 0
    sae = load_sae(save(tmp_path / "sae", "topk", weights, k=2, rescale_acts_by_decoder_norm=True), "cpu")
    assert bool(sae(torch.randn(N, D)).isfinite().all())


def test_fewer_positive_pre_activations_than_k(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path / "sae", "topk", k=4), "cpu")
    answers_as(sae, "topk", k=4)
    assert bool((sae.encode(torch.randn(N, D)).to_dense() > 0).sum(1).lt(4).any())


def test_a_log_threshold_is_that_of_a_training_file(tmp_path: Path) -> None:
    weights = tensors("standard") | {"log_threshold": torch.full((S,), -0.5)}
    sae = load_sae(save(tmp_path / "sae", "jumprelu", weights), "cpu")
    torch.testing.assert_close(sae.threshold, torch.full((S,), float(np.exp(-0.5))))


@pytest.mark.parametrize(
    ("said", "kind", "k"),
    [
        ({"architecture": "absent", "hook_point": "blocks.7.hook_resid_post"}, "standard", 2),
        ({"architecture": "absent", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "topk", 3),
        ({"architecture": "standard", "activation_fn": "topk", "activation_fn_kwargs": {"k": 3}}, "topk", 3),
        ({"architecture": "gated", "activation_fn_str": "relu", "normalize_activations": False}, "gated", 2),
    ],
)
def test_files_of_before_version_6(tmp_path: Path, said: dict[str, Any], kind: str, k: int) -> None:
    sae = load_sae(save(tmp_path / "sae", kind, **{"metadata": "absent", "sae_lens_version": "3.9.2", **said}), "cpu")
    answers_as(sae, kind, k=k)
    assert sae.config.metadata.get("layer") == (7 if "hook_point" in said else None)


@pytest.mark.parametrize("finetuned", [True, False])
def test_a_finetuned_scale_is_of_what_is_decoded(tmp_path: Path, finetuned: bool) -> None:
    plain = load_sae(save(tmp_path / "sae", "standard"), "cpu")
    weights = tensors("standard") | {"scaling_factor": torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0])}
    if not finetuned:
        weights["scaling_factor"] = torch.ones(S)
    path = save(tmp_path / "tuned", "standard", weights, finetuning_scaling_factor=finetuned)
    sae = load_sae(path, "cpu")
    x = torch.randn(N, D)
    assert torch.equal(sae.encode(x).to_dense(), plain.encode(x).to_dense())
    expected = plain.encode(x).to_dense() * weights["scaling_factor"] @ plain.W_dec + plain.b_dec
    torch.testing.assert_close(sae(x), expected)


@pytest.mark.parametrize(
    "kind",
    [
        "abstopk",
        "matching_pursuit",
        "temporal",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ],
)
def test_what_is_no_such_autoencoder_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=f"holds SAELens's {kind}, which this patchsae does not represent: it "):
        load_sae(save(tmp_path / "sae", kind), "cpu")


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        ("standard", {"architecture": "wavelet"}, "architecture wavelet; this patchsae reads standard, topk"),
        ("standard", {"architecture": ["standard"]}, "architecture is .'standard'.; expected text"),
        ("standard", {"activation_fn": "tanh-relu"}, "activation tanh-relu; this patchsae reads relu and topk"),
        ("standard", {"d_sae": 6}, "d_sae is 6, and the tensors have S = 5"),
        ("standard", {"d_in": True}, "d_in is True"),
        ("standard", {"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input is yes; expected true or false"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "normalises its input by covariance_whitening"),
        ("topk", {"k": 6}, "k=6; expected 1 <= k <= d_sae = 5"),
        ("topk", {"k": None}, "expected k with 'topk'"),
    ],
)
def test_settings_that_say_otherwise_are_refused(tmp_path: Path, kind: str, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        load_sae(save(tmp_path / "sae", kind, **said), "cpu")
    assert str(tmp_path / "sae") in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        ("jumprelu", "threshold", None, "has no threshold; expected that of a jumprelu SAE"),
        ("batchtopk", "topk_threshold", None, "has no topk_threshold; expected that of a batchtopk SAE"),
        ("gated", "r_mag", None, "has no r_mag; expected W_enc, W_dec"),
        ("standard", "W_skip", torch.zeros(D, D), "also holds W_skip"),
        ("standard", "b_enc", torch.full((S,), torch.inf), "b_enc has 5 entries that are NaN or infinite"),
        ("standard", "W_enc", torch.zeros(S, D), r"W_enc has shape|W_dec has shape|b_enc has shape"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, kind: str, name: str, values: torch.Tensor | None, message: str
) -> None:
    weights = tensors(kind) | ({} if values is None else {name: values})
    if values is None:
        del weights[name]
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path / "sae", kind, weights), "cpu")


def test_a_factor_that_was_not_folded_is_warned_of_until_it_is_given(tmp_path: Path) -> None:
    path = save(tmp_path / "sae", "standard", normalize_activations="expected_average_only_in")
    with pytest.warns(UserWarning, match="did not fold the factor"):
        load_sae(path, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae = load_sae(path, "cpu", std=2.0)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    latents, y = theirs(x.numpy().astype(np.float64) / 2, "standard")
    np.testing.assert_allclose(sae.encode(x).to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae(x).detach().numpy(), y * 2, atol=2e-5)


def test_what_was_understood(tmp_path: Path) -> None:
    said = {"model_name": "ViT-B-16", "hook_name": "blocks.11.hook_resid_pre", "sae_lens_version": "6.1.0"}
    sae = load_sae(save(tmp_path / "sae", "topk", k=2, apply_b_dec_to_input=False, metadata=said), "cpu")
    expected = "saelens topk: topk 2, D 3, S 5; b_dec not subtracted, tokens as they are; ViT-B-16, output of block 10"
    assert understood.line(sae.config).startswith(expected)
    assert "; b_dec subtracted" in understood.line(load_sae(save(tmp_path / "a", "standard"), "cpu").config)
    other = save(tmp_path / "other", "standard", metadata=said | {"hook_name": "blocks.3.attn.hook_z"})
    assert load_sae(other, "cpu").config.metadata["hook"] == "blocks.3.attn.hook_z"


@pytest.mark.parametrize("normalise", ["none", "layer_norm", "norm_rescale"])
@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("topk", 2), ("jumprelu", None)])
def test_what_is_written_is_read_as_the_same(tmp_path: Path, activation: str, k: int | None, normalise: str) -> None:
    metadata = {"model": "ViT-B-16", "pretrained": "openai", "layer": -2, "tokens": "all"}
    sae = SparseAutoencoder(SAEConfig(D, S, activation, k, metadata, normalise))
    if activation == "jumprelu":
        sae.threshold.uniform_(0, 0.5)
    write(sae, tmp_path / "out", to="saelens")
    again = load_sae(tmp_path / "out", "cpu")
    x = torch.randn(N, D)
    assert torch.equal(again.encode(x).to_dense(), sae.encode(x).to_dense())
    assert torch.equal(again(x), sae(x))
    assert {key: again.config.metadata[key] for key in metadata} == metadata


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            SAEConfig(D, S, "topk_no_relu", 2),
            "saelens cannot hold the activation topk_no_relu; it holds relu",
        ),
        (SAEConfig(D, S, normalise="unit_norm"), "saelens cannot hold what this SAE does to its input"),
        (SAEConfig(D, S, soft_cap=2.0), "saelens cannot hold latents that are capped"),
    ],
)
def test_what_saelens_cannot_hold_is_not_written(tmp_path: Path, config: SAEConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(SparseAutoencoder(config), tmp_path / "out", to="saelens")
    assert not (tmp_path / "out").exists()


def test_a_format_that_is_only_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to='patchsae-pt'; expected one of .*saelens"):
        write(SparseAutoencoder(SAEConfig(D, S)), tmp_path / "out", to="patchsae-pt")


def test_what_its_training_found_is_what_it_promises(tmp_path: Path) -> None:
    path = save(tmp_path / "sae", "standard")
    rates = torch.tensor([0.5, 0.25, 0.0, 1e-3, 0.0])
    save_file({"sparsity": torch.log10(rates + 1e-10)}, path / "sparsity.safetensors")
    said = load_sae(path, "cpu").config.metadata
    assert said["l0"] == pytest.approx(0.751)
    assert said["dead"] == pytest.approx(0.4)
    save_file({"sparsity": torch.zeros(S + 1)}, path / "sparsity.safetensors")
    with pytest.raises(ValueError, match="latents is 5, and the tensors have S = 6"):
        load_sae(path, "cpu")


def test_the_k_of_its_batches_is_what_it_promises(tmp_path: Path) -> None:
    trained = {"training_architecture": "batchtopk", "training_architecture_details": {"k": 3}}
    assert load_sae(save(tmp_path / "a", "jumprelu", metadata=trained), "cpu").config.metadata["l0"] == 3
    assert "l0" not in load_sae(save(tmp_path / "b", "jumprelu"), "cpu").config.metadata


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"architecture": "absent", "k": 2}, "says its k and no architecture, as no SAE of SAELens does"),
        ({"architecture": "absent", "activation": "topk"}, "says its activation and no architecture"),
        ({"architecture": "absent", "activation_fn_str": "topk"}, "activation_fn_kwargs say no k"),
    ],
)
def test_what_only_looks_like_saelens_is_not_read_as_relu(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path / "sae", "standard", **said), "cpu")


def test_a_scale_of_latents_that_nothing_explains_is_refused(tmp_path: Path) -> None:
    weights = tensors("standard") | {"scaling_factor": torch.full((S,), 2.0)}
    with pytest.raises(ValueError, match="a scaling_factor that is not 1, and does not say that it was finetuned"):
        load_sae(save(tmp_path / "sae", "standard", weights), "cpu")


def test_the_factor_of_its_training_lies_beside_the_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "sae", "standard", normalize_activations="expected_average_only_in")
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae = load_sae(path, "cpu")
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    latents, y = theirs(x.numpy().astype(np.float64) / 2, "standard")
    np.testing.assert_allclose(sae.encode(x).to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae(x).detach().numpy(), y * 2, atol=2e-5)
    assert "x times 0.5" in understood.line(sae.config)
    (path / "activation_scaler.json").write_text('{"scaling_factor": "much"}')
    with pytest.raises(ValueError, match=r"activation_scaler\.json: scaling_factor is much; expected a positive"):
        load_sae(path, "cpu")


def test_a_folder_of_training_holds_more_than_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "sae", "standard")
    save_file({"state": torch.zeros(2)}, path / "activations_store_state.safetensors")
    torch.save({}, path / "trainer_state.pt")
    answers_as(load_sae(path, "cpu"), "standard")


@pytest.mark.parametrize(
    ("metadata", "written"),
    [
        ({"model": "ViT-B-16", "layer": 10}, {"model_name": "ViT-B-16", "hook_name": "blocks.10.hook_resid_post"}),
        ({"layer": -2}, {"layer": -2}),
        ({"hook": "blocks.3.hook_mlp_out"}, {"hook_name": "blocks.3.hook_mlp_out"}),
        ({}, {}),
    ],
)
def test_tower_and_place_are_written_in_saelens_own_words(tmp_path: Path, metadata: dict, written: dict) -> None:
    write(SparseAutoencoder(SAEConfig(D, S, metadata=metadata)), tmp_path, to="saelens")
    said = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    own = {key: said.get(key) for key in ("model_name", "hook_name")}
    assert own == {"model_name": written.get("model_name"), "hook_name": written.get("hook_name")}
    assert written.items() <= said.items()


def test_a_file_that_says_all_takes_no_mean(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="says itself what it encodes: tokens as they are"):
        load_sae(save(tmp_path / "sae", "standard"), "cpu", mean=0.5)


def test_a_threshold_of_a_standard_sae_is_not_passed_over(tmp_path: Path) -> None:
    weights = tensors("standard") | {"threshold": torch.ones(S), "topk_threshold": torch.tensor(1.0)}
    with pytest.raises(ValueError, match="also holds threshold, topk_threshold"):
        load_sae(save(tmp_path / "sae", "standard", weights), "cpu")


def test_a_gated_file_may_hold_a_bias_that_nothing_uses(tmp_path: Path) -> None:
    weights = tensors("gated") | {"b_enc": torch.full((S,), 9.0)}
    answers_as(load_sae(save(tmp_path / "sae", "gated", weights), "cpu"), "gated")


@pytest.mark.parametrize("text", ["{}", "[]", '{"scaling_factor": null}'])
def test_a_scaler_that_says_no_factor_decides_nothing(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "sae", "standard", normalize_activations="expected_average_only_in")
    (path / "activation_scaler.json").write_text(text)
    with pytest.warns(UserWarning, match="did not fold the factor"):
        load_sae(path, "cpu")


def test_behind_a_line_of_json_it_is_not_saelenss(tmp_path: Path) -> None:
    path = save(tmp_path / "sae", "standard")
    (path / "sae_weights.safetensors").unlink()
    with (path / "sae.pt").open("wb") as file:
        file.write(b'{"schema": 5, "cfg": {"activation": {"cls": "Relu", "params": {}}}}\n')
        torch.save(tensors("standard"), file)
    assert load_sae(path, "cpu").config.metadata["format"] == "saev"


@pytest.mark.parametrize(("said", "asks"), [(True, True), (False, False), (None, False), ("absent", False)])
def test_before_version_6_a_factor_was_a_flag(tmp_path: Path, said: object, asks: bool) -> None:
    path = save(tmp_path / "sae", "standard", normalize_activations=said)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        answers_as(load_sae(path, "cpu"), "standard")
    assert any("did not fold the factor" in str(warning.message) for warning in warned) == asks
