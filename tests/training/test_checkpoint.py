"""Checkpoints: put back bit for bit, and what happens to those that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.data import BadImageRecord
from patchsae.parallel.base import Alone
from patchsae.training import checkpoint
from patchsae.training.checkpoint import DamagedCheckpoints, TrainState
from patchsae.training.config import TrainConfig
from patchsae.training.learner import Learner
from tests.examples import examples

CONFIG = TrainConfig(expansion=3, variant="jumprelu", normalise="standardise")


def state_of(step: int, seed: int = 0) -> TrainState:
    """A state in which every tensor is random."""
    generator = torch.Generator().manual_seed(seed + step)
    learner = Learner(CONFIG, 4, "cpu", Alone(), {})
    learner.blank()
    state = learner.state
    state.buffers = {"threshold": torch.zeros(())}
    for tensors in (state.params, state.buffers, state.constants, state.adam.exp_avg, state.adam.exp_avg_sq):
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    state.dead.since_fired.random_(0, 100, generator=generator)
    state.step, state.position, state.images, state.adam.step = step, 4 * step, 3 * step, step + 1
    state.bad = [BadImageRecord(step, "a/ü.png", "no picture")]
    return state


def contents(state: TrainState) -> dict[str, object]:
    groups = (state.params, state.buffers, state.constants, state.adam.exp_avg, state.adam.exp_avg_sq)
    tensors = {f"{i}.{name}": tensor.tolist() for i, group in enumerate(groups) for name, tensor in group.items()}
    counts = (state.step, state.position, state.images, state.adam.step)
    return {**tensors, "dead": state.dead.since_fired.tolist(), "counts": counts, "bad": state.bad}


def save_steps(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        checkpoint.save(folder, state_of(step), Alone(), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def restored(folder: Path) -> TrainState:
    state = state_of(0, seed=1)
    checkpoint.restore(folder, state, Alone())
    return state


def test_all_of_the_state_comes_back(tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path)
    save_steps(tmp_path, 7)
    assert checkpoint.exists(tmp_path)
    state = restored(tmp_path)
    assert contents(state) == contents(state_of(7))
    assert state.params["W_enc"].stride() == (1, 4)
    assert {"log_threshold"} < state.params.keys()
    assert state.constants.keys() == {"shift", "scale"}


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 5, 9, 12)
    assert names(tmp_path) == ["000000009.safetensors", "000000012.safetensors"]
    save_steps(tmp_path, 13, keep=1)
    assert names(tmp_path) == ["000000013.safetensors"]


def test_a_copy_beside_them_is_none_of_them(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    copy = tmp_path / "000000001.copy.safetensors"
    (tmp_path / "000000001.safetensors").rename(copy)
    assert not checkpoint.exists(tmp_path)
    save_steps(tmp_path, 2, 3, keep=1)
    assert names(tmp_path) == [copy.name, "000000003.safetensors"]
    assert contents(restored(tmp_path)) == contents(state_of(3))


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) * 3 // 4
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_taken(
    tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    save_steps(tmp_path, 5, 10)
    newest = tmp_path / "000000010.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    damaged = newest.read_bytes()
    assert contents(restored(tmp_path)) == contents(state_of(5))
    warning = capsys.readouterr().err
    assert f"{newest} is damaged" in warning
    assert warning.count("\n") == 1
    assert newest.read_bytes() == damaged


def test_a_damaged_one_does_not_push_out_what_is_written_after_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 5, 10)
    (tmp_path / "000000010.safetensors").write_bytes(b"")
    save_steps(tmp_path, 7, keep=1)
    assert names(tmp_path) == ["000000007.safetensors"]


def test_where_all_are_damaged_the_error_says_what_to_do_and_nothing_changes(tmp_path: Path) -> None:
    save_steps(tmp_path, 5, 10)
    for path in tmp_path.iterdir():
        path.write_bytes(flip(path.read_bytes()))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DamagedCheckpoints, match=r"(?s)000000010.*000000005.*Put back a copy.*--overwrite"):
        restored(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_steps(folder, 3)
    return folder / "000000003.safetensors"


@examples(60)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A file that differs in one bit is refused, or holds the same state (the header has blanks that pad it)."""
    content = bytearray(whole.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    folder = tmp_path_factory.mktemp("flipped")
    (folder / whole.name).write_bytes(content)
    try:
        state = restored(folder)
    except DamagedCheckpoints:
        return
    assert contents(state) == contents(state_of(3))
