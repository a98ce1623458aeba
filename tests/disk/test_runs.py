import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from patchsae.disk.locks import StageLocked
from patchsae.disk.runs import ConfigDiffers, Run

CONFIG = {"images": "shapes:train", "lr": 4e-4, "k": None, "model": {"name": "tiny", "layer": -2}}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "demo")


def begun(run, name="extract", config=CONFIG, **options):
    stage = run.stage(name)
    assert stage.begin(config, **options)
    return stage


def visible(stage):
    return sorted(path.name for path in stage.path.iterdir() if not path.name.startswith("."))


def test_a_run_on_paper_touches_nothing(run):
    assert not run.stage("train").finished
    assert run.stage("train").config is None
    assert run.stages() == []
    assert not run.root.exists()


def test_config_is_recorded_with_what_made_the_run(run):
    with begun(run, device="cuda:0") as stage:
        assert stage.config == {"images": "shapes:train", "lr": 4e-4, "model": {"name": "tiny", "layer": -2}}
        assert stage.environment["device"] == "cuda:0"
        assert stage.environment["stage"] == "extract"
        assert {"python", "torch", "numpy"} <= stage.environment["versions"].keys()


def test_a_finished_stage_says_so_and_does_nothing(run, capsys):
    stage = begun(run)
    stage.write_bytes("a.png", b"1")
    stage.finish()
    before = {path: path.stat().st_mtime_ns for path in stage.path.iterdir() if path.name != ".lock"}
    again = run.stage("extract")
    assert again.finished
    assert not again.begin(CONFIG)
    assert "extract: already finished in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.begin(CONFIG, overwrite=True)  # so it let go of the lock
    again.close()


def test_an_unfinished_stage_carries_on(run):
    with begun(run) as stage:
        stage.save_json("state", {"batch": 3})
    with begun(run) as stage:
        assert stage.load_json("state") == {"batch": 3}
        stage.save_json("state", {"batch": 4})
        assert stage.load_json("state") == {"batch": 4}


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_by_name(run, finished):
    stage = begun(run)
    stage.finish() if finished else stage.close()
    changed = CONFIG | {"lr": 1e-3, "k": 32, "model": {"name": "tiny", "layer": -3}}
    with pytest.raises(ConfigDiffers) as error:
        run.stage("extract").begin(changed)
    assert "lr: was 0.0004, now 0.001" in str(error.value)
    assert "k: was not set, now 32" in str(error.value)
    assert "model.layer: was -2, now -3" in str(error.value)
    assert "images" not in str(error.value)
    begun(run, config=changed, overwrite=True).close()


def test_settings_that_decide_nothing_may_differ(run):
    begun(run, config=CONFIG | {"workers": 0}).close()
    with begun(run, config=CONFIG | {"workers": 8}, may_differ=["workers"]) as stage:
        assert stage.config["workers"] == 8


def test_overwrite_removes_what_the_stage_wrote_and_nothing_else(run):
    with begun(run) as stage:
        stage.write_bytes("a.png", b"1")
        stage.append_metrics({"step": 1})
        (stage.folder("sae") / "weights").write_text("x")
        stage.finish()
    (stage.path / "notes.txt").write_text("mine")
    (stage.path / "more").mkdir()
    with begun(run, config=CONFIG | {"lr": 1.0}, overwrite=True) as stage:
        assert visible(stage) == ["config.toml", "more", "notes.txt"]
        assert not stage.finished
        assert stage.config["lr"] == 1.0


def test_folders_and_files_of_others_are_refused(run):
    folder = run.root / "extract"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("theirs = 1")
    with pytest.raises(FileExistsError, match=r"extract holds config\.toml and is not a stage"):
        run.stage("extract").begin(CONFIG, overwrite=True)
    assert (folder / "config.toml").read_text() == "theirs = 1"
    assert run.stages() == []
    with begun(run, "mask") as stage:
        (stage.path / "notes.csv").write_text("mine")
        with pytest.raises(FileExistsError, match=r"notes\.csv was not written by this stage"):
            stage.write_table("notes.csv", {"a": [1]})
    (run.root / "explain").write_text("a file")
    with pytest.raises(FileExistsError, match="explain is a file"):
        run.stage("explain").begin(CONFIG)


def test_names_stay_inside_the_folder(run):
    for name in ("../x", "a/b", ".hidden", "", "a\n"):
        with pytest.raises(ValueError, match="one path component"):
            run.stage(name)
    with begun(run) as stage:
        with pytest.raises(ValueError, match="one path component"):
            stage.write_bytes("../a.png", b"")
        for name in ("config.toml", "finished"):
            with pytest.raises(ValueError, match="written by the stage itself"):
                stage.write_bytes(name, b"")


def test_writing_needs_begin(run):
    stage = run.stage("extract")
    with pytest.raises(RuntimeError, match=r"call begin\(\) first"):
        stage.append_metrics({"step": 1})
    stage = begun(run)
    with pytest.raises(RuntimeError, match="already begun here"):
        stage.begin(CONFIG)
    stage.finish()
    with pytest.raises(RuntimeError, match=r"call begin\(\) first"):
        stage.write_bytes("a.png", b"")


def test_reserved_keys_are_refused(run):
    with pytest.raises(ValueError, match="'versions', which the run writes itself"):
        run.stage("extract").begin({"versions": {}})


def test_two_writers_of_one_stage(run):
    with begun(run), pytest.raises(StageLocked):
        run.stage("extract").begin(CONFIG)
    begun(run).close()
    with begun(run, "mask"), begun(run, "extract"):
        assert [stage.name for stage in run.stages()] == ["extract", "mask"]


def test_tensors_round_trip(run):
    torch = pytest.importorskip("torch")
    strided = torch.arange(12, dtype=torch.float32).reshape(3, 4).t()
    with begun(run) as stage:
        stage.save_tensors("numpy", {"counts": np.arange(6).reshape(2, 3).T})
        stage.save_tensors("torch", {"W": strided, "b": torch.ones(2, dtype=torch.bfloat16), "n": np.arange(3)})
    np.testing.assert_array_equal(stage.load_tensors("numpy")["counts"], np.arange(6).reshape(2, 3).T)
    got = stage.load_tensors("torch")
    assert torch.equal(got["W"], strided)
    assert got["b"].dtype == torch.bfloat16
    assert got["n"].tolist() == [0, 1, 2]


def test_json_round_trips_and_has_no_nan(run):
    with begun(run) as stage:
        stage.save_json("a", {"é": [1, 2.5, None, True], "n": np.int64(3), "v": np.arange(2), "p": Path("x")})
        assert stage.load_json("a") == {"é": [1, 2.5, None, True], "n": 3, "v": [0, 1], "p": "x"}
        with pytest.raises(ValueError, match="not JSON compliant"):
            stage.save_json("b", {"entropy": float("nan")})
        assert not (stage.path / "b.json").exists()


def test_a_torn_last_line_of_the_metrics_is_repaired(run):
    with begun(run) as stage:
        for step in range(3):
            stage.append_metrics({"step": step, "mse": np.float32(0.5), "bad": float("inf")})
    with (stage.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "ms')
    assert [row["step"] for row in stage.metrics()] == [0, 1, 2]
    with begun(run) as stage:
        stage.append_metrics({"step": 3, "mse": 0.25, "bad": 1.0})
    assert [row["step"] for row in stage.metrics()] == [0, 1, 2, 3]
    assert stage.metrics()[0] == {"step": 0, "mse": 0.5, "bad": None}
    with begun(run) as stage:
        stage.keep_metrics(lambda row: row["step"] < 2)
        stage.append_metrics({"step": 2})
    assert [row["step"] for row in stage.metrics()] == [0, 1, 2]


WRITER = """
import sys, numpy as np
from patchsae.disk.runs import Run
stage = Run(sys.argv[1]).stage("extract")
assert stage.begin({"lr": 1})
i = stage.load_json("state")["x"][0] if (stage.path / "state.json").exists() else 0
while True:
    i += 1
    stage.save_tensors("state", {"x": np.full(200_000, i)})
    stage.write_table("table.csv", {"x": np.full(5_000, i)})
    stage.save_json("state", {"x": [i] * 5_000})
    stage.append_metrics({"step": i, "text": "x" * 5_000})
    print(i, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_last_complete_state(run):
    from safetensors.numpy import load_file

    delays = random.Random(0)
    previous = 0
    for _ in range(5):
        with _process(WRITER, run.root) as writer:
            assert int(writer.stdout.readline()) == previous + 1  # carried on from the last complete state
            time.sleep(delays.uniform(0.0, 0.15))
            writer.send_signal(signal.SIGKILL)
        with begun(run, config={"lr": 1}) as stage:
            assert not [path for path in stage.path.iterdir() if path.name.endswith(".partial")]
            contents = [
                load_file(stage.path / "state.safetensors")["x"],
                stage.read_table("table.csv")["x"],
                np.asarray(stage.load_json("state")["x"]),
            ]
            values = [int(content[0]) for content in contents]
            assert all((content == value).all() for content, value in zip(contents, values, strict=True))
            assert values[0] - 1 <= values[-1] <= values[0]  # written in this order, so at most one behind
            previous = values[-1]
            assert all(len(row["text"]) == 5_000 for row in stage.metrics())
    assert previous > 5


HALFWAY = """
import sys, time
from patchsae.disk import atomic
from patchsae.disk.runs import Run
stage = Run(sys.argv[1]).stage("extract")
stage.begin({"lr": 1})
with atomic.replacing(stage.own("state.json")) as path:
    path.write_text('{"half": ')
    print("half", flush=True)
    time.sleep(60)
"""


def test_killed_in_the_middle_of_a_file(run):
    with begun(run, config={"lr": 1}) as stage:
        stage.save_json("state", {"whole": 1})
    with _process(HALFWAY, run.root) as writer:
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    assert any(path.name.endswith(".partial") for path in stage.path.iterdir())
    with begun(run, config={"lr": 1}) as stage:
        assert stage.load_json("state") == {"whole": 1}
        assert not any(path.name.endswith(".partial") for path in stage.path.iterdir())
        assert visible(stage) == ["config.toml", "state.json"]


OVERWRITER = """
import sys
from patchsae.disk.runs import Run
Run(sys.argv[1]).stage("extract").begin({"lr": 2}, overwrite=True)
"""


def test_killed_while_overwriting(run):
    """What is left of the old results never mixes with new ones."""
    with begun(run, config={"lr": 1}) as stage:
        folder = stage.folder("many")
        for i in range(2_000):
            (folder / str(i)).touch()
        stage.save_json("state", {"old": 1})
        stage.finish()
    marker = stage.path / ".discarded"
    with _process(OVERWRITER, run.root) as writer:
        deadline = time.monotonic() + 20
        while not marker.exists() and time.monotonic() < deadline:
            pass
        writer.send_signal(signal.SIGKILL)
    assert marker.exists(), "killed too late: there was nothing half-way to see"
    assert not stage.finished
    with begun(run, config={"lr": 3}) as stage:
        assert visible(stage) == ["config.toml"]


def test_nothing_here_needs_torch():
    code = "import sys, patchsae.disk.runs, patchsae.progress, patchsae.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_config_file_reads_well(run):
    begun(run, device="cpu").close()
    text = (run.root / "extract" / "config.toml").read_text()
    assert text.startswith(
        'images = "shapes:train"\nlr = 0.0004\n\n[model]\nname = "tiny"\nlayer = -2\n\n[environment]\n'
    )
    assert json.dumps("cpu") in text


class _process:
    """A Python process, killed and waited for at the end of the block."""

    def __init__(self, code, root):
        self._arguments = [sys.executable, "-c", code, os.fspath(root)]

    def __enter__(self):
        self._popen = subprocess.Popen(self._arguments, stdout=subprocess.PIPE, text=True)
        return self._popen

    def __exit__(self, *_):
        self._popen.kill()
        self._popen.wait()
        self._popen.stdout.close()
