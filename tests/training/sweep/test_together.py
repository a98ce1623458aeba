"""A sweep in several processes is that of one, up to rounding: weights, what diverged, what is judged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from patchsae import load_sae
from patchsae.data import open_images
from patchsae.disk.runs import Run
from patchsae.experiments.frontier import experiment as frontier
from patchsae.models.clip import SplitCLIP
from patchsae.parallel.base import Alone
from patchsae.training.origin import FromImages
from patchsae.training.sweep.groups import group_bytes
from tests.parallel.pool import Pool
from tests.training.sweep import sweep_laws as laws
from tests.training.sweep.sweep_process import BLOCKS, short_grid, sweep_in
from tests.training.tiny import SOURCE

TEST = "shapes:test?n=24&size=16"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, clip: SplitCLIP) -> Path:
    """The folder of a sweep in one process."""
    root = tmp_path_factory.mktemp("alone")
    sweep_in(root / "saes", clip, short_grid())
    return root


def assert_same(found: Run, expected: Run) -> None:
    names = [stage.name for stage in expected.stages()]
    assert [stage.name for stage in found.stages()] == names
    for name in names:
        mine, theirs = (load_sae(run.stage(name).path).state_dict() for run in (found, expected))
        for key, tensor in theirs.items():
            torch.testing.assert_close(mine[key], tensor, rtol=1e-4, atol=2e-5)
        rows = [row["step"] for row in found.stage(name).metrics()]
        assert rows == list(range(1, 13))
        last, wanted = (run.stage(name).metrics()[-1] for run in (found, expected))
        assert last["mse"] == pytest.approx(wanted["mse"], rel=1e-3)
        assert last["images"] == wanted["images"]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path, pool: Pool, clip_folder: Path, alone: Path) -> None:
    assert pool.run(laws.swept, 2, 1, tmp_path, clip_folder, {}) == [[None] * 4] * 2
    assert_same(Run(tmp_path), Run(alone / "saes"))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_another_number_goes_on(
    tmp_path: Path, pool: Pool, clip: SplitCLIP, clip_folder: Path, alone: Path
) -> None:
    said = pool.run(laws.stopped, 2, 1, tmp_path, clip_folder)
    assert len(set(said)) == 1
    assert "of 12; the checkpoints are in" in said[0]
    sweep_in(tmp_path, clip, short_grid())
    assert_same(Run(tmp_path), Run(alone / "saes"))


@pytest.mark.slow
def test_what_diverges_is_dropped_by_all(tmp_path: Path, pool: Pool, clip_folder: Path) -> None:
    changes = {"variant": ("relu",), "l1": (3e38, 0.1)}
    for lost, kept in (found[:2] for found in pool.run(laws.swept, 2, 1, tmp_path, clip_folder, changes)):
        assert "step 1 has a loss or a gradient that is not finite" in lost
        assert kept is None


@pytest.mark.slow
def test_two_processes_judge_as_one_does(tmp_path: Path, pool: Pool, clip_folder: Path, alone: Path) -> None:
    tables = []
    for number, name in enumerate(("one", "two"), 1):
        shutil.copytree(alone, tmp_path / name)
        arguments = (tmp_path / name, clip_folder, TEST)
        laws.judged(Alone(), *arguments) if number == 1 else pool.run(laws.judged, number, 1, *arguments)
        tables.append(Run(tmp_path / name).stage("sweep").read_table(frontier.TABLE))
    one, two = tables
    assert list(one["name"]) == list(two["name"])
    for name in ("l0", "explained_variance", "dead", "dense", "concept_precision", "concept_iou"):
        assert list(two[name]) == pytest.approx(list(one[name]), rel=1e-6), name


def test_each_process_needs_memory_for_its_images_alone(clip: SplitCLIP) -> None:
    def needed(batch_size: int, processes: int) -> int:
        return group_bytes(origin, short_grid(batch_size=batch_size).trials(BLOCKS), processes)

    origin = FromImages(clip, open_images(SOURCE))
    assert needed(64, 2) == needed(32, 1) < needed(64, 1)
