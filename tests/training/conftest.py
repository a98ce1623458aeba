"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.models.clip import SplitCLIP
from tests.drawing import drawn, undrawn  # noqa: F401 (fixtures)

from .tiny import open_clip_dir, write_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> SplitCLIP:
    return open_clip_dir(clip_folder)
