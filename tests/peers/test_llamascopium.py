"""Llamascopium (OpenMOSS, once lm-saes): what its autoencoders save, on tokens that it normalises before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llamascopium import SAEConfig, SparseAutoEncoder
from torch import Tensor

from patchsae import load_sae
from tests.peers.same import D, K, S, loaded, randomise, require_same, tokens

HOOK = "blocks.8.hook_resid_post"
ACTIVATIONS = ("relu", "jumprelu", "topk")


def saved(folder: Path, **settings: Any) -> SparseAutoEncoder:
    said = {"hook_point_in": HOOK, "hook_point_out": HOOK, "d_model": D, "expansion_factor": S / D, "top_k": K}
    sae = SparseAutoEncoder(SAEConfig(**said | {"dtype": torch.float32, "device": "cpu"} | settings))
    randomise(sae)
    sae.set_dataset_average_activation_norm({HOOK: 7.3})
    sae.save_pretrained(folder)
    sae.cfg.save_hyperparameters(folder)
    return sae


@torch.no_grad()
def answers(sae: SparseAutoEncoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and the reconstruction of tokens as they are; where the choice of a top-k is by length, latents too."""
    normalised, factors = sae.normalize_activations({HOOK: x}, return_scale_factor=True)
    latents = sae.encode(normalised[HOOK])
    reconstruction = sae.denormalize_activations({HOOK: sae.decode(latents)}, factors)[HOOK]
    by_length = sae.cfg.act_fn == "topk" and sae.cfg.sparsity_include_decoder_norm
    return latents * sae.W_D.norm(dim=1) if by_length else latents, reconstruction


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("norm", ["inference", "token-wise", "dataset-wise"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_autoencoder(tmp_path: Path, activation: str, norm: str, by_length: bool) -> None:
    sae = saved(tmp_path, act_fn=activation, norm_activation=norm, sparsity_include_decoder_norm=by_length)
    require_same(loaded(tmp_path), tokens(), *answers(sae, tokens()))


def test_an_autoencoder_without_a_bias_of_its_decoder(tmp_path: Path) -> None:
    sae = saved(tmp_path, use_decoder_bias=False, norm_activation="inference")
    require_same(loaded(tmp_path), tokens(), *answers(sae, tokens()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_average_length_that_is_folded(tmp_path: Path, activation: str) -> None:
    sae = saved(tmp_path, act_fn=activation)
    sae.save_pretrained(tmp_path, fold_activation_scale=True)
    sae.cfg.save_hyperparameters(tmp_path)
    assert sae.cfg.norm_activation == "inference"
    require_same(loaded(tmp_path), tokens(), *answers(sae, tokens()))


def test_what_is_saved_by_torch(tmp_path: Path) -> None:
    sae = saved(tmp_path, act_fn="jumprelu")
    (tmp_path / "sae_weights.safetensors").unlink()
    sae.save_checkpoint(tmp_path / "sae_weights.pt")
    require_same(loaded(tmp_path), tokens(), *answers(sae, tokens()))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_glu_encoder": True}, "GLU encoder"),
        ({"hook_point_out": "blocks.8.hook_mlp_out"}, "transcoder"),
        ({"norm_activation": "batch-wise"}, "average length in its batch"),
    ],
)
def test_what_is_no_sae_of_ours_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    saved(tmp_path, **settings)
    with pytest.raises(ValueError, match=reason):
        load_sae(tmp_path)
