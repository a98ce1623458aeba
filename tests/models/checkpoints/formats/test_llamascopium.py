"""Llamascopium's files, written by hand at D 3 and S 5, against its formulas in numpy."""

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
from patchsae.disk import archives
from patchsae.models.checkpoints import understood
from patchsae.models.sae import SparseAutoencoder
from tests import malice

D, S, K, N = 3, 5, 2, 60
HOOK = "blocks.7.hook_resid_post"
SHAPES = {"W_E": (D, S), "b_E": (S,), "W_D": (S, D), "b_D": (D,)}
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
AVERAGE = f"dataset_average_activation_norm.{HOOK}"
Array = NDArray[np.float64]


def tensors(kind: str = "relu", **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if kind == "jumprelu":
        found[LOG_THRESHOLD] = torch.tensor([-9.0, -1.0, -0.5, 0.0, 0.7])
    return found | {AVERAGE: torch.tensor(4.0)} | changes


def save(folder: Path, kind: str, weights: dict[str, torch.Tensor] | None = None, **said: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(kind) if weights is None else weights, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config(kind, **said)))
    return folder


def config(kind: str, **said: Any) -> dict[str, Any]:
    record = {"sae_type": "sae", "d_model": D, "expansion_factor": S / D, "use_decoder_bias": True, "act_fn": kind}
    record |= {"norm_activation": "inference", "sparsity_include_decoder_norm": False, "top_k": K}
    record |= {"hook_point_in": HOOK, "hook_point_out": HOOK, "use_glu_encoder": False} | said
    return {key: value for key, value in record.items() if value != "absent"}


def theirs(x: Array, kind: str, norm: str, by_length: bool, w: dict[str, torch.Tensor]) -> tuple[Array, Array]:
    """Its latents, and the reconstruction."""
    v = {name: tensor.double().numpy() for name, tensor in w.items()}
    factor: Any = {"inference": 1.0, "dataset-wise": np.sqrt(D) / 4.0}.get(norm)
    if norm == "token-wise":
        factor = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    length = np.linalg.norm(v["W_D"], axis=1) if by_length else np.ones(S)
    pre = (x * factor @ v["W_E"] + v["b_E"]) * length
    z = np.maximum(pre, 0)
    if kind == "topk":
        z = np.where(z >= -np.sort(-z, axis=1)[:, K - 1 : K], z, 0)
    if kind == "jumprelu":
        z = np.where(pre > np.exp(v[LOG_THRESHOLD]), pre, 0)
    z = z / length
    return z, (z @ v["W_D"] + v.get("b_D", 0)) / factor


def answers_as(
    sae: SparseAutoencoder, kind: str, norm: str = "inference", by_length: bool = False, w: Any = None
) -> None:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.5
    w = tensors(kind) if w is None else w
    latents, y = theirs(x.double().numpy(), kind, norm, by_length, w)
    z = sae.encode(x)
    scale = np.linalg.norm(w["W_D"].double().numpy(), axis=1) if by_length and kind == "topk" else 1.0
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents * scale, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y, atol=2e-5)
    assert (latents > 0).any()
    assert (latents == 0).any()


def quietly(path: Path, **answers: Any) -> SparseAutoencoder:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_sae(path, "cpu", **answers)


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("norm", ["inference", "dataset-wise", "token-wise"])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_file_answers_as_llamascopium_does(tmp_path: Path, kind: str, norm: str, by_length: bool) -> None:
    path = save(tmp_path / "sae", kind, norm_activation=norm, sparsity_include_decoder_norm=by_length)
    answers_as(quietly(path), kind, norm, by_length)


def test_what_is_not_said_is_as_the_library_has_it(tmp_path: Path) -> None:
    keys = ("sae_type", "use_decoder_bias", "act_fn", "norm_activation", "sparsity_include_decoder_norm", "d_model")
    path = save(tmp_path / "sae", "relu", **dict.fromkeys((*keys, "use_glu_encoder"), "absent"))
    answers_as(quietly(path), "relu", "dataset-wise", True)


def test_without_a_decoder_bias(tmp_path: Path) -> None:
    w = {name: tensor for name, tensor in tensors().items() if name != "b_D"}
    sae = quietly(save(tmp_path / "sae", "relu", w, use_decoder_bias=False))
    answers_as(sae, "relu", w=w)
    assert sae.config.metadata["b_dec"] == "no b_dec"


def test_an_average_that_means_nothing_is_not_looked_at(tmp_path: Path) -> None:
    answers_as(quietly(save(tmp_path / "sae", "relu", tensors(**{AVERAGE: torch.tensor(torch.nan)}))), "relu")


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_latent_without_a_direction_is_never_chosen_by_length(tmp_path: Path, kind: str) -> None:
    w = tensors(kind)
    w["W_D"][2] = 0
    sae = quietly(save(tmp_path / "sae", kind, w, sparsity_include_decoder_norm=True))
    z = sae.encode(torch.randn(N, D) * 3).to_dense()
    assert bool((z[:, 2] == 0).all())
    assert bool((z > 0).any())


def test_a_threshold_is_strict(tmp_path: Path) -> None:
    w = tensors("jumprelu", W_E=torch.zeros(D, S), b_D=torch.zeros(D), **{LOG_THRESHOLD: torch.zeros(S)})
    w["b_E"] = torch.tensor([1.0, 1.00001, 0.9, 2.0, 1.0])
    kept = quietly(save(tmp_path / "sae", "jumprelu", w)).encode(torch.zeros(1, D)).to_dense()
    assert (kept > 0).tolist() == [[False, True, False, True, False]]


@pytest.mark.parametrize("by_length", [True, False])
def test_a_batchtopk_is_a_topk_of_one_token_unless_it_is_said(tmp_path: Path, by_length: bool) -> None:
    path = save(tmp_path / "sae", "batchtopk", sparsity_include_decoder_norm=by_length)
    with pytest.warns(UserWarning, match="batchtopk chooses among all tokens of a batch; taken as topk 2, which it is"):
        answers_as(load_sae(path, "cpu"), "topk", by_length=by_length)
    assert quietly(path, k=3).config.k == 3
    z = quietly(path, threshold=0.5).encode(torch.randn(N, D) * 3).to_dense()
    assert bool((z > 0).any())
    assert bool((z[z > 0] >= 0.5).all())


def test_a_factor_that_is_not_said_is_warned_of(tmp_path: Path) -> None:
    w = {name: tensor for name, tensor in tensors().items() if name != AVERAGE}
    path = save(tmp_path / "sae", "relu", w, norm_activation="dataset-wise")
    with pytest.warns(
        UserWarning, match="scaled to an average length of sqrt\\(D\\), and does not say by which factor"
    ):
        answers_as(load_sae(path, "cpu"), "relu")
    answers_as(quietly(path, std=4.0 / D**0.5), "relu", "dataset-wise")


@pytest.mark.parametrize("average", [0.0, -1.0, torch.inf, torch.nan])
def test_an_average_that_is_no_length_is_refused(tmp_path: Path, average: float) -> None:
    path = save(tmp_path / "sae", "relu", tensors(**{AVERAGE: torch.tensor(average)}), norm_activation="dataset-wise")
    with pytest.raises(ValueError, match=r"safetensors: the average length of its tokens is .*; expected a positive"):
        load_sae(path, "cpu")


def test_what_training_left_in_a_folder_of_its_own(tmp_path: Path) -> None:
    save(tmp_path, "jumprelu")
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "final.pt"
    torch.save({"sae": tensors("jumprelu"), "version": "2.0.0"}, file)
    answers_as(quietly(file), "jumprelu")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"final\.pt has no config\.json beside it, which says its activation"):
        load_sae(file, "cpu")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"sae_type": "crosscoder"}, "holds a crosscoder, which .* does not represent: it reads several activations"),
        ({"sae_type": "clt"}, "holds a clt, .* it reconstructs other activations"),
        ({"sae_type": "lorsa"}, "holds a lorsa, .* by attention to the tokens before it"),
        ({"sae_type": "molt"}, "holds a molt, .* by a choice of linear maps"),
        ({"sae_type": "new"}, "has the sae_type new; this patchsae reads sae"),
        ({"use_glu_encoder": True}, "has a GLU encoder"),
        ({"hook_point_out": "blocks.7.hook_mlp_out"}, "holds a transcoder, which reconstructs another activation"),
        ({"act_fn": "layertopk"}, "has the activation layertopk; this patchsae reads relu, jumprelu, topk, batchtopk"),
        ({"act_fn": 3}, "act_fn is 3; expected text"),
        ({"act_fn": "jumprelu"}, f"has no {LOG_THRESHOLD}"),
        ({"act_fn": "topk", "top_k": 6}, "k=6; expected 1 <= k <= d_sae = 5"),
        ({"act_fn": "topk", "top_k": True}, "k=True; expected an integer"),
        ({"norm_activation": "batch-wise"}, "scales each token by the average length in its batch"),
        ({"norm_activation": "other"}, "has norm_activation other; this patchsae reads inference"),
        ({"sparsity_include_decoder_norm": "yes"}, "sparsity_include_decoder_norm is yes; expected true or false"),
        ({"use_decoder_bias": False}, "also holds b_D; expected W_E, b_E, W_D"),
        ({"d_model": 4}, "d_model is 4, and the tensors have D = 3"),
        ({"d_sae": 10**12}, "d_sae is 1000000000000, and the tensors have S = 5"),
        ({"expansion_factor": 10**400}, "expansion_factor is 1000.* and the tensors have S / D = 5 / 3"),
        ({"expansion_factor": 2}, "expansion_factor is 2, and the tensors have S / D = 5 / 3"),
    ],
)
def test_a_configuration_that_says_otherwise_is_refused(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load_sae(save(tmp_path / "sae", "relu", **said), "cpu")
    assert "sae_weights.safetensors" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("W_E_glu", torch.zeros(D, S), "has a GLU encoder, whose latents are products"),
        ("W_E", torch.zeros(2, D, S), r"W_E has shape \(2, 3, 5\); expected \[D, S\]"),
        ("W_D", torch.zeros(D, S), r"W_D has shape \(3, 5\); expected \[S, D\] = \(5, 3\): transpose it"),
        ("b_D", torch.full((D,), torch.nan), "b_D has 3 entries that are NaN"),
        ("b_E", torch.zeros(S, dtype=torch.int64), "b_E has dtype int64"),
        (LOG_THRESHOLD, torch.zeros(S), f"also holds {LOG_THRESHOLD}"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, name: str, values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path / "sae", "relu", tensors(**{name: values})), "cpu")


def test_a_threshold_beyond_float32_is_refused(tmp_path: Path) -> None:
    weights = tensors("jumprelu", **{LOG_THRESHOLD: torch.full((S,), 200.0)})
    with pytest.raises(ValueError, match=r"safetensors: threshold has 5 entries that are NaN or infinite"):
        load_sae(save(tmp_path / "sae", "jumprelu", weights), "cpu")


@pytest.mark.parametrize("name", list(malice.payloads(Path("unused"))))
def test_nothing_in_it_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "sae_weights.pt"
    path.write_bytes(malice.archive(malice.payloads(marker)[name][1]))
    (tmp_path / "config.json").write_text(json.dumps(config("relu")))
    with pytest.raises(archives.UnsafeFileError, match=r"sae_weights\.pt asks for"):
        load_sae(path, "cpu")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            {},
            "relu: relu, D 3, S 5; b_dec not subtracted, tokens as they are; a tower that is not said, output of",
        ),
        (
            {"norm_activation": "dataset-wise", "hook_point_in": "h.mlp", "hook_point_out": "h.mlp"},
            "relu: relu, D 3, S 5; b_dec not subtracted, tokens as they are; a tower that is not said, h.mlp",
        ),
        (
            {"norm_activation": "token-wise", "act_fn": "topk", "sparsity_include_decoder_norm": True},
            "topk, latents times the length of their rows of W_D: topk 2, D 3, S 5; b_dec not subtracted, each token "
            "scaled to length sqrt(D); a tower that is not said, output of block 7",
        ),
    ],
)
def test_what_was_understood_is_said(
    tmp_path: Path, said: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = said.get("hook_point_in", HOOK)
    weights = tensors() | {f"dataset_average_activation_norm.{hook}": torch.tensor(4.0)}
    sae = load_sae(save(tmp_path / "sae", "relu", weights, **said), "cpu")
    if said.get("norm_activation") == "dataset-wise":
        line = line.replace("tokens as they are", "x / 2.3094")
    assert capsys.readouterr().err.startswith(f"sae: llamascopium {line}")
    assert understood.line(sae.config).startswith(f"llamascopium {line}")
