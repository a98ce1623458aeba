"""Extraction, masking and comparison by several processes: what one process finds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run, Stage
from patchsae.experiments import classes
from patchsae.experiments.extract import Extraction
from patchsae.experiments.options import StreamOptions
from patchsae.experiments.stream.fold import fold
from patchsae.parallel.base import Alone
from tests.experiments import shared_laws as laws
from tests.parallel.pool import Pool

SUMS = ("sums", "mean_activation", "noise")  # float64, in another order


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Pool]]:
    pools = {size: Pool(size) for size in (2, 4)}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="module")
def alone(clip, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    root = tmp_path_factory.mktemp("alone")
    assert laws.extracted(Alone(), clip_folder, root, False) == 0
    return root


def assert_same(found: Stage, expected: Stage, *, bits: bool = False) -> None:
    """Every tensor of the stage, the sums to float64 rounding (or with their bits)."""
    names = sorted(path.name for path in expected.path.iterdir() if path.name[0] != ".")
    assert sorted(path.name for path in found.path.iterdir() if path.name[0] != ".") == names
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        tensors, wanted = (stage.load_tensors(name.removesuffix(".safetensors")) for stage in (found, expected))
        assert tensors.keys() == wanted.keys()
        for key, tensor in tensors.items():
            if key in SUMS and not bits:
                torch.testing.assert_close(tensor, wanted[key], rtol=1e-14, atol=0)
            else:
                assert tensor.dtype == wanted[key].dtype
                assert tensor.numpy().tobytes() == wanted[key].numpy().tobytes(), f"{name}: {key}"


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_extraction(pools: dict[int, Pool], clip_folder: Path, alone: Path, tmp_path: Path, size: int) -> None:
    pools[size].run(laws.extracted, size, 1, clip_folder, tmp_path, False)
    assert_same(Run(tmp_path).stage("extract"), Run(alone).stage("extract"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_a_signal_to_one_stops_all_and_they_go_on_to_the_same_bits(
    pools: dict[int, Pool], clip_folder: Path, tmp_path: Path, size: int
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    assert pools[size].run(laws.extracted, size, 1, clip_folder, broken, True) == [signal.SIGTERM] * size
    position = int(Run(broken).stage("extract").load_tensors("fold")["position"])
    assert 0 < position < laws.N
    assert position % (size * laws.EXTRACT.batch_size) == 0
    for run in (broken, whole):
        assert pools[size].run(laws.extracted, size, 1, clip_folder, run, False) == [0] * size
    assert_same(Run(broken).stage("extract"), Run(whole).stage("extract"), bits=True)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (4, 1), (1, 2)])
def test_another_number_of_processes_goes_on(
    pools: dict[int, Pool], clip_folder: Path, alone: Path, tmp_path: Path, before: int, after: int
) -> None:
    for size, down in ((before, True), (after, False)):
        if size == 1:
            laws.extracted(Alone(), clip_folder, tmp_path, down)
        else:
            pools[size].run(laws.extracted, size, 1, clip_folder, tmp_path, down)
    assert_same(Run(tmp_path).stage("extract"), Run(alone).stage("extract"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_masking(pools: dict[int, Pool], clip_folder: Path, alone: Path, tmp_path: Path, size: int) -> None:
    ranked = Run(tmp_path / "ranked")
    classes.run(Extraction.load(Run(alone).stage("extract")), ranked.stage("classes"))
    laws.masked(Alone(), clip_folder, ranked.root, tmp_path / "one")
    pools[size].run(laws.masked, size, 1, clip_folder, ranked.root, tmp_path / "many")
    one, many = (Run(tmp_path / name).stage("mask") for name in ("one", "many"))
    assert_same(many, one)
    assert (many.path / "recall.csv").read_text() == (one.path / "recall.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False], ids=["models", "datasets"])
def test_comparison(pools: dict[int, Pool], clip_folder: Path, tmp_path: Path, same: bool) -> None:
    laws.compared(Alone(), clip_folder, tmp_path / "one", same)
    pools[4].run(laws.compared, 4, 1, clip_folder, tmp_path / "many", same)
    one, many = (Run(tmp_path / name).stage("compare") for name in ("one", "many"))
    assert_same(many, one)


class HalfOfTheLatents(Alone):
    latent_size = 2


def test_a_fold_divides_images_only() -> None:
    with pytest.raises(ValueError, match="divides the latents by 2; a fold divides images only"):
        fold(ShapesWorld(n=2), lambda image: image, print, {}, StreamOptions(), label="", parallel=HalfOfTheLatents())
