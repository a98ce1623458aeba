"""`patchsae sweep` on a cache: what need not be said, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.cli.entry import main
from patchsae.disk.runs import Run

RECIPE = ["--expansion", "2", "--total-images", "16", "--batch-size", "8", "--variant", "topk", "--k", "4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of block 1 of the shipped CLIP."""
    folder = tmp_path_factory.mktemp("cache") / "tokens"
    main(["cache", "--out", str(folder), "--images", "shapes?n=24", "--split", "train", "--layer", "1"])
    return folder


def test_model_block_and_images_are_those_of_the_cache(tmp_path: Path, cache: Path) -> None:
    main(["sweep", "--run", str(tmp_path), "--cache", str(cache), *RECIPE, "--test-limit", "8"])
    stage = Run(tmp_path).stage("sweep")
    table, config = stage.read_table("frontier.csv"), stage.config
    assert list(table["name"]) == ["topk-k4-x2-block1"]
    assert table["l0"][0] == pytest.approx(4)
    assert config is not None
    assert (config["images"], config["split"]) == ("shapes?n=24", "test")
    trained = Run(tmp_path / "sweep-saes").stage("topk-k4-x2-block1").config
    assert trained is not None
    assert (trained["layer"], trained["split"], "cache" in trained) == (1, "train", True)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["--layer", "2"], "holds the output of block 1 alone"),
        (["--images", "shapes?n=25", "--split", "train"], "the cache was written from"),
        (["--model", "tiny", "--pretrained", "random"], "the cache was written from"),
        (["--dtype", "bfloat16"], "--dtype is bfloat16; "),
        (["--test-split", "train"], "--test-split is 'train', which is trained on"),
    ],
)
def test_what_is_not_that_of_the_cache_is_refused(
    tmp_path: Path, cache: Path, named: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--run", str(tmp_path / "run"), "--cache", str(cache), *RECIPE, *named])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
