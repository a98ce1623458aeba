"""Law: where there is no room, a line names the file and what is free, and all that was complete is kept.

A limit on the size of files stands for a full disk: the system answers the same writes with an error.
"""

import re
import resource
import subprocess
import sys

import pytest

from patchsae.cli.check import check
from patchsae.cli.entry import main
from patchsae.disk import atomic, checksums
from patchsae.disk.runs import Run
from tests.parallel.launch import alone

WRITERS = {
    "tensors": "stage.save_tensors('x', {'x': np.zeros(200_000)})",
    "torch tensors": "import torch; stage.save_tensors('x', {'x': torch.zeros(200_000)})",
    "csv": "stage.write_table('x.csv', {'x': np.arange(100_000)})",
    "parquet": "stage.write_table('x.parquet', {'x': np.random.default_rng(0).random(100_000)})",
    "json": "stage.save_json('x', ['x' * 400_000])",
    "picture": "stage.write_bytes('x.png', b'x' * 400_000)",
    "metrics": "[stage.append_metrics({'step': i, 'text': 'x' * 40_000}) for i in range(10)]",
    "names": "[stage.own(f'n{i}' + 'n' * 200) for i in range(3000)]",
}
CODE = """
import sys, numpy as np
from patchsae.disk.atomic import DiskFull
from patchsae.disk.runs import Run
with Run(sys.argv[1]).stage("extract") as stage:
    stage.begin({{"lr": 1}})
    try:
        {0}
    except DiskFull as error:
        print(error)
    else:
        print("there was room")
"""


def limited(arguments, limit, **options):
    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        arguments, capture_output=True, text=True, preexec_fn=limit_files, timeout=300, check=False, **options
    )


def run_within(limit, words, log):
    """Exit status of `patchsae WORDS` in a process that may write no larger file."""
    process = alone(main_within, limit, words, log=log)
    process.join(300)
    return process.exitcode


def main_within(limit, words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    main(words)


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_which_file_and_what_is_free(tmp_path, writer):
    with Run(tmp_path).stage("extract") as stage:
        stage.begin({"lr": 1})
        stage.save_json("before", {"x": 1})
    done = limited([sys.executable, "-c", CODE.format(WRITERS[writer]), tmp_path], 300_000)
    assert done.stdout.startswith(f"no room to write {tmp_path / 'extract'}"), done.stdout + done.stderr
    assert "File too large" in done.stdout
    assert re.search(r"with [\d.,]+ [kMGTP]?B free there", done.stdout)
    assert not [path for path in stage.path.iterdir() if path.name.endswith(".partial")]
    assert stage.load_json("before") == {"x": 1}
    assert not any(one.damaged for one in check(tmp_path))
    with Run(tmp_path).stage("extract") as again:
        assert again.begin({"lr": 1})
        again.finish()


def test_errors_that_are_not_about_room_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic.write_text(tmp_path / "no" / "a.txt", "a")
    with pytest.raises(ZeroDivisionError), atomic.room_for(tmp_path / "a"):
        raise ZeroDivisionError


@pytest.mark.slow
def test_a_training_that_finds_no_room_goes_on_from_its_last_step(tmp_path):
    """The weights of the final save do not fit; the steps are not lost."""
    train = ["train", "--run", str(tmp_path / "run"), "--images", "shapes", "--split", "train"]
    train += ["--limit", "40", "--total-images", "40", "--batch-size", "20", "--expansion", "1", "--warm-up-steps", "1"]
    enough = 500_000  # for the autoencoder, though not for the three times as much of a checkpoint
    log = tmp_path / "errors.log"
    status = run_within(100_000, train, log)
    errors = log.read_text()
    assert status == 2, errors
    assert errors.strip().splitlines()[-1].startswith(f"patchsae train: no room to write {tmp_path / 'run' / 'train'}")
    assert "Traceback" not in errors
    assert run_within(enough, train, log) == 0
    assert not any(one.damaged for one in check(tmp_path / "run"))
    assert checksums.damage(tmp_path / "run" / "train" / "sae.safetensors") == ""
