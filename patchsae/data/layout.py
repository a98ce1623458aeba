"""What a dataset layout is: how it is recognised, which splits it has, how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from patchsae.data.base import DataError, ImageDataset
from patchsae.disk.names import written

_SPLIT_NAMES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
UNNAMED = 2


class SplitError(DataError):
    """A split that a source does not have. `reason` follows the name of the argument or option in the message."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"split {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Layout:
    """One way in which datasets come. A file of `patchsae.data.layouts` holds one, named LAYOUT."""

    name: str
    looks_for: str
    """What a source of this layout looks like, for the message where nothing matches."""
    matches: Callable[[object], bool]
    """Whether a source (text of a path, or an object) has this layout."""
    splits: Callable[[object], list[str]]
    """The names of the splits of a matching source; empty where it is one piece."""
    open: Callable[[object, str | None, bool], ImageDataset]
    """Opens one split (one of `splits`, or None where there are none); the bool says whether images may be elsewhere
    than below the source, where a file of it names them so."""
    precedence: int = 0
    """Lower ones are asked first: 0 for what is marked unmistakably, 1 for what files of a certain name tell, from
    UNNAMED on for any folder with pictures in it."""
    default_split: str | None = None
    """The split meant where none is named; None: a source with several splits needs one."""


def canonical_split(name: str) -> str | None:
    """ "train", "val" or "test" for the names in use for them (any case), None for other names."""
    for split, names in _SPLIT_NAMES.items():
        if name.lower() in names:
            return split
    return None


def split_rank(name: str) -> tuple[int, str]:
    """Sorts train, val, test first, then the others by name."""
    known = list(_SPLIT_NAMES)
    split = canonical_split(name)
    return (known.index(split) if split else len(known), name)


def dataset_name(base: str, split: str | None) -> str:
    """What reports call one split of a dataset."""
    return written(base if split is None else f"{base}:{split}")


def choose_split(split: str | None, available: list[str], source: object, default: str | None = None) -> str | None:
    """The name in `available` that `split` means; "val" finds "validation", "train" finds "trainval" and the like.

    Raises:
        SplitError: a split that is not there, or none named where there are several.
    """
    if not available:
        if split is not None:
            raise SplitError(
                f'is {split!r}, but {source} has no splits; expected a slice of it, such as "[:80%]" for one purpose '
                'and "[80%:]" for the other'
            )
        return None
    if split is None:
        split = available[0] if len(available) == 1 else default
    choices = ", ".join(repr(name) for name in available)
    if split is None:
        raise SplitError(f"is not given, and {source} has {choices}; expected one of them (also as SOURCE:SPLIT)")
    if split in available:
        return split
    for name in available:
        if canonical_split(name) == canonical_split(split) is not None:
            return name
    raise SplitError(f"is {split!r}; {source} has {choices}")
