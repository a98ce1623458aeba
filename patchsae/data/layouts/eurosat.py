"""EuroSAT (RGB): class folders, in 2750/ as the archive has them; the names are those of CoOp."""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.files import visible_folders
from patchsae.data.layout import Layout
from patchsae.data.layouts.class_folders import open_tree

_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def _matches(source: object) -> bool:
    if not isinstance(source, str) or not Path(source).is_dir():
        return False
    tree = _tree(source)
    found = set(visible_folders(tree)) & set(_NAMES)
    return len(found) == len(_NAMES) or (tree.name == "2750" and bool(found))


def _tree(source: object) -> Path:
    root = Path(str(source))
    return root / "2750" if (root / "2750").is_dir() else root


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    tree = _tree(source)
    missing = sorted(set(_NAMES) - set(visible_folders(tree)))
    if missing:
        raise DataError(f"{tree} lacks {len(missing)} of EuroSAT's 10 class folders: {', '.join(missing)}")
    return open_tree(tree, None, _NAMES, classes=sorted(_NAMES), name="EuroSAT")


LAYOUT = Layout(
    name="EuroSAT, class folders",
    looks_for="EuroSAT: ROOT/2750/AnnualCrop/*.jpg and nine more classes, in one piece",
    matches=_matches,
    splits=lambda source: [],
    open=_open,
    precedence=1,
)
