"""The cells of a table over datasets and adapters, as a TOML file lists them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from patchsae.disk import settings

EXAMPLE = '[[cells]]\nname = "dtd-maple"\nimages = "/data/dtd"\nadapter = "runs/dtd/adapt-maple-seed1"\n'
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True)
class Cell:
    """One dataset and one adapter: the adapted CLIP is compared with the CLIP as it is."""

    name: str
    """Name of the cell's stage; letters, digits, ".", "_" and "-"."""
    images: str
    """Source of the images, as for --images."""
    adapter: str
    """What `patchsae adapt` made, or an official MaPLe checkpoint."""
    rank_split: str = "train"
    """Split whose latents are counted."""
    rank_limit: int = 0
    """At most this many images of it, drawn evenly over the classes; 0 is all."""
    test_images: str = ""
    """Source of the images to classify; empty: `images`."""
    test_split: str = "test"
    """Split to classify."""
    test_limit: int = 0
    """At most this many images of it; 0 is all."""
    outside: bool = False
    """Also read images that are not below the folder of a dataset, as for --outside."""
    dataset: str = ""
    """What the table calls the dataset; empty: the cell's name."""
    label: str = ""
    """What the table calls the adapter; empty: its kind."""
    templates: tuple[str, ...] = ()
    """Prompts of the dataset, as for --templates; empty: those of the command line."""

    @property
    def stages(self) -> tuple[str, str]:
        """Names of its two stages: the comparison, and the classification of the test split."""
        return self.name, f"{self.name}-test"


def read_cells(path: Path) -> list[Cell]:
    """Cells of a TOML file: a table [[cells]] for each, with the keys of :class:`Cell`; [defaults] holds for all.

    Raises ValueError that names the file and the key: not TOML, an unknown or a missing key, a value of another type, a
    name that cannot be a folder's or occurs twice, no cells.
    """
    found = settings.read(path)
    unknown = [key for key in found if key not in ("cells", "defaults")]
    if unknown:
        raise ValueError(f"{path}: {unknown[0]} is not known; expected [[cells]] and, for all of them, [defaults]")
    tables, defaults = found.get("cells", []), found.get("defaults", {})
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: cells is {_shown(tables)}; expected at least one table such as\n{EXAMPLE}")
    if not isinstance(defaults, dict):
        raise ValueError(f"{path}: defaults is {defaults!r}; expected a table [defaults]")
    _require_known(path, "defaults", defaults)
    cells = [_cell(path, f"cells[{number}]", table, defaults) for number, table in enumerate(tables)]
    taken: set[str] = set()
    for number, cell in enumerate(cells):
        if taken & set(cell.stages):
            raise ValueError(
                f"{path}: cells[{number}].name is {cell.name!r}, which is taken; expected names of their own"
            )
        taken |= set(cell.stages)
    return cells


def _cell(path: Path, where: str, table: Mapping[str, Any], defaults: Mapping[str, Any]) -> Cell:
    _require_known(path, where, table)
    given = {**defaults, **table}
    for field in fields(Cell):
        if field.default is MISSING and field.name not in given:
            raise ValueError(f"{path}: {where}.{field.name} is missing; a cell is such as\n{EXAMPLE}")
    if not _NAME.match(given["name"]):
        raise ValueError(
            f"{path}: {where}.name is {given['name']!r}; expected letters, digits, '.', '_' and '-', as a folder's name"
        )
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    return Cell(**values)


def _require_known(path: Path, where: str, table: Mapping[str, Any]) -> None:
    """ValueError for a key that cells do not have, or a value of the wrong type."""
    known = {field.name: field.type for field in fields(Cell)}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{path}: {where}.{key} is not known; expected one of {', '.join(known)}")
        if known[key] == "int":
            fits, expected = type(value) is int and value >= 0, "an integer of at least 0"
        elif known[key] == "bool":
            fits, expected = isinstance(value, bool), "true or false"
        elif known[key] == "str":
            fits, expected = isinstance(value, str), "text"
        else:
            fits, expected = isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of texts"
        if not fits:
            raise ValueError(f"{path}: {where}.{key} is {value!r}; expected {expected}")


def _shown(tables: object) -> str:
    return "empty" if not tables else repr(tables)
