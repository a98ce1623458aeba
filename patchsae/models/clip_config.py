"""A stranger's `open_clip_config.json`: which CLIP it describes, and whether the weights beside it hold such a one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from patchsae.disk.claims import FalseClaim, whole_number
from patchsae.disk.documents import read_json

FILE = "open_clip_config.json"
MOST = 2**20  # bytes
LEAST_HELD = 2**20  # numbers of a configuration up to here are believed: they take no memory to speak of
LEAST_BLOCKS = 100
TOKENIZER_SETTINGS = frozenset({"clean", "strip_sep_token", "language", "reduction_mask", "lower"})


@dataclass(frozen=True)
class Described:
    """What the file says: open_clip's `model_cfg` and `preprocess_cfg`."""

    model: dict[str, Any]
    preprocess: dict[str, Any]


def read_config(path: Path) -> Described:
    """Read the configuration of a folder in open_clip's layout.

    Raises:
        ValueError: naming the file and the entry that is not what open_clip's layout has there.
    """
    record = read_json(path, MOST)
    if not isinstance(record, Mapping) or "model_cfg" not in record:
        raise ValueError(f"{path} has no 'model_cfg'; expected open_clip's directory layout")
    model = _table(path, "model_cfg", record)
    for name in ("vision_cfg", "text_cfg"):
        _table(path, name, model)
    layers = model["vision_cfg"].get("layers", 12)
    if not isinstance(layers, list):  # which is another tower, and refused by its name
        whole_number(path, "vision_cfg.layers", layers, most=2**53, least=1)
    settings = _table(path, "tokenizer_kwargs", {"tokenizer_kwargs": {}, **model["text_cfg"]})
    unknown = sorted(set(settings) - TOKENIZER_SETTINGS)
    if unknown:  # the tokenizers of Hugging Face would run code by them
        raise ValueError(f"{path}: tokenizer_kwargs has {unknown[0][:40]!r}; expected {sorted(TOKENIZER_SETTINGS)}")
    return Described(model, _table(path, "preprocess_cfg", {"preprocess_cfg": {}, **record}))


def require_held(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> None:
    """Raise FalseClaim for a size that is beyond what the weights hold, before a model is built by it.

    state: None where there are to be no weights; then only sizes are taken that are small in themselves.
    """
    held = max(LEAST_HELD, sum(value.numel() for value in (state or {}).values()))
    blocks = max(LEAST_BLOCKS, len(state or {}))
    for name, value in _numbers(config, ""):
        if isinstance(value, int) and abs(value) > held:
            raise FalseClaim(f"{path}: {name} is {str(value)[:40]}; the weights beside it hold {held:,} numbers")
        if name.endswith("layers") and value > blocks:
            raise FalseClaim(f"{path}: {name} is {value}; the weights beside it hold {len(state or {}):,} tensors")
    vision = config["vision_cfg"]
    if vision.get("pos_embed_type") == "sin_cos_2d":  # computed, and not on the device where nothing takes memory
        side = max(_sides(vision.get("image_size", 224))) // max(1, min(_sides(vision.get("patch_size", 16))))
        numbers = side * side * max(_sides(vision.get("width", 768)))
        if numbers > held:
            raise FalseClaim(f"{path}: positions of {numbers:,} numbers; the weights beside it hold {held:,}")


def _table(path: Path, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    table = record.get(name)
    if not isinstance(table, dict):
        raise ValueError(f"{path}: {name} is a {type(table).__name__}; expected a table of open_clip's layout")
    return table


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float):
        yield name, value


def _sides(value: Any) -> list[int]:
    return [side for _, side in _numbers(value, "") if isinstance(side, int)] or [1]
