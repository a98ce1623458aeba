"""The shapes world: "shapes", "shapes:SPLIT", "shapes:SPLIT?option=value&..."; made by `patchsae.data.shapes`."""

from __future__ import annotations

import re

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.layout import Layout

_SPEC = re.compile(r"shapes(?::(?P<split>[^?]*))?(?:\?(?P<options>.*))?")
_SPLITS = ["train", "val", "test"]


def _matches(source: object) -> bool:
    return isinstance(source, str) and _SPEC.fullmatch(source) is not None


def _splits(source: object) -> list[str]:
    named = _parts(source)[0]
    if named and named not in _SPLITS:
        raise DataError(f"source {source} names split {named!r}; expected one of {', '.join(_SPLITS)}")
    return [named] if named else _SPLITS


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    from patchsae.data import shapes  # the renderer loads for those who use it

    _, options = _parts(source)
    return shapes.from_spec(f"shapes:{split}{'?' + options if options else ''}")


def _parts(source: object) -> tuple[str, str]:
    match = _SPEC.fullmatch(str(source))
    return (match["split"] or "", match["options"] or "") if match else ("", "")


LAYOUT = Layout(
    name="shapes world",
    looks_for='"shapes" or "shapes:SPLIT?label=shape&n=2000&seed=0", images that this package draws',
    matches=_matches,
    splits=_splits,
    open=_open,
    default_split="train",
)
