"""Presets: options of a verb as TOML, shipped with the package or a file of one's own. Imports no torch.

The keys are the options of the verb, with "_" for "-"; `extends` names a shipped preset to begin with. An option on the
command line comes before the preset, the preset before the one it extends, that one before the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from patchsae.disk import settings

EXTENDS = "extends"
_OF_IMAGES = ("images", "split", "limit", "limit_seed", "outside")
_OF_MODEL = ("model", "pretrained")
_DECIDES = {"images": _OF_IMAGES, "model": _OF_MODEL, "cache": (*_OF_IMAGES, *_OF_MODEL, "layer", "dtype")}
"""Option -> the keys that speak of what it names, and say nothing where another is named."""


def names() -> list[str]:
    """The shipped presets."""
    folder = resources.files(__package__).joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read(preset: str) -> dict[str, Any]:
    """The keys of a preset with those it extends: the name of a shipped one, or a path ending in .toml.

    Raises:
        FileNotFoundError: no shipped preset of this name and no such file.
        ValueError: not TOML, or `extends` is not the name of a shipped preset.
    """
    found = _parsed(preset)
    if EXTENDS not in found:
        return found
    base = found.pop(EXTENDS)
    if base not in names() or base == preset:
        raise ValueError(f"preset {preset}: {EXTENDS} is {base!r}; expected one of {', '.join(names())}")
    return {**read(base), **found}


def groups(preset: str, expected: Mapping[str, type[Any]], given: Collection[str] = ()) -> dict[str, Any]:
    """The dataclasses that a preset fills in: parameter name -> instance, for every one that it has a key of.

    given: options of the command line. Other images, another model or a cache there put aside the keys that are about
    the preset's own: its split is not one of theirs.

    expected: parameter name -> frozen dataclass whose fields are options of the verb; no two have a field in common.
    A single value stands for a list of one where a list is expected.

    Raises:
        ValueError: names the preset and the key that no option has, or the value that does not fit; also what `read`
            and the dataclasses raise.
    """
    owners = {field.name: name for name, cls in expected.items() for field in dataclasses.fields(cls)}
    hints = {name: get_type_hints(cls) for name, cls in expected.items()}
    values: dict[str, dict[str, Any]] = {}
    aside = {key for option in given for key in _DECIDES.get(option, ())}
    for key, value in read(preset).items():
        if key not in owners:
            raise ValueError(f"preset {preset}: {key} is not an option{_meant(key, owners)}")
        if key in aside:
            continue
        group = owners[key]
        try:
            values.setdefault(group, {})[key] = _fitted(value, hints[group][key])
        except ValueError as error:
            raise ValueError(f"preset {preset}: {key} is {value!r}; expected {error}") from None
    return {group: expected[group](**given) for group, given in values.items()}


def _parsed(preset: str) -> dict[str, Any]:
    if preset.endswith(".toml"):
        path = Path(preset).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"--preset {preset}: there is no such file")
        return settings.read(path)
    if preset not in names():
        raise FileNotFoundError(
            f"--preset is {preset!r}; expected a file NAME.toml or one of {', '.join(names())}{_meant(preset, names())}"
        )
    return settings.loads(resources.files(__package__).joinpath("presets", f"{preset}.toml").read_text("utf-8"))


def _fitted(value: Any, hint: Any) -> Any:
    """`value` as a field annotated with `hint` takes it; ValueError(what was expected)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _fitted(value, next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return tuple(_fitted(item, arguments[0]) for item in (value if isinstance(value, list) else [value]))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError({int: "an integer", float: "a number", bool: "true or false", str: "text"}[hint])
    return value


def _meant(name: str, known: Mapping[str, str] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
