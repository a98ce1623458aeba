"""Law: what is read back is what was written, or DamagedFile names the file and the command that makes it again."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from patchsae.disk import atomic, checksums
from patchsae.disk.again import GIVEN, again
from patchsae.disk.checksums import DamagedFile
from patchsae.disk.runs import Run
from tests.examples import examples

SAME_FOLDER = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
READERS = {
    "numbers.safetensors": lambda stage: stage.load_tensors("numbers")["x"].tolist(),
    "about.json": lambda stage: stage.load_json("about"),
    "table.csv": lambda stage: {name: list(column) for name, column in stage.read_table("table.csv").items()},
    "table.parquet": lambda stage: {name: list(column) for name, column in stage.read_table("table.parquet").items()},
    "metrics.jsonl": lambda stage: stage.metrics(),
    "config.toml": lambda stage: stage.config,
}


def written(root, finished=True):
    stage = Run(root).stage("extract", "extract")
    assert stage.begin({"lr": 0.5, "k": [1, 2]})
    stage.save_tensors("numbers", {"x": np.arange(50)})
    stage.save_json("about", {"x": 1.5, "names": ["a", "b"]})
    for name in ("table.csv", "table.parquet"):
        stage.write_table(name, {"x": [1, 2, 3], "name": ["a", "b", "c"]})
    for step in range(3):
        stage.append_metrics({"step": step, "mse": 0.25})
    stage.finish() if finished else stage.close()
    return stage


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_any_change_of_any_byte_is_noticed(tmp_path, name, finished):
    stage = written(tmp_path / "run", finished)
    path = stage.path / name
    whole, right = path.read_bytes(), READERS[name](stage)

    @SAME_FOLDER
    @given(st.data())
    def law(data):
        place = data.draw(st.integers(0, len(whole) - 1))
        flipped = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
        cut = whole[:place]
        content = data.draw(st.sampled_from([flipped, cut, b"", whole + b"\n{}\n"]))
        path.write_bytes(content)
        lines = content[: content.rfind(b"\n") + 1]
        if name == "metrics.jsonl" and whole.startswith(lines) and not finished:
            # a kill may tear the last line of a file that grows: what follows the last line is no damage
            found = READERS[name](stage)
            assert found == right[: len(found)]
            return
        with pytest.raises(DamagedFile, match=re.escape(str(path))) as error:
            READERS[name](stage)
        assert f"patchsae extract --run {tmp_path / 'run'} --overwrite" in str(error.value)

    law()
    path.write_bytes(whole)
    assert READERS[name](stage) == right


def test_a_file_that_is_gone_is_said_to_be(tmp_path):
    stage = written(tmp_path)
    (stage.path / "about.json").unlink()
    with pytest.raises(DamagedFile, match=r"about\.json is damaged: it is gone"):
        stage.load_json("about")


def test_a_run_from_before_there_were_checksums_opens_with_one_note(tmp_path, capsys):
    stage = written(tmp_path)
    (stage.path / checksums.FILE).unlink()
    for name, reader in READERS.items():
        assert reader(stage), name
    assert capsys.readouterr().err.count("was written before files had checksums") == 1
    (stage.path / "about.json").write_text('{"x": ')
    with pytest.raises(DamagedFile, match=r"about\.json is damaged: it is not JSON: Expecting value"):
        stage.load_json("about")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("about.json", b"[" * 100_000),
        ("about.json", b"\xff\xfe{}"),
        ("config.toml", b"a = " + b"[" * 100_000),
        ("config.toml", b"a = 1\na = 2\n"),
        ("metrics.jsonl", b"3\n"),
        ("numbers.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        ("table.parquet", b"PAR1\xff\xff\xff\x7fPAR1"),
        ("table.parquet", b"PAR1\x00\x0f\x04\x00\x00\x00PAR1"),
        ("table.csv", b'"a\n'),
    ],
)
def test_nonsense_without_a_checksum_is_named(tmp_path, name, content):
    stage = written(tmp_path)
    (stage.path / checksums.FILE).unlink()
    (stage.path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=f"{name} is damaged"):
        READERS[name](stage)


@pytest.mark.parametrize("line", [b"rubbish\n", b"0" * 64 + b"  ../../x\n", b"0" * 64 + b"  /etc/passwd\n", b"\xff\n"])
def test_checksums_that_speak_of_other_things_are_refused(tmp_path, line):
    stage = written(tmp_path)
    with (stage.path / checksums.FILE).open("ab") as file:
        file.write(line)
    with pytest.raises(DamagedFile, match=r"\.sums is damaged: it holds the line"):
        stage.load_json("about")


def test_a_finished_stage_can_be_looked_through_by_sha256sum(tmp_path):
    stage = written(tmp_path)
    done = subprocess.run(["sha256sum", "-c", ".sums"], cwd=stage.path, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()[::2]) == sorted(f"{name}:" for name in [*READERS, "finished"])


def test_only_folders_that_keep_checksums_have_them(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "a")
    assert not (tmp_path / checksums.FILE).exists()
    checksums.keep(tmp_path)
    atomic.write_text(tmp_path / "a.txt", "b")
    assert checksums.recorded(tmp_path) == ["a.txt"]
    assert checksums.damage(tmp_path / "a.txt") == ""


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            Run("runs/a b").stage("extract-2", "extract"),
            "`patchsae extract --run '{}/runs/a b' --name extract-2 --over",
        ),
        (
            Run("runs/a/sweep-saes").stage("relu-x8", "sweep"),
            "`patchsae sweep --run {}/runs/a`, with the options it had",
        ),
        (Run("runs/a/mine-cells").stage("dtd", "table"), "`patchsae table --run {}/runs/a --name mine`, with the"),
        (Run("runs/a").stage("explain", "explain"), "`patchsae explain --run {}/runs/a`, with the options it had"),
    ],
)
def test_the_command_that_makes_it_again(tmp_path, stage, expected):
    begun = Run(tmp_path / stage.path.parent).stage(stage.name, stage.verb)
    begun.begin({})
    begun.close()
    assert again(begun.path).startswith(expected.format(tmp_path))


def test_a_verb_that_is_no_word_is_not_repeated(tmp_path):
    stage = Run(tmp_path).stage("extract", "rm -rf ~;")
    stage.begin({})
    stage.close()
    assert "rm" not in again(stage.path)


def test_the_command_has_the_options_that_it_had_and_no_other_place(tmp_path):
    token = GIVEN.set(("--run", "elsewhere", "--images", "my photos", "--overwrite", "--split=[:80%]", "--name=x"))
    stage = Run(tmp_path / "run").stage("extract", "extract")
    stage.begin({})
    stage.close()
    GIVEN.reset(token)
    command = f"patchsae extract --run {tmp_path / 'run'} --images 'my photos' '--split=[:80%]' --overwrite"
    assert again(stage.path) == f"`{command}`, makes it again"


@pytest.mark.parametrize(
    "options", ['["--run", "/", "--out=/", "--overwrite"]', '"; rm -rf ~"', "[1]", '["x", ["y"]]', "3"]
)
def test_options_that_lead_elsewhere_or_are_none_are_left_out(tmp_path, options):
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract" / "config.toml").write_text(f'[environment]\nverb = "extract"\noptions = {options}\n')
    assert again(tmp_path / "extract").startswith(f"`patchsae extract --run {tmp_path} --overwrite`")


def test_what_options_say_is_quoted(tmp_path):
    (tmp_path / "extract").mkdir()
    hostile = '["--images", "a; rm -rf ~", "$(x)", "\\u001b[2J"]'
    (tmp_path / "extract" / "config.toml").write_text(f'[environment]\nverb = "extract"\noptions = {hostile}\n')
    assert f"--run {tmp_path} --images 'a; rm -rf ~' '$(x)' '\\x1b[2J' --overwrite`" in again(tmp_path / "extract")


def test_the_two_stages_of_a_comparison_come_from_one_command(tmp_path):
    for name in ("compare", "compare-test"):
        with Run(tmp_path).stage(name, "compare") as stage:
            stage.begin({})
        assert again(stage.path).startswith(f"`patchsae compare --run {tmp_path} --overwrite`")


WRITER = """
import sys
from patchsae.disk.runs import Run
with Run(sys.argv[1]).stage("extract", "extract") as stage:
    stage.begin({})
    for step in range(400):
        stage.append_metrics({"step": step})
        stage.save_json("about", {"x": step})
    stage.finish()
"""


@pytest.mark.slow
def test_a_reader_beside_a_writer_sees_no_damage(tmp_path):
    stage = Run(tmp_path).stage("extract")
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path]) as writer:
        seen = [0]
        while writer.poll() is None:
            seen.append(len(stage.metrics()))
            assert seen[-1] >= seen[-2]
            if (stage.path / "about.json").exists():
                assert stage.load_json("about")["x"] + 2 >= seen[-1]  # written after its line
    assert len(stage.metrics()) == 400
    assert len(set(seen)) > 10
