from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from patchsae.activations.packing import Packed, empty_packed, pack
from patchsae.activations.shard import DamagedShard, read_head, read_rows, write_shard

IDS = ["a.png", 'ä/"b".png', "c", "d", "e", "f"]
POSITIONS = [40, 7, 3, 9, 11, 0]


@pytest.fixture(scope="module", params=["bfloat16", "int8"])
def packed(request: pytest.FixtureRequest) -> Packed:
    return pack(torch.randn(6, 4, 10, generator=torch.Generator().manual_seed(0)), request.param)


@pytest.fixture(scope="module")
def shard(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("shards") / "shard-00000.safetensors"
    return path, write_shard(path, packed, POSITIONS, IDS)


def rows_of(path: Path, sha256: str, rows: list[int], packed: Packed) -> torch.Tensor:
    head = read_head(path, sha256)
    out = empty_packed(len(rows), 4, 10, "bfloat16" if packed.scale is None else "int8").tokens
    read_rows(head, np.array(rows, np.int64), out)
    return out


def test_any_library_opens_it(shard: tuple[Path, str], packed: Packed) -> None:
    with safe_open(shard[0], "pt") as file:
        assert torch.equal(file.get_tensor("tokens"), packed.tokens)
        assert file.get_tensor("image").tolist() == POSITIONS
        assert ("scale" in file.keys()) == (packed.scale is not None)  # noqa: SIM118


@given(st.sets(st.integers(0, 5)))
def test_any_images_are_read_as_they_were_written(shard: tuple[Path, str], packed: Packed, wanted: set[int]) -> None:
    rows = sorted(wanted)
    assert torch.equal(rows_of(*shard, rows, packed), packed.tokens[rows])
    head = read_head(*shard)
    assert head.ids == IDS
    assert head.images.tolist() == POSITIONS
    if packed.scale is not None:
        assert head.scale is not None
        assert torch.equal(head.scale, packed.scale)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found(
    shard: tuple[Path, str], packed: Packed, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(shard[0].read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / shard[0].name
    path.write_bytes(content)
    with pytest.raises(DamagedShard, match="is damaged") as error:
        rows_of(path, shard[1], list(range(6)), packed)
    assert str(path) in str(error.value)
    assert f"`patchsae cache --out {tmp_path} --check`" in str(error.value)


def test_damage_to_one_image_names_it_and_leaves_the_others(
    shard: tuple[Path, str], packed: Packed, tmp_path: Path
) -> None:
    content = bytearray(shard[0].read_bytes())
    content[-1] ^= 1
    path = tmp_path / shard[0].name
    path.write_bytes(content)
    assert torch.equal(rows_of(path, shard[1], [0, 1, 2, 3, 4], packed), packed.tokens[:5])
    with pytest.raises(DamagedShard, match="image 'f' has another checksum"):
        rows_of(path, shard[1], [4, 5], packed)


def test_a_file_cut_short_or_gone_is_found(shard: tuple[Path, str], packed: Packed, tmp_path: Path) -> None:
    content = shard[0].read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        path = tmp_path / f"{length}.safetensors"
        path.write_bytes(content[:length])
        with pytest.raises(DamagedShard, match="is damaged"):
            rows_of(path, shard[1], [5], packed)
    with pytest.raises(DamagedShard, match="No such file"):
        rows_of(tmp_path / "gone", shard[1], [5], packed)


def test_a_shard_without_images_is_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    empty = pack(torch.empty(0, 4, 10), "int8")
    sha256 = write_shard(path, empty, [], [])
    assert rows_of(path, sha256, [], empty).shape == (0, 4, 10)
