"""Loggers: metrics.jsonl always, the others on demand, no step twice after a resume."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchsae.disk.runs import Run, Stage
from patchsae.training.loggers import NAMES, open_loggers

ROOT = Path(__file__).parents[2]


def begun(root: Path, **config: object) -> Stage:
    stage = Run(root / "run").stage("train")
    stage.begin({"lr": 0.1, **config})
    return stage


def rows(first: int, last: int) -> list[dict[str, float]]:
    return [{"step": step, "mse": step / 2, "l1_norm": math.nan} for step in range(first, last + 1)]


def interrupted_after(root: Path, names: tuple[str, ...]) -> Stage:
    """Steps 1 to 5 are logged, the last checkpoint is of step 3, and a second process goes on to step 6."""
    with begun(root) as stage, open_loggers(names, stage) as loggers:
        for row in rows(1, 5):
            loggers.log(row)
    with begun(root) as stage:
        stage.keep_metrics(lambda row: row["step"] <= 3)
        with open_loggers(names, stage) as loggers:
            for row in rows(4, 6):
                loggers.log(row)
    return stage


def test_metrics_jsonl_is_always_written_and_has_no_step_twice(tmp_path: Path) -> None:
    stage = interrupted_after(tmp_path, ())
    assert stage.metrics() == [{"step": step, "mse": step / 2, "l1_norm": None} for step in range(1, 7)]
    assert not {"tensorboard", "wandb"} & {path.name for path in stage.path.iterdir()}


def test_tensorboard_shows_every_step_once_and_nothing_that_is_not_finite(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = interrupted_after(tmp_path, ("tensorboard",))
    assert len(stage.metrics()) == 6
    shown = EventAccumulator(str(stage.path / "tensorboard"))
    shown.Reload()
    assert shown.Tags()["scalars"] == ["train/mse"]
    assert [(event.step, event.value) for event in shown.Scalars("train/mse")] == [(n, n / 2) for n in range(1, 7)]


@pytest.mark.slow  # it starts processes of its own
def test_weights_and_biases_offline_has_every_step_once_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    stage = interrupted_after(tmp_path, ("wandb",))
    folders = sorted(path for path in (stage.path / "wandb").iterdir() if path.name.startswith("offline-run"))
    ids = {folder.name.rpartition("-")[2] for folder in folders}
    assert ids == {stage.load_json("wandb-run")["id"]}
    history: list[dict[str, float]] = []
    end = time.monotonic() + 30
    while len(history) < 6 and time.monotonic() < end:  # the service that writes the files may come last
        time.sleep(0.1)
        history = [row for folder in folders for row in offline_history(next(folder.glob("*.wandb")))]
    assert sorted((row["_step"], row["mse"]) for row in history) == [(n, n / 2) for n in range(1, 7)]
    assert not any("l1_norm" in row for row in history)


def offline_history(path: Path) -> list[dict[str, float]]:
    """The lines that an offline run keeps: LevelDB's log format (checksum, length and kind before every record)."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert len(content) < 32_768, "one block"
    found, start = [], 7  # after the file's own header
    while start + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, start)
        if start + 7 + length > len(content):  # being written
            break
        assert kind == 1, "a whole record"
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[start + 7 : start + 7 + length])
        if record.WhichOneof("record_type") == "history":
            items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            found.append({key: json.loads(value) for key, value in items.items()})
        start += 7 + length
    return found


def test_overwriting_the_stage_begins_a_new_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    stage = interrupted_after(tmp_path, ("tensorboard",))
    stage.begin({"lr": 0.2}, overwrite=True)
    stage.close()
    assert not (stage.path / "tensorboard").exists()


def test_an_unknown_logger_is_named(tmp_path: Path) -> None:
    with begun(tmp_path) as stage, pytest.raises(ValueError, match="log has 'mlflow'; expected names of tensorboard"):
        open_loggers(("mlflow",), stage)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in [name, *(m for m in sys.modules if m.startswith((f"{name}.", "torch.utils.tensorboard")))]:
        monkeypatch.setitem(sys.modules, module, None)
    with begun(tmp_path) as stage, pytest.raises(ImportError, match=rf"pip install 'patchsae\[{name}\]'"):
        open_loggers((name,), stage)


def test_nothing_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    program = (
        "import sys, patchsae.training.loggers as loggers\n"
        "assert not {'torch', 'tensorboard', 'wandb'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
