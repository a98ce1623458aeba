"""SAE checkpoints: every module here that defines FORMAT is a format. Adding one is adding one file."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from patchsae.disk.contents import what_is

if TYPE_CHECKING:
    from patchsae.models.checkpoints.format import Format


def formats() -> list[Format]:
    """All formats, by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return sorted((module.FORMAT for module in modules if hasattr(module, "FORMAT")), key=lambda f: f.name)


def detect(path: Path) -> Format:
    """The format of an existing file or directory.

    Raises:
        ValueError: none fits, or more than one does.
    """
    found = [candidate for candidate in formats() if candidate.matches(path)]
    if len(found) != 1:
        which = "matches " + ", ".join(f.name for f in found) if found else _what_it_is(path)
        known = "; ".join(f"{f.name}: {f.layout}" for f in formats())
        raise ValueError(f"{path} {which}. Known formats: {known}")
    return found[0]


def _what_it_is(path: Path) -> str:
    """What a path is that no format has, and what may have been meant."""
    from patchsae.models.checkpoints.ours import CONFIG, WEIGHTS

    if not path.is_dir():
        if path.name in (WEIGHTS, CONFIG):
            return f"is a part of a SAE; name its directory, {path.parent}"
        return f"is {what_is(path).said}, which no format is"
    if (path / "train" / WEIGHTS).is_file():
        return f"is a run, whose SAE is {path / 'train'}: name that"
    if (path / "config.toml").is_file():
        return "is a stage of a run, which holds no SAE; expected that of `patchsae train`, when it is finished"
    if (path / WEIGHTS).is_file():
        return f"has {WEIGHTS} without a {CONFIG} that says 'format': 'patchsae'"
    several = sorted(file.name for file in path.glob("*.pt"))
    if several:
        return f"holds several .pt files: name one, such as {path / several[0]}"
    return "matches no format"
