"""PatchSAE's own format: a directory with ``sae.safetensors`` (contiguous float32) and ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from patchsae.disk.atomic import replacing, write_text
from patchsae.disk.checksums import verified
from patchsae.disk.documents import parse_json, read_json
from patchsae.disk.tensor_files import read_tensors
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

VERSIONS = (1, 2)  # 2 says what is done to tokens and latents; where that is nothing, 1 is written
WEIGHTS, CONFIG = "sae.safetensors", "config.json"
MOST_CONFIG = 2**20  # bytes
FIELDS = {1: {"d_in", "d_sae", "activation", "k", "metadata"}}
FIELDS[2] = FIELDS[1] | {"normalise", "soft_cap"}


def save(config: SAEConfig, state: Mapping[str, Tensor], directory: Path) -> None:
    """Write a SAE into ``directory``. Each file appears complete or stays as it was."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = config.normalise == "none" and config.soft_cap is None and config.activation != "topk_no_relu"
    version = VERSIONS[0] if plain else VERSIONS[1]
    fields = {name: value for name, value in asdict(config).items() if name in FIELDS[version]}
    text = json.dumps({"format": "patchsae", "version": version, **fields}, indent=2, sort_keys=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"config": text})
    write_text(directory / CONFIG, text + "\n")


def is_ours(folder: Path) -> bool:
    """Whether a directory holds a SAE of this format; its weights are not looked at."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file() and _record(folder).get("format") == "patchsae"


def _matches(opened: Opened) -> bool:
    return opened.path.is_dir() and is_ours(opened.path)


def _read(opened: Opened, _: Answers) -> Checkpoint:
    path = opened.path
    record = _record(path)
    version = record.get("version")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise ValueError(f"{path / CONFIG} has version {str(version)[:40]}; this patchsae reads versions {known}")
    fields = FIELDS[version]
    if record.keys() != fields | {"format", "version"}:
        raise ValueError(
            f"{path / CONFIG} has the entries {str(sorted(record))[:200]}; expected {sorted(fields)}, format, version"
        )
    try:
        config = SAEConfig(**{name: record[name] for name in fields})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path / CONFIG}: {error}") from error
    tensors, header = read_tensors(verified(path / WEIGHTS))
    # The weights carry their own copy, so that a save cut off between the two files is noticed.
    if parse_json(path / WEIGHTS, header.get("config", "null")) != record:
        raise ValueError(f"{path / CONFIG} does not belong to {path / WEIGHTS}: the files are of two different saves")
    return Checkpoint(path / WEIGHTS, config, tensors)


def _record(path: Path) -> dict[str, Any]:
    record = read_json(verified(path / CONFIG), MOST_CONFIG)
    return record if isinstance(record, dict) else {}


FORMAT = Format("patchsae", _matches, _read, save)
