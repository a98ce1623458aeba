"""`patchsae cache` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.activations import CachedTokens
from patchsae.cli import main
from tests.activations.small import config

pytestmark = pytest.mark.slow


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
        list(CachedTokens(out, config()).batches(4))
    named = str(error.value).split("`")[1].split()[1:]  # `patchsae cache ...`: as it stands there
    main(named)
    assert "3 shards; written anew: shard-00001.safetensors" in capsys.readouterr().out
    assert shard.read_bytes() == before
    assert len(list(CachedTokens(out, config()).batches(4))) == 12
