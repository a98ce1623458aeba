"""SAELens: what its SAEs save, for inference and to go on training, and what it makes of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, saes

from patchsae import load_sae
from patchsae.models.checkpoints import write
from tests.peers.same import D, K, S, ours, randomise, require_same, tokens

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
    require_same(load_sae(tmp_path), x, sae.encode(x), sae(x))


@pytest.mark.parametrize("how", ["save_model", "save_inference_model"])
@pytest.mark.parametrize("kind", TRAINING)
def test_a_sae_that_was_trained_is_what_it_is_for_inference(tmp_path: Path, kind: str, how: str) -> None:
    """In training a JumpReLU with a threshold below 0 keeps what is negative, for inference it does not."""
    getattr(theirs(TRAINING[kind]), how)(tmp_path)
    sae, x = SAE.load_from_disk(tmp_path), tokens()
    require_same(load_sae(tmp_path), x, sae.encode(x), sae(x))


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
        require_same(load_sae(tmp_path / saved), x, inference.encode(x), inference(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_two_bytes(tmp_path: Path, dtype: str) -> None:
    theirs(INFERENCE["jumprelu"], dtype=dtype).to(getattr(torch, dtype)).save_model(tmp_path)
    sae, x = SAE.load_from_disk(tmp_path, dtype="float32"), tokens()
    require_same(load_sae(tmp_path), x, sae.encode(x), sae(x))


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
