"""The configuration of weights that training left in a folder ``checkpoints``, which lies beside that folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchsae.disk.documents import read_json
from patchsae.models.checkpoints.opened import MOST_CONFIG, Opened

FOLDER, CONFIG = "checkpoints", "config.json"


def config(opened: Opened) -> Mapping[str, Any]:
    """What the configuration beside the weights says, or the one above; empty where there is none."""
    folder = opened.file.absolute().parent
    above = folder.parent / CONFIG
    if opened.config_file is not None or folder.name != FOLDER or not above.is_file():
        return opened.config
    record = read_json(above, MOST_CONFIG)
    return record if isinstance(record, dict) else {}
