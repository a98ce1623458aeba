"""`torchrun -m patchsae`: the verbs that several processes share, from the command line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from patchsae import load_sae
from patchsae.cli.entry import main
from patchsae.cli.verbs import TOGETHER, VERBS
from patchsae.disk.runs import Run
from tests.parallel.launch import ends, launch, torchrun

IMAGES = ("--images", "shapes:train?n=64", "--batch-size", "8")
RECIPE = ("--expansion", "4", "--warm-up-steps", "2", "--lr", "1e-3", "--log-every", "1")

pytestmark = pytest.mark.slow


def train(run: Path, images: int, *more: str) -> list[str]:
    return ["train", "--run", str(run), *IMAGES, *RECIPE, "--total-images", str(images), *more]


def by_two(logs: Path, words: list[str]) -> str:
    """What `patchsae WORDS` prints in two processes that find each other as torchrun's do, and start at once."""
    both = ends(launch(2, logs, aloud, words), logs, timeout=60)
    assert [process.status for process in both] == [0, 0], both
    return "".join(process.errors for process in both)


def aloud(words: list[str]) -> None:
    os.dup2(2, 1)  # what is printed is kept with the errors
    main(words)


def test_training_and_extraction_are_those_of_one_process(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    main(train(one, 48))
    process = torchrun(2, "-m", "--", "patchsae", *train(two, 48, "--latent-shards", "2"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("report: ") == 1
    expected, found = (load_sae(run / "train").state_dict() for run in (one, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5)
    extract = ["extract", "--run", str(one), "--batch-size", "5"]
    by_two(tmp_path, [*extract, "--name", "both"])
    main(extract)
    counts, wanted = ((one / name / "class_counts.safetensors").read_bytes() for name in ("both", "extract"))
    assert counts == wanted


def test_a_sweep_is_that_of_one_process(tmp_path: Path) -> None:
    grid = [
        "--variant",
        "relu",
        "topk",
        "--k",
        "4",
        "--layer",
        "-2",
        "-3",
        "--total-images",
        "32",
        "--test-limit",
        "16",
    ]
    options = ["--split", "train", *IMAGES[2:], *RECIPE, *grid, "--total-images", "32", "--test-limit", "16"]
    sweep = ["sweep", "--images", "shapes?n=64", *options]
    main([*sweep, "--run", str(tmp_path / "one")])
    output = by_two(tmp_path, [*sweep, "--run", str(tmp_path / "two")])
    assert output.count("report: ") == output.count("sweep: 4 autoencoders together; ") == 1
    one, two = (Run(tmp_path / name).stage("sweep").read_table("frontier.csv") for name in ("one", "two"))
    assert list(one["name"]) == list(two["name"])
    for name in ("l0", "explained_variance", "nmse", "dense", "concept_precision"):
        assert list(two[name]) == pytest.approx(list(one[name]), rel=2e-2, abs=1e-3), name


def test_sigterm_leaves_a_checkpoint_that_one_process_goes_on_from(tmp_path: Path) -> None:
    process = torchrun(2, "-m", "--", "patchsae", *train(tmp_path, 64_000))
    metrics = tmp_path / "train" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("The same command goes on from there.") == 1, output
    (saved,) = (tmp_path / "train" / "checkpoints").glob("*.safetensors")
    assert int(saved.stem) >= 3


def test_every_verb_that_promises_torchrun_takes_it() -> None:
    promised = {verb for verb, function in VERBS.items() if "torchrun" in (function.__doc__ or "")}
    assert promised == set(TOGETHER)


@pytest.mark.parametrize("verb", ["classes", "adapt"])
def test_other_verbs_run_in_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=f"{verb} runs in one process: start it without torchrun"):
        main([verb, "--run", str(tmp_path)])
