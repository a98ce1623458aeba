"""SAELens: what its SAEs save, for inference and to go on training, and what it makes of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, saes

from patchsae import load_sae
from patchsae.models.checkpoints import write
from tests.peers.same import D, K, S, loaded, ours, randomise, require_same, tokens

INFERENCE = {
    "standard": (saes.StandardSAE, saes.StandardSAEConfig, {}),
    "topk": (saes.TopKSAE, saes.TopKSAEConfig, {"k": K}),
    "topk, rescaled": (saes.TopKSAE, saes.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (saes.JumpReLUSAE, saes.JumpReLUSAEConfig, {}),
    "gated": (saes.GatedSAE, saes.GatedSAEConfig, {}),
}
TRAINING = {
    "standard": (saes.StandardTrainingSAE, saes.StandardTrainingSAEConfig, {}),
    "topk": (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig, {"k": K}),
    "topk, not rescaled": (
        saes.TopKTrainingSAE,
        saes.TopKTrainingSAEConfig,
        {"k": K, "rescale_acts_by_decoder_norm": False},
    ),
    "jumprelu": (saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig, {}),
    "gated": (saes.GatedTrainingSAE, saes.GatedTrainingSAEConfig, {}),
}
MATRYOSHKA = {"k": K, "matryoshka_widths": [10, S]}
BATCHED = {
    "batchtopk": (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig, {"k": K}),
    "matryoshka": (saes.MatryoshkaBatchTopKTrainingSAE, saes.MatryoshkaBatchTopKTrainingSAEConfig, MATRYOSHKA),
}
BEFORE: dict[str, dict[str, Any]] = {  # entries of cfg.json before version 6
    "standard": {"hook_point": "blocks.8.hook_resid_post", "normalize_activations": False},
    "topk": {"hook_name": "blocks.8.hook_resid_pre", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
    "jumprelu": {"architecture": "jumprelu", "hook_name": "x", "apply_b_dec_to_input": False},
    "gated": {"architecture": "gated", "hook_name": "x", "normalize_activations": "layer_norm"},
}
TRANSCODER = {"d_out": D, "apply_b_dec_to_input": False}
REFUSED = {
    "abstopk": (saes.AbsTopKSAE, saes.AbsTopKSAEConfig, {"k": K}),
    "matching_pursuit": (saes.MatchingPursuitSAE, saes.MatchingPursuitSAEConfig, {}),
    "temporal": (saes.TemporalSAE, saes.TemporalSAEConfig, {"n_heads": 2, "bottleneck_factor": 4}),
    "transcoder": (saes.Transcoder, saes.TranscoderConfig, TRANSCODER),
    "skip_transcoder": (saes.SkipTranscoder, saes.SkipTranscoderConfig, TRANSCODER),
    "jumprelu_transcoder": (saes.JumpReLUTranscoder, saes.JumpReLUTranscoderConfig, TRANSCODER),
    "jumprelu_skip_transcoder": (saes.JumpReLUSkipTranscoder, saes.JumpReLUSkipTranscoderConfig, TRANSCODER),
}


def theirs(made: tuple[type, type, dict[str, Any]], **settings: Any) -> Any:
    """A SAE of SAELens with weights of no special form, thresholds of both signs among them."""
    kind, config, own = made
    sae = kind(config(D, S, **own, **settings))
    randomise(sae)
    return sae


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", INFERENCE)
def test_a_sae_saved_for_inference(tmp_path: Path, kind: str, normalised: str, apply: bool) -> None:
    sae = theirs(INFERENCE[kind], normalize_activations=normalised, apply_b_dec_to_input=apply)
    sae.save_model(tmp_path)
    x = tokens()
    require_same(loaded(tmp_path), x, sae.encode(x), sae(x))


def test_tokens_that_deviate_little_from_their_mean(tmp_path: Path) -> None:
    """The epsilon of the layer norm is added to the deviation, and is not undone."""
    sae, x = theirs(INFERENCE["standard"], normalize_activations="layer_norm"), tokens() * 1e-4
    x[0] = 0.5  # its mean is exact: there rounding would be divided by the epsilon
    sae.save_model(tmp_path)
    require_same(loaded(tmp_path), x, sae.encode(x), sae(x))


@pytest.mark.parametrize("how", ["save_model", "save_inference_model"])
@pytest.mark.parametrize("kind", TRAINING)
def test_a_sae_that_was_trained_is_what_it_is_for_inference(tmp_path: Path, kind: str, how: str) -> None:
    """In training a JumpReLU with a threshold below 0 keeps what is negative, for inference it does not."""
    getattr(theirs(TRAINING[kind]), how)(tmp_path)
    sae, x = SAE.load_from_disk(tmp_path), tokens()
    require_same(loaded(tmp_path), x, sae.encode(x), sae(x))


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("kind", BATCHED)
def test_batched_top_k_is_what_it_is_saved_as_for_inference(tmp_path: Path, kind: str, rescaled: bool) -> None:
    """Saved to go on training it is read alike: there the threshold lies beside weights that are not scaled yet."""
    sae, x = theirs(BATCHED[kind], rescale_acts_by_decoder_norm=rescaled), tokens()
    sae.topk_threshold.fill_(0.7)
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "inference")
    inference = SAE.load_from_disk(tmp_path / "inference")
    assert inference.cfg.architecture() == "jumprelu"
    for saved in ("inference", "training"):
        require_same(loaded(tmp_path / saved), x, inference.encode(x), inference(x))


@pytest.mark.parametrize("kind", ["jumprelu", "gated"])
def test_a_latent_on_its_threshold_is_not_kept(tmp_path: Path, kind: str) -> None:
    sae, x = theirs(INFERENCE[kind]), tokens()
    on = {"jumprelu": {"b_enc": 0.7, "threshold": 0.7}, "gated": {"b_gate": 0.0, "b_mag": 0.7}}[kind]
    sae.W_enc.data[:, 3] = 0
    for name, value in on.items():
        getattr(sae, name).data[3] = value
    sae.save_model(tmp_path)
    latents = sae.encode(x)
    assert not latents[:, 3].any()
    require_same(loaded(tmp_path), x, latents, sae(x))


@pytest.mark.parametrize("apply", [True, False])
def test_a_scale_of_the_input_that_was_not_folded_is_its_own_fold(tmp_path: Path, apply: bool) -> None:
    how = "expected_average_only_in"
    sae, x, factor = theirs(INFERENCE["jumprelu"], normalize_activations=how, apply_b_dec_to_input=apply), tokens(), 0.4
    sae.save_model(tmp_path)
    with pytest.warns(UserWarning, match="did not fold the factor"):
        require_same(load_sae(tmp_path), x, sae.encode(x), sae(x))  # as it is run unfolded
    sae.fold_activation_norm_scaling_factor(factor)
    require_same(loaded(tmp_path, std=1 / factor), x, sae.encode(x), sae(x))


def test_whitening_that_was_not_folded_is_refused(tmp_path: Path) -> None:
    theirs(INFERENCE["standard"], normalize_activations="covariance_whitening").save_model(tmp_path)
    with pytest.raises(ValueError, match="normalises its input by covariance_whitening"):
        load_sae(tmp_path)


@pytest.mark.parametrize("kind", BEFORE)
def test_the_configuration_of_before_version_6(tmp_path: Path, kind: str) -> None:
    sae = theirs(INFERENCE[kind])
    sae.save_model(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": S, "dtype": "float32"} | BEFORE[kind]))
    read, x = SAE.load_from_disk(tmp_path), tokens()
    require_same(loaded(tmp_path), x, read.encode(x), read(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_two_bytes(tmp_path: Path, dtype: str) -> None:
    theirs(INFERENCE["jumprelu"], dtype=dtype).to(getattr(torch, dtype)).save_model(tmp_path)
    sae, x = SAE.load_from_disk(tmp_path, dtype="float32"), tokens()
    require_same(loaded(tmp_path), x, sae.encode(x), sae(x))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_sae_of_ours_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    theirs(REFUSED[kind]).save_model(tmp_path)
    with pytest.raises(ValueError, match=f"SAELens's {kind}, which this patchsae does not represent"):
        load_sae(tmp_path)


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "norm_rescale"])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_saelens_reads_ours(tmp_path: Path, activation: str, normalised: str) -> None:
    sae = ours(activation, normalise=normalised)
    write(sae, tmp_path, "saelens")
    read, x = SAE.load_from_disk(tmp_path), tokens()
    require_same(sae, x, read.encode(x), read(x))
