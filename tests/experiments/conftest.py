from pathlib import Path

import pytest

from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from tests.drawing import drawn, undrawn  # noqa: F401 (fixtures)
from tests.experiments.worlds import make_clip, make_sae


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips") / "first"


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> SplitCLIP:
    return make_clip(clip_folder)


@pytest.fixture(scope="session")
def other_clip(clip_folder: Path) -> SplitCLIP:
    """Another checkpoint of the same CLIP."""
    return make_clip(clip_folder.with_name("second"), seed=1)


@pytest.fixture(scope="session")
def sae(clip: SplitCLIP) -> SparseAutoencoder:
    return make_sae(clip.width)
