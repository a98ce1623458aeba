"""Fixtures of the adaptation tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.models.clip import SplitCLIP
from tests.drawing import drawn, undrawn  # noqa: F401 (fixtures)

from .tiny import read_clip, write_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> SplitCLIP:
    return read_clip(clip_folder)
