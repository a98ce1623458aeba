"""A writer that is killed, signalled, or runs out of room: what it leaves can be used, and the same command goes on."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from patchsae.activations import CachedTokens, CacheIndex
from tests.activations import cache_process
from tests.activations.small import wanted
from tests.parallel.launch import alone

pytestmark = pytest.mark.slow

SOURCE = "shapes:train?n=400&seed=5&size=16"


def launch(clip_folder: Path, out: Path, room: int = 0) -> BaseProcess:
    """The writer; after `room` images, where given, the disk is full."""
    return alone(cache_process.write, clip_folder, SOURCE, out, room, log=log_of(out))


def log_of(out: Path) -> Path:
    return out.with_name("errors.log")


def finish(process: BaseProcess, out: Path, status: int = 0) -> str:
    process.join(180)
    errors = log_of(out).read_text()
    assert process.exitcode == status, errors
    return errors


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def wait_for_shards(out: Path, process: BaseProcess, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("shard-*.safetensors"))) < count:
        assert process.is_alive(), "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "cache"
    errors = finish(launch(clip_folder, out), out)
    assert errors.startswith("cache: 400 images x 5 tokens x 16 in bfloat16, 50 shards: 89.6 kB, ")
    return out


def usable_images(folder: Path) -> int:
    """Every image that the index promises is there and is what was written."""
    index = CacheIndex.load(folder)
    count = sum(record.images for record in index.shards)
    with pytest.warns(UserWarning, match="a part of a cache"):
        source = CachedTokens(folder, wanted(1, steps=count - 1))
    assert sum(batch.images for batch in [*source.first(1), *source.batches(1)]) == count
    return count


def test_whatever_stops_it_leaves_a_prefix_and_the_same_command_ends_with_the_same_bytes(
    tmp_path: Path, clip_folder: Path, unbroken: Path
) -> None:
    out = tmp_path / "cache"
    errors = finish(launch(clip_folder, out, room=20), out, status=2)
    assert "no room to write" in errors
    assert "Stopped after 2 of 50 shards" in errors
    assert "(16 images), which can be trained on; the same command goes on from there" in errors
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]
    assert usable_images(out) == 16

    process = launch(clip_folder, out)
    wait_for_shards(out, process, 5)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    killed_at = usable_images(out)
    assert 32 <= killed_at < 400
    written = {path: path.stat().st_mtime_ns for path in out.glob("shard-*") if int(path.name[6:11]) < killed_at // 8}

    process = launch(clip_folder, out)
    wait_for_shards(out, process, killed_at // 8 + 3)
    os.killpg(process.pid or 0, signal.SIGTERM)
    errors = finish(process, out, status=143)
    assert "to go," in errors
    assert "of 50 shards in" in errors
    assert killed_at < usable_images(out) < 400

    finish(launch(clip_folder, out), out)
    assert files(out) == files(unbroken)
    assert written == {path: path.stat().st_mtime_ns for path in written}  # nothing was written twice
