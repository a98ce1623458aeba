"""dictionary_learning: what its trainers leave, all its classes, and what it makes of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew
from dictionary_learning.trainers import (
    BatchTopKTrainer,
    GatedAnnealTrainer,
    GatedSAETrainer,
    JumpReluTrainer,
    PAnnealTrainer,
    StandardTrainer,
    TopKTrainer,
)
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary

from patchsae import load_sae
from patchsae.models.checkpoints import write
from tests.peers.same import D, K, S, loaded, ours, randomise, require_same, tokens

STEPS = 8
SETTINGS = {
    "steps": STEPS,
    "activation_dim": D,
    "dict_size": S,
    "layer": 9,
    "lm_name": "",
    "device": "cpu",
    "warmup_steps": 2,
    "lr": 0.05,
}
SPARSER = {"sparsity_warmup_steps": 4}
CHOOSING = {"k": K, "threshold_start_step": 2}
ANNEALED = {**SPARSER, "anneal_start": 4, "n_sparsity_updates": 2}
TRAINERS: dict[type, dict[str, Any]] = {
    StandardTrainer: SPARSER,
    StandardTrainerAprilUpdate: SPARSER,
    PAnnealTrainer: {**ANNEALED, "p_end": 0.5},
    GatedSAETrainer: SPARSER,
    GatedAnnealTrainer: ANNEALED,
    TopKTrainer: CHOOSING,
    BatchTopKTrainer: CHOOSING,
    MatryoshkaBatchTopKTrainer: {**CHOOSING, "group_fractions": [0.25, 0.75]},
    JumpReluTrainer: SPARSER,
}


def settings(trainer: type) -> dict[str, Any]:
    return {**SETTINGS, **TRAINERS[trainer]}


def read(folder: Path) -> Any:
    """As the library opens it, with the file's own values: by default AutoEncoder's are scaled."""
    said = json.loads((folder / "config.json").read_text())["trainer"]
    if said["dict_class"] == "AutoEncoder":
        return AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False)
    return load_dictionary(str(folder), "cpu")[0]


def saved(folder: Path, sae: torch.nn.Module, trainer: dict[str, Any]) -> Path:
    """As its training saves."""
    torch.save(sae.state_dict(), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}, indent=4))
    return folder


def require_read_alike(folder: Path) -> None:
    sae, x = read(folder), tokens()
    require_same(loaded(folder), x, sae.encode(x), sae(x))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_training_leaves(tmp_path: Path, trainer: type) -> None:
    config = {"trainer": trainer, **settings(trainer)}
    trainSAE([tokens() for _ in range(STEPS + 1)], [config], STEPS, save_dir=str(tmp_path), device="cpu")
    require_read_alike(tmp_path / "trainer_0")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_weights_of_no_special_form(tmp_path: Path, trainer: type) -> None:
    made = trainer(**settings(trainer))
    randomise(made.ae)
    if "k" in TRAINERS[trainer]:
        made.ae.threshold.fill_(0.7)
    require_read_alike(saved(tmp_path, made.ae, made.config))


def test_autoencoder_new(tmp_path: Path) -> None:
    """No trainer says this class, its loader takes it."""
    sae = AutoEncoderNew(D, S)
    randomise(sae)
    require_read_alike(saved(tmp_path, sae, {"dict_class": "AutoEncoderNew"}))


@pytest.mark.parametrize("trainer", [BatchTopKTrainer, MatryoshkaBatchTopKTrainer])
def test_a_threshold_that_was_never_set_keeps_what_is_positive(tmp_path: Path, trainer: type) -> None:
    made = trainer(**settings(trainer))
    randomise(made.ae)
    saved(tmp_path, made.ae, made.config)
    sae, x = read(tmp_path), tokens()
    with pytest.warns(UserWarning, match="threshold was not set"):
        found = load_sae(tmp_path)
    require_same(found, x, sae.encode(x), sae(x))


@pytest.mark.parametrize("trainer", [BatchTopKTrainer, MatryoshkaBatchTopKTrainer, JumpReluTrainer, GatedSAETrainer])
def test_a_latent_on_its_threshold_is_not_kept(tmp_path: Path, trainer: type) -> None:
    made, x = trainer(**settings(trainer)), tokens()
    randomise(made.ae)
    state = made.ae.state_dict()
    for name in ("W_enc", "encoder.weight"):
        if name in state:
            state[name][(3,) if name == "encoder.weight" else (slice(None), 3)] = 0
    on = {"threshold": 0.7, "b_enc": 0.7, "encoder.bias": 0.7, "mag_bias": 0.7, "gate_bias": 0.0}
    for name, value in on.items():
        if name in state:
            (state[name] if name == "threshold" else state[name][3]).fill_(value)
    saved(tmp_path, made.ae, made.config)
    latents = made.ae.encode(x)
    assert not latents[:, 3].any()
    require_same(loaded(tmp_path), x, latents, made.ae(x))


@pytest.mark.parametrize("trainer", [TopKTrainer, BatchTopKTrainer])
def test_the_other_choice_that_top_k_files_leave_open_without_a_configuration(tmp_path: Path, trainer: type) -> None:
    made, x = trainer(**settings(trainer)), tokens()
    randomise(made.ae)
    made.ae.threshold.fill_(0.7)
    torch.save(made.ae.state_dict(), tmp_path / "ae.pt")
    above = torch.nextafter(made.ae.threshold, torch.tensor(1.0)).item()  # ours keeps those of at least a threshold
    found = loaded(tmp_path, **({"k": K} if trainer is TopKTrainer else {"threshold": above}))
    require_same(found, x, made.ae.encode(x), made.ae(x))


@pytest.mark.parametrize(
    ("activation", "shared", "unit", "kind"),
    [
        ("relu", False, True, "AutoEncoder"),
        ("relu", False, False, "JumpReluAutoEncoder"),
        ("topk", False, False, "AutoEncoderTopK"),
        ("jumprelu", False, False, "JumpReluAutoEncoder"),
        ("jumprelu", True, False, "BatchTopKSAE"),
    ],
)
def test_it_reads_ours(tmp_path: Path, activation: str, shared: bool, unit: bool, kind: str) -> None:
    sae, x = ours(activation, shared=shared, metadata={"l0": K} if shared else {}), tokens()
    if unit:
        sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
    write(sae, tmp_path, "dictionary_learning")
    dictionary, config = load_dictionary(str(tmp_path), "cpu")
    assert config["trainer"]["dict_class"] == type(dictionary).__name__ == kind
    require_same(sae, x, dictionary.encode(x), dictionary(x))
