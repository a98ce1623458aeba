"""SAE checkpoints: every module here that defines FORMAT is a format. Adding one is adding one file."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchsae.checkpoints.format import Format
    from patchsae.sae import SparseAutoencoder


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
        which = "matches " + ", ".join(f.name for f in found) if found else "matches no format"
        known = "; ".join(f"{f.name}: {f.layout}" for f in formats())
        raise ValueError(f"{path} {which}. Known formats: {known}")
    return found[0]


def load(source: str | Path) -> SparseAutoencoder:
    """Load a SAE from a path, or from a Hugging Face Hub id where no such path exists, on the CPU."""
    path = Path(source).expanduser()
    if not path.exists():
        from patchsae.checkpoints import hub

        path = hub.fetch(str(source))
    return detect(path).load(path)
