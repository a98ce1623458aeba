"""Our own adapter files: one safetensors file whose header says kind, settings, class names and CLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchsae.adapters import identity
from patchsae.adapters.base import AdaptedCLIP
from patchsae.adapters.kinds import adapter_class
from patchsae.atomic import replacing
from patchsae.checksums import verified
from patchsae.clip import SplitCLIP

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
    witnesses = identity.samples(adapted.clip)
    with replacing(file) as temporary:
        save_file({**tensors, **witnesses}, temporary, metadata={HEADER: json.dumps(record, sort_keys=True)})
    return file


def load_adapter(clip: SplitCLIP, path: str | Path, classnames: Sequence[str] | None = None) -> AdaptedCLIP:
    """Read an adapter onto a CLIP.

    Args:
        path: what `save_adapter` wrote (file or folder), or a checkpoint of the official MaPLe code.
        classnames: classes to tell apart; None: those that it was saved with.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is damaged, of another version, does not fit this CLIP or was learned on another, or no
            classes are given for an official checkpoint; a linear probe is given other classes than its own.
    """
    if not is_ours(Path(path).expanduser()):
        from patchsae import maple

        if classnames is None:
            raise ValueError(f"{path} is an official MaPLe checkpoint, which names no classes; give classnames")
        return maple.load_maple(clip, path, classnames)
    file = _file(path)
    record, tensors = _read(file)
    learned = {name: value for name, value in tensors.items() if not name.startswith(identity.ENCODERS)}
    identity.require_same_clip(clip, tensors, str(file))
    kind = adapter_class(record["kind"])
    config = _config(file, kind.config_class, record["config"])
    own = [str(name) for name in record["classnames"]]
    try:
        adapted = kind(clip, own, config, learned)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return adapted if classnames is None else adapted.for_classes(classnames)


def is_ours(path: Path) -> bool:
    """Whether `save_adapter` could have written ``path``, a file or a folder that exists."""
    return path.suffix == SUFFIX or (path / FILE).is_file()


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    return path if path.suffix == SUFFIX else path / FILE


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected a file that save_adapter wrote")
    try:
        with safe_open(verified(file), framework="pt") as content:
            header = (content.metadata() or {}).get(HEADER, "null")
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        record = json.loads(header)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file} has no header {HEADER!r}; expected a file that save_adapter wrote")
    if record.get("version") != VERSION:
        raise ValueError(f"{file} has version {record.get('version')!r}; this patchsae reads version {VERSION}")
    if record.keys() != RECORD or not isinstance(record["classnames"], list):
        raise ValueError(f"{file} has the entries {sorted(record)}; expected {sorted(RECORD)}")
    return record, tensors


def _config(file: Path, config_class: type[Any], record: object) -> Any:
    """The settings, each of the type that its default has."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(config_class)}
    if not isinstance(record, Mapping) or record.keys() != defaults.keys():
        raise ValueError(f"{file} has the settings {record}; expected {sorted(defaults)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    for name, value in values.items():
        expected = type(defaults[name])
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits or (expected is tuple and not all(isinstance(part, str) for part in value)):
            raise ValueError(f"{file}: {name}={value!r}; expected a {expected.__name__}")
    return config_class(**values)
