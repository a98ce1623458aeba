"""`patchsae cache` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from patchsae.activations import CachedTokens
from patchsae.cli.entry import main
from tests.activations.small import wanted
from tests.training.tiny import write_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


def test_the_verb_writes_reads_and_mends_a_cache(
    tmp_path: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    model = ["--model", f"local-dir:{clip_folder}", "--device", "cpu"]
    images = ["--images", "shapes?n=20&size=16", "--split", "train"]
    command = ["cache", "--out", str(out), *images, *model, "--batch-size", "4", "--shard-mb", "0.001"]
    main([*command, "--store", "int8"])
    printed = capsys.readouterr()
    assert "cache: 20 images x 5 tokens x 16 in int8, 3 shards: 3.28 kB, " in printed.err
    assert f"{out}: 20 images in 3 shards" in printed.out
    main([*command, "--store", "int8"])
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(command)
    assert "store: was 'int8', now 'bfloat16'" in capsys.readouterr().err

    shard = out / "shard-00001.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(before[:-1])
    with pytest.raises(RuntimeError) as error:
        list(CachedTokens(out, wanted()).batches(4))
    named = str(error.value).split("`")[1].split()[1:]  # `patchsae cache ...`: as it stands there
    main(named)
    assert "3 shards; written anew: shard-00001.safetensors" in capsys.readouterr().out
    assert shard.read_bytes() == before
    assert len(list(CachedTokens(out, wanted()).batches(4))) == 12


@pytest.mark.parametrize("cached", [True, False])
def test_a_preset_yields_to_a_cache_and_later_verbs_go_by_the_images_that_training_went_by(
    tmp_path: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str], cached: bool
) -> None:
    for number in range(12):
        path = tmp_path / "pets" / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(path)
    (tmp_path / "pets/class_0/torn.png").write_bytes(b"torn")
    source = ["--images", str(tmp_path / "pets"), "--model", f"local-dir:{clip_folder}", "--on-bad-image", "skip"]
    device = ["--device", "cpu"]
    train = ["train", "--run", str(tmp_path / "run"), "--preset", "quick", "--total-images", "16", "--batch-size", "4"]
    if cached:
        main(["cache", "--out", str(tmp_path / "cache"), *source, *device, "--batch-size", "4"])
        main([*train, *device, "--cache", str(tmp_path / "cache")])
    else:
        main([*train, *device, *source])
    capsys.readouterr()
    main(["extract", "--run", str(tmp_path / "run"), *device])
    assert "1 of 13 images could not be read and were left out" in capsys.readouterr().err
    few = ["--adapter", "linear", "--setting", "few-shot", "--shots", "6", "--augment", "none", "--steps", "51"]
    halves = ["--split", "[:50%]", "--test-split", "[50%:]"]
    main(["adapt", "--run", str(tmp_path / "run"), *device, *halves, *few])
    assert "could not be read and were left out" in capsys.readouterr().err
