"""sparsify's files, written by hand at D 3 and S 5, against its formula in numpy; and ours as sparsify reads them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae import load_sae
from patchsae.models.checkpoints import understood, write
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

D, S, K, N = 3, 5, 2, 60
SHAPES = {"encoder.weight": (S, D), "encoder.bias": (S,), "W_dec": (S, D), "b_dec": (D,)}


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} | changes


def save(folder: Path, weights: dict[str, torch.Tensor] | None = None, **said: Any) -> Path:
    """A folder as theirs; ``config=False`` leaves the configuration out."""
    folder.mkdir(exist_ok=True)
    save_file(tensors() if weights is None else weights, folder / "sae.safetensors")
    if said.pop("config", True):
        record = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": S, "k": K}
        record |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D} | said
        (folder / "cfg.json").write_text(json.dumps({key: v for key, v in record.items() if v != "absent"}))
    return folder


def answers_as(sae: SparseAutoencoder, w: dict[str, torch.Tensor], k: int = K) -> None:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.5
    v = {name: tensor.double().numpy() for name, tensor in w.items()}
    z = np.maximum((x.double().numpy() - v["b_dec"]) @ v["encoder.weight"].T + v["encoder.bias"], 0)
    z = np.where(z >= -np.sort(-z, axis=1)[:, k - 1 : k], z, 0)
    found = sae.encode(x)
    np.testing.assert_allclose(found.to_dense().detach().numpy(), z, atol=1e-5)
    np.testing.assert_allclose(sae.decode(found).detach().numpy(), z @ v["W_dec"] + v["b_dec"], atol=2e-5)
    assert (z > 0).any()


def quietly(path: Path, **answers: Any) -> SparseAutoencoder:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_sae(path, "cpu", **answers)


def test_a_file_answers_as_sparsify_does(tmp_path: Path) -> None:
    answers_as(quietly(save(tmp_path / "sae")), tensors())


def test_a_token_keeps_fewer_than_k_where_fewer_are_positive(tmp_path: Path) -> None:
    w = tensors(**{"encoder.bias": torch.full((S,), -3.0)})
    sae = quietly(save(tmp_path / "sae", w, k=4))
    answers_as(sae, w, 4)
    assert bool((sae.encode(torch.randn(N, D)).to_dense() > 0).sum(1).lt(4).any())


def test_weights_in_bfloat16_are_widened(tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in tensors().items()}
    answers_as(quietly(save(tmp_path / "sae", half)), half)


def test_sizes_of_before_num_latents(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (2 * D, D), "encoder.bias": (2 * D,), "W_dec": (2 * D, D), "b_dec": (D,)}
    w = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    answers_as(quietly(save(tmp_path / "sae", w, num_latents=0, expansion_factor=2)), w)
    with pytest.raises(ValueError, match=r"d_in \* expansion_factor is 9, and the tensors have S = 6"):
        load_sae(save(tmp_path / "other", w, num_latents="absent", expansion_factor=3), "cpu")


def test_a_k_that_is_not_said_is_that_of_the_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (40, D), "encoder.bias": (40,), "W_dec": (40, D), "b_dec": (D,)}
    w = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    answers_as(quietly(save(tmp_path / "sae", w, num_latents=40, k="absent")), w, 32)


def test_without_a_configuration_k_has_to_be_said(tmp_path: Path) -> None:
    path = save(tmp_path / "sae", config=False)
    with pytest.raises(ValueError, match=r"sae\.safetensors: without its cfg\.json it does not say how many latents"):
        load_sae(path, "cpu")
    answers_as(quietly(path, k=K), tensors())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"activation": "groupmax"}, "has the activation groupmax; this patchsae reads topk"),
        ({"activation": 3}, "activation is 3; expected text"),
        ({"transcode": True}, "holds a transcoder, which reconstructs another activation than the one it reads"),
        ({"transcode": "no"}, "transcode is no; expected true or false"),
        ({"skip_connection": True}, "has a skip connection, which adds a linear map of the token"),
        ({"signed": True}, "has signed latents, which no activation of this patchsae keeps"),
        ({"k": 6}, "k=6; expected 1 <= k <= d_sae = 5"),
        ({"k": True}, "k=True; expected an integer"),
        ({"k": "all"}, "k='all'; expected an integer"),
        ({"num_latents": 10**12}, "num_latents is 1000000000000, and the tensors have S = 5"),
        ({"num_latents": [5]}, r"num_latents is \[5\], and the tensors have S = 5"),
        ({"d_in": 4}, "d_in is 4, and the tensors have D = 3"),
    ],
)
def test_a_configuration_that_says_otherwise_is_refused(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load_sae(save(tmp_path / "sae", **said), "cpu")
    assert "sae.safetensors" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("W_skip", torch.zeros(D, D), "has a skip connection, which adds a linear map"),
        ("W_enc", torch.zeros(D, S), "also holds W_enc; expected encoder.weight"),
        ("W_dec", torch.zeros(D, S), r"W_dec has shape \(3, 5\); expected \[S, D\] = \(5, 3\): transpose it"),
        ("b_dec", torch.full((D,), torch.inf), "b_dec has 3 entries that are NaN or infinite"),
        ("encoder.bias", torch.zeros(S, dtype=torch.int64), "encoder.bias has dtype int64"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, name: str, values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path / "sae", tensors(**{name: values})), "cpu")


def test_what_was_saved_to_encode_alone_is_refused(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in tensors().items() if name != "W_dec"}
    with pytest.raises(ValueError, match="has no W_dec: it was saved to encode alone"):
        load_sae(save(tmp_path / "sae", weights), "cpu")


@pytest.mark.parametrize(
    ("folder", "where"),
    [("layers.10", "output of block 10"), ("layers.10.mlp", "layers.10.mlp"), ("sae", "a block that is not said")],
)
def test_what_was_understood_is_said(
    tmp_path: Path, folder: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = load_sae(save(tmp_path / folder), "cpu")
    line = f"sparsify topk: topk 2, D 3, S 5; b_dec subtracted, tokens as they are; a tower that is not said, {where}, "
    assert capsys.readouterr().err.startswith(f"sae: {line}")
    assert understood.line(sae.config).startswith(line)


def ours(**metadata: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    config = SAEConfig(D, S, "topk", K, metadata)
    state = {name: torch.randn(shape, generator=generator) for name, shape in config.shapes.items()}
    return SparseAutoencoder.from_tensors(config, state)


def test_ours_come_back(tmp_path: Path) -> None:
    said = {"model": "ViT-B-16", "pretrained": "openai", "layer": 10, "tokens": "all"}
    sae, x = ours(**said), torch.randn(N, D)
    write(sae, tmp_path / "sae", "sparsify")
    back = quietly(tmp_path / "sae")
    assert torch.equal(back.encode(x).to_dense(), sae.encode(x).to_dense())
    assert torch.equal(back(x), sae(x))
    assert said.items() <= back.config.metadata.items()
    weights = load_file(tmp_path / "sae" / "sae.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == SHAPES
    answers_as(sae, weights)
    record = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (record["num_latents"], record["k"], record["d_in"]) == (S, K, D)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SAEConfig(D, S), "cannot hold the activation relu; it holds topk"),
        (SAEConfig(D, S, "topk_no_relu", K), "cannot hold the activation topk_no_relu; it holds topk"),
        (SAEConfig(D, S, "topk", K, normalise="unit_norm"), "cannot hold what this SAE does to its input"),
        (SAEConfig(D, S, "topk", K, soft_cap=2.0), "cannot hold latents that are capped"),
    ],
)
def test_what_sparsify_cannot_say_stays_unwritten(tmp_path: Path, config: SAEConfig, message: str) -> None:
    with pytest.raises(ValueError, match=f"sparsify {message}"):
        write(SparseAutoencoder(config), tmp_path / "sae", "sparsify")
    assert not (tmp_path / "sae").exists()
