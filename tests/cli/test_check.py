"""`patchsae check`: every file of a run, by its checksum."""

import os
import signal
import subprocess
import sys
import time

import pytest

from patchsae.cli import check as checking
from patchsae.cli import entry as cli
from patchsae.disk import checksums
from patchsae.disk.runs import Run


@pytest.fixture
def run(tmp_path):
    for name in ("train", "extract"):
        stage = Run(tmp_path / "run").stage(name, name)
        stage.begin({"lr": 1})
        stage.save_json("about", {"x": 1})
        stage.write_table("table.csv", {"x": [1, 2]})
        folder = stage.folder("inner")
        checksums.keep(folder)
        (folder / "unread.log").write_text("x")
        stage.finish()
    return tmp_path / "run"


def damaged(root):
    return {f"{one.path.name}/{name}" for one in checking.check(root) for name in one.damaged}


def test_a_whole_run_is_said_to_be(run, capsys):
    cli.main(["check", str(run)])
    out = capsys.readouterr().out
    assert f"{run / 'extract'}: finished, 5 of 5 files whole, 1 of them without a checksum" in out
    assert out.endswith("2 stages, 10 files: all are whole\n")


@pytest.mark.parametrize("name", ["about.json", "table.csv", "config.toml", ".sums", ".files"])
def test_each_damaged_file_is_named_with_what_to_run_again(run, name, capsys):
    path = run / "extract" / name
    path.write_bytes(b"x ../y\n" * 2 if name.startswith(".") else path.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit) as end:
        cli.main(["check", str(run)])
    out = capsys.readouterr().out
    assert end.value.code == 1
    assert str(path) in out
    assert f"{run / 'train'}: finished, 5 of 5 files whole" in out
    assert "1 of 2 stages damaged" in out
    assert f"`patchsae extract --run {run} --overwrite`" in out


def test_a_file_that_is_gone_is_damage(run):
    (run / "train" / "about.json").unlink()
    assert damaged(run) == {"train/about.json"}


def test_a_run_without_checksums_is_read_as_far_as_it_can_be(run):
    for name in ("train", "extract"):
        (run / name / checksums.FILE).unlink()
    assert damaged(run) == set()
    assert all(one.unchecked == one.files == 5 for one in checking.check(run))
    (run / "train" / "about.json").write_text('{"x": ')
    (run / "train" / "table.csv").write_text('"x\n')
    assert damaged(run) == {"train/about.json", "train/table.csv"}


def test_the_many_stages_of_a_sweep_and_one_stage_alone(run):
    trained = Run(run / "sweep-saes").stage("relu-x8", "sweep")
    trained.begin({})
    trained.save_json("about", {"x": 1})
    trained.finish()
    assert len(checking.check(run)) == 3
    (trained.path / "about.json").write_text("{}")
    assert damaged(run) == damaged(trained.path) == {"relu-x8/about.json"}
    assert damaged(run / "train") == set()


def test_a_stage_of_an_earlier_training_is_to_be_run_again(tmp_path, capsys):
    import torch

    from patchsae.disk.hashing import fingerprint
    from patchsae.models.sae import SparseAutoencoder
    from patchsae.models.sae_config import SAEConfig

    old, new = (SparseAutoencoder(SAEConfig(4, 6), torch.Generator().manual_seed(seed)) for seed in range(2))
    with Run(tmp_path).stage("train", "train") as stage:
        stage.begin({})
        for name in ("sae.safetensors", "config.json"):
            stage.own(name)
        new.save(stage.path)
        stage.finish()
    for name, sae, given in (("extract", old, {}), ("evaluate", new, {}), ("mask", old, {"sae": "other.pt"})):
        with Run(tmp_path).stage(name, name) as stage:
            stage.begin({**given, "made_from": {"sae": {"weights": fingerprint(sae.state_dict())}}})
            stage.finish()
    assert [one.path.name for one in checking.check(tmp_path) if one.stale] == ["extract"]
    with pytest.raises(SystemExit):
        cli.main(["check", str(tmp_path)])
    out = capsys.readouterr().out
    assert "it was made from another autoencoder" in out
    assert f"`patchsae extract --run {tmp_path} --overwrite`" in out
    assert out.endswith(f"1 of 4 stages made from an earlier training: {tmp_path / 'extract'}\n")


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run"):
        checking.check(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checking.check(tmp_path / "nope")


WRITER = """
import sys
from patchsae.disk.runs import Run
stage = Run(sys.argv[1]).stage("extract")
stage.begin({"lr": 1})
i = 0
while True:
    i += 1
    if i == 2:
        print("one is whole", flush=True)
    stage.save_json("state", {"x": [i] * 500})
    stage.write_table("table.csv", {"x": [i] * 50})
    stage.append_metrics({"step": i})
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_moment_of_a_kill_leaves_what_looks_damaged(tmp_path, seed):
    with subprocess.Popen([sys.executable, "-c", WRITER, os.fspath(tmp_path)], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        time.sleep(0.02 + 0.037 * seed)
        writer.send_signal(signal.SIGKILL)
    assert damaged(tmp_path) == set()
    stage = Run(tmp_path).stage("extract")
    assert stage.load_json("state")["x"]
    assert stage.metrics()
