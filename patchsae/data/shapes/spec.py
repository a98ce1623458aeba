"""Sources of the form "shapes:train?label=colour&n=2000&seed=0&style=outline,flat"."""

from __future__ import annotations

import re

from patchsae.data.base import DataError
from patchsae.data.shapes.factors import FACTORS, SPLITS
from patchsae.data.shapes.world import ShapesWorld

_NUMBERS = ("n", "seed", "size")


def from_spec(source: str, split: str | None = None) -> ShapesWorld:
    """Opens `shapes[:split][?key=value&...]`.

    Keys: label (a factor, or several separated by commas), n, seed, size, and any factor with the values it is
    restricted to, separated by commas. `split` is used where the source names none; without both it is "train".

    Raises:
        DataError: not a shapes source, a key or value that does not exist, a key given twice, two different splits.
    """
    head, _, query = source.partition("?")
    scheme, _, named = head.partition(":")
    if scheme != "shapes":
        raise DataError(f"source is {source!r}; expected shapes[:{'|'.join(SPLITS)}][?key=value&...]")
    if named and split is not None and named != split:
        raise DataError(f"source {source!r} names split {named!r}, and split is {split!r}; expected one of the two")
    options = _options(query)
    numbers = {key: _number(key, options.pop(key)) for key in _NUMBERS if key in options}
    label = options.pop("label", "shape")
    only = {factor: tuple(values.split(",")) for factor, values in options.items()}
    return ShapesWorld(split=named or split or "train", label=label, only=only, **numbers)


def _options(query: str) -> dict[str, str]:
    known = ("label", *_NUMBERS, *FACTORS)
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise DataError(f"{part!r} in the shapes source has no value; expected key=value")
        if key not in known:
            raise DataError(f"key {key!r} in the shapes source is unknown; expected one of {', '.join(known)}")
        if key in options:
            raise DataError(f"key {key!r} comes twice in the shapes source; expected it once")
        options[key] = value
    return options


def _number(key: str, value: str) -> int:
    if re.fullmatch("[0-9]{1,30}", value) is None:
        raise DataError(f"{key} is {value[:40]!r}; expected an integer >= 0")
    return int(value)
