"""ViSAEBench: its own evaluation of a file, on tokens that it normalises before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from overcomplete.sae import BatchTopKSAE, JumpSAE, TopKSAE
from safetensors.torch import save_file
from torch import Tensor
from visaebench.hub.loader import load_sae as load_theirs

from patchsae import SparseAutoencoder, load_sae
from tests.peers.same import D, K, S, loaded, randomise, require_same, tokens

MEAN, STD = torch.linspace(-1, 1, D), 1.7
INPUT = {"mean": MEAN, "std": STD}
SIZES = {"input_dim": D, "hidden_dim": S, "expansion_factor": 2.5}
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"activation": "topk", "k": K},
    "topk, as sae_type": {"sae_type": "TopK", "k": K},
    "batchtopk": {"activation": "batchtopk", "k": K, "threshold": 0.7},
    "batchtopk, as architecture": {"architecture": "BatchTopK", "threshold": 0.7},
    "jumprelu": {"activation": "jumprelu"},
}


def weights(bias: bool = True) -> dict[str, Tensor]:
    """Tensors by its own names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (S, D), "encoder.bias": (S,), "decoder.weight": (S, D), "decoder.bias": (D,)}
    made = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return made if bias else {name: tensor for name, tensor in made.items() if name != "decoder.bias"}


def require_read_alike(folder: Path, found: SparseAutoencoder) -> None:
    """Its latents of (x - mean) / std are ours of x, and so are reconstructions where it is undone."""
    sae, x = load_theirs(str(folder), device="cpu"), tokens()
    latents, reconstruction = sae((x - MEAN) / STD)
    require_same(found, x, latents, reconstruction * STD + MEAN)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_names(tmp_path: Path, kind: str, bias: bool) -> None:
    tensors = weights(bias)
    if kind == "jumprelu":
        tensors["jump_thresholds"] = torch.linspace(-0.5, 1.5, S)
    torch.save(tensors, tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(json.dumps(SIZES | KINDS[kind]))
    require_read_alike(tmp_path, loaded(tmp_path, **INPUT))


@pytest.mark.parametrize(("kind", "kept"), [("batchtopk", True), ("jumprelu", False)])
def test_a_latent_on_its_threshold(tmp_path: Path, kind: str, kept: bool) -> None:
    tensors = weights()
    tensors["encoder.weight"][3], tensors["encoder.bias"][3] = 0, KINDS["batchtopk"]["threshold"]
    if kind == "jumprelu":
        tensors["jump_thresholds"] = torch.full((S,), KINDS["batchtopk"]["threshold"])
    torch.save(tensors, tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(json.dumps(SIZES | KINDS[kind]))
    assert bool((load_theirs(str(tmp_path), device="cpu").encode(tokens())[:, 3] > 0).all()) is kept
    require_read_alike(tmp_path, loaded(tmp_path, **INPUT))


@pytest.mark.parametrize("weights_file", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("config_file", ["config.yaml", "config.yml"])
def test_the_files_that_it_looks_for(tmp_path: Path, weights_file: str, config_file: str) -> None:
    (save_file if weights_file.endswith(".safetensors") else torch.save)(weights(), tmp_path / weights_file)
    (tmp_path / config_file).write_text(yaml.safe_dump(SIZES | KINDS["batchtopk"]))
    require_read_alike(tmp_path, loaded(tmp_path, **INPUT))


@pytest.mark.parametrize("kind", [TopKSAE, BatchTopKSAE, JumpSAE])
def test_the_names_of_overcomplete_in_its_own_way(tmp_path: Path, kind: type) -> None:
    """Atoms are not normalised, thresholds no logarithms, and the running threshold is a tensor beside the others."""
    sae = kind(D, S, dictionary_params={"use_multiplier": True})
    randomise(sae)
    running = {"_running_threshold": torch.tensor(0.7)} if kind is BatchTopKSAE else {}
    torch.save({**sae.state_dict(), **running}, tmp_path / "sae.pt")
    name = {TopKSAE: "topk", BatchTopKSAE: "batchtopk", JumpSAE: "jumprelu"}[kind]
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"activation": name, "k": K}))
    require_read_alike(tmp_path, loaded(tmp_path, **INPUT))


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_what_it_takes_where_the_file_says_no_threshold(tmp_path: Path, kind: str) -> None:
    torch.save(weights(), tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"activation": kind}))
    with pytest.warns(UserWarning, match="as ViSAEBench does"):
        found = load_sae(tmp_path, **INPUT)
    require_read_alike(tmp_path, found)
