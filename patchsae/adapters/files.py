"""Our own adapter files: one safetensors file whose header says kind, settings, class names and CLIP."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from patchsae.adapters import witness
from patchsae.adapters.base import AdaptedCLIP
from patchsae.adapters.kinds import adapter_class
from patchsae.disk.atomic import replacing
from patchsae.disk.checksums import verified
from patchsae.disk.contents import what_is
from patchsae.disk.documents import parse_json
from patchsae.disk.tensor_files import read_tensors
from patchsae.models.clip import SplitCLIP

VERSION = 1
FILE, SUFFIX, HEADER = "adapter.safetensors", ".safetensors", "patchsae_adapter"
RECORD = {"version", "kind", "config", "classnames", "clip"}


def save_adapter(adapted: AdaptedCLIP, path: str | Path) -> Path:
    """Write an adapter, complete or not at all, and return the file.

    Args:
        path: a file ending in ``.safetensors``, or a folder, which gets ``adapter.safetensors``.
    """
    file = _file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "version": VERSION,
        "kind": adapted.kind,
        "config": asdict(adapted.config),
        "classnames": adapted.classnames,
        "clip": adapted.clip.metadata,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapted.trainable().items()}
    witnesses = witness.samples(adapted.clip)
    with replacing(file) as temporary:
        save_file({**tensors, **witnesses}, temporary, metadata={HEADER: json.dumps(record, sort_keys=True)})
    return file


def read_adapter(clip: SplitCLIP, path: str | Path, classnames: Sequence[str] | None = None) -> AdaptedCLIP:
    """What `save_adapter` wrote, onto a CLIP; see `load.load_adapter`."""
    file = _file(path)
    record, tensors = _read(file)
    learned = {name: value for name, value in tensors.items() if not name.startswith(witness.ENCODERS)}
    witness.require_same_clip(clip, tensors, str(file))
    try:
        kind = adapter_class(record["kind"])
        config = _config(file, kind.config_class, record["config"])
        adapted = kind(clip, record["classnames"], config, learned)
    except ValueError as error:
        raise error if str(error).startswith(str(file)) else ValueError(f"{file}: {error}") from error
    return adapted if classnames is None else adapted.for_classes(classnames)


def is_ours(path: Path) -> bool:
    """Whether `save_adapter` could have written ``path``, a file or a folder that exists."""
    if path.is_file():
        return path.suffix == SUFFIX or what_is(path).kind == "safetensors"
    return path.suffix == SUFFIX or (path / FILE).is_file()


def _file(path: str | Path) -> Path:
    path = Path(os.path.expanduser(path))
    return path if path.suffix == SUFFIX or path.is_file() else path / FILE


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected a file that save_adapter wrote")
    tensors, header = read_tensors(verified(file))
    record = parse_json(file, header.get(HEADER, "null"))
    if not isinstance(record, dict):
        raise ValueError(f"{file} has no header {HEADER!r}; expected a file that save_adapter wrote")
    if record.get("version") != VERSION:
        came = str(record.get("version"))[:40]
        raise ValueError(f"{file} has version {came}; this patchsae reads version {VERSION}")
    if record.keys() != RECORD:
        raise ValueError(f"{file} has the entries {str(sorted(record))[:200]}; expected {sorted(RECORD)}")
    names = record["classnames"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: classnames is {str(names)[:60]}; expected a list of text")
    return record, tensors


def _config(file: Path, config_class: type[Any], record: object) -> Any:
    """The settings, each of the type that its default has."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(config_class)}
    if not isinstance(record, Mapping) or record.keys() != defaults.keys():
        raise ValueError(f"{file} has the settings {str(record)[:200]}; expected {sorted(defaults)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    for name, value in values.items():
        expected = type(defaults[name])
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits or (expected is tuple and not all(isinstance(part, str) for part in value)):
            raise ValueError(f"{file}: {name}={repr(value)[:60]}; expected a {expected.__name__}")
    return config_class(**values)
