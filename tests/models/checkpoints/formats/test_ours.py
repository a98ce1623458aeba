from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae import load_sae
from patchsae.models.checkpoints.formats import ours
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

METADATA = {"model": "ViT-B-16-quickgelu", "pretrained": "openai", "layer": -2, "l1": 8e-5}
CONFIGS = [
    SAEConfig(6, 20, metadata=METADATA),
    SAEConfig(6, 20, "topk", 4),
    SAEConfig(6, 20, "jumprelu"),
]


def make(config: SAEConfig, seed: int = 0) -> SparseAutoencoder:
    sae = SparseAutoencoder(config, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.add_(0.1)
    return sae


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.activation)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, config: SAEConfig) -> None:
    sae = make(config)
    sae.save(tmp_path / "deep" / "sae")
    loaded = load_sae(tmp_path / "deep" / "sae")
    assert loaded.config == config
    assert loaded.state_dict().keys() == sae.state_dict().keys()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.W_enc.stride() == (1, 6)


def test_files_hold_contiguous_tensors_and_a_version(tmp_path: Path) -> None:
    make(CONFIGS[0]).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "sae.safetensors"]
    tensors = load_file(tmp_path / "sae.safetensors")
    assert tensors["W_enc"].shape == (6, 20)
    assert tensors["W_enc"].is_contiguous()
    record = json.loads((tmp_path / "config.json").read_text())
    assert (record["format"], record["version"], record["metadata"]) == ("patchsae", 1, METADATA)


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    make(CONFIGS[0]).save(tmp_path)
    other = make(CONFIGS[1], seed=3)
    other.save(tmp_path)
    assert torch.equal(load_sae(tmp_path).W_dec, other.W_dec)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "sae.safetensors"]


def test_a_save_that_fails_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(CONFIGS[0]).save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def torn(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(ours, "save_file", torn)
    with pytest.raises(OSError, match="no space left"):
        make(CONFIGS[1]).save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_files_of_two_saves_are_not_mixed(tmp_path: Path) -> None:
    make(CONFIGS[0]).save(tmp_path / "a")
    make(CONFIGS[1]).save(tmp_path / "b")
    os.replace(tmp_path / "b" / "config.json", tmp_path / "a" / "config.json")
    with pytest.raises(ValueError, match="two different saves"):
        load_sae(tmp_path / "a")


def test_other_versions_and_damage_are_named(tmp_path: Path) -> None:
    make(CONFIGS[0]).save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"version": 1', '"version": 9'))
    with pytest.raises(ValueError, match="version 9; this patchsae reads versions 1 and 2"):
        load_sae(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"version": 1', '"version": 1, "extra": 0'))
    with pytest.raises(ValueError, match="extra"):
        load_sae(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_sae(tmp_path)


def test_a_transposed_tensor_is_named(tmp_path: Path) -> None:
    make(CONFIGS[0]).save(tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    tensors["W_dec"] = tensors["W_dec"].T.contiguous()
    record = json.loads((tmp_path / "config.json").read_text())
    save_file(tensors, tmp_path / "sae.safetensors", metadata={"config": json.dumps(record)})
    with pytest.raises(ValueError, match=r"W_dec has shape \(6, 20\); expected \[S, D\] = \(20, 6\): transpose it"):
        load_sae(tmp_path)
