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
from patchsae.models.checkpoints.format import Checkpoint, Format
from patchsae.models.sae_config import SAEConfig

VERSION = 1
WEIGHTS, CONFIG = "sae.safetensors", "config.json"
MOST_CONFIG = 2**20  # bytes
FIELDS = {"d_in", "d_sae", "activation", "k", "metadata"}


def save(config: SAEConfig, state: Mapping[str, Tensor], directory: Path) -> None:
    """Write a SAE into ``directory``. Each file appears complete or stays as it was."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": "patchsae", "version": VERSION, **asdict(config)}, indent=2, sort_keys=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"config": text})
    write_text(directory / CONFIG, text + "\n")


def _matches(path: Path) -> bool:
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file() and _record(path).get("format") == "patchsae"


def _read(path: Path) -> Checkpoint:
    record = _record(path)
    if record.get("version") != VERSION:
        raise ValueError(
            f"{path / CONFIG} has version {str(record.get('version'))[:40]}; this patchsae reads version {VERSION}"
        )
    if record.keys() != FIELDS | {"format", "version"}:
        raise ValueError(
            f"{path / CONFIG} has the entries {str(sorted(record))[:200]}; expected {sorted(FIELDS)}, format, version"
        )
    try:
        config = SAEConfig(**{name: record[name] for name in FIELDS})
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


FORMAT = Format("patchsae", f"a directory with {WEIGHTS} and {CONFIG}", _matches, _read)
