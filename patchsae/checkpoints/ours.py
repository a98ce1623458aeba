"""PatchSAE's own format: a directory with ``sae.safetensors`` (contiguous float32) and ``config.json``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from patchsae.atomic import replacing, write_text
from patchsae.checkpoints.format import Format
from patchsae.checksums import verified
from patchsae.sae import SAEConfig, SparseAutoencoder

VERSION = 1
WEIGHTS, CONFIG = "sae.safetensors", "config.json"
FIELDS = {"d_in", "d_sae", "activation", "k", "metadata"}


def save(sae: SparseAutoencoder, directory: Path) -> None:
    """Write ``sae`` into ``directory``. Each file appears complete or stays as it was."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": "patchsae", "version": VERSION, **asdict(sae.config)}, indent=2, sort_keys=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in sae.state_dict().items()}
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"config": text})
    write_text(directory / CONFIG, text + "\n")


def _matches(path: Path) -> bool:
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file() and _record(path).get("format") == "patchsae"


def _load(path: Path) -> SparseAutoencoder:
    record = _record(path)
    if record.get("version") != VERSION:
        raise ValueError(
            f"{path / CONFIG} has version {record.get('version')!r}; this patchsae reads version {VERSION}"
        )
    if record.keys() != FIELDS | {"format", "version"}:
        raise ValueError(
            f"{path / CONFIG} has the entries {sorted(record)}; expected {sorted(FIELDS)}, format, version"
        )
    with safe_open(verified(path / WEIGHTS), framework="pt") as file:
        # The weights carry their own copy, so that a save cut off between the two files is noticed.
        if json.loads((file.metadata() or {}).get("config", "null")) != record:
            raise ValueError(
                f"{path / CONFIG} does not belong to {path / WEIGHTS}: the files are of two different saves"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return SparseAutoencoder.from_tensors(SAEConfig(**{name: record[name] for name in FIELDS}), tensors)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(verified(path / CONFIG).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / CONFIG} is not JSON: {error}") from error
    return record if isinstance(record, dict) else {}


FORMAT = Format("patchsae", f"a directory with {WEIGHTS} and {CONFIG}", _matches, _load)
