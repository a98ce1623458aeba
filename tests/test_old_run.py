"""Runs of an earlier version, kept in tests/fixtures: they open, are finished, give the same tables, and go on."""

from __future__ import annotations

import csv
import html
import json
import shlex
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import patchsae
from patchsae import cli

FIXTURES = Path(__file__).parent / "fixtures"
MADE_IN = "/somewhere"
# Of the autoencoder that the earlier version had in the end; see fixtures/README.md.
RESUMED = {
    "W_enc": (-17.071145274906637, 15.173055901797163, 246.6486280580976),
    "b_enc": (-0.028402765481010853, 0.015896392191803985, 0.08783386324781192),
    "W_dec": (-12.715380874685605, -0.9320290474623238, 128.00000039715576),
    "b_dec": (-8.633309207129317, 4.61705830897189, 136.83590228461318),
}
# The bits differ between instruction sets. Adam makes whole steps of what rounding leaves of a gradient of 0, so W_dec
# may differ by some of them: 3e-3 was the most. Had a latent been counted dead one step earlier, it would be 3e-1.
ROUNDING = {"W_enc": 1e-3, "b_enc": 1e-4, "W_dec": 1e-2, "b_dec": 1e-3}


def commands(script: str) -> dict[str, list[str]]:
    """Verb -> the arguments that a script in tests/fixtures gave to the earlier version."""
    lines = (FIXTURES / script).read_text().splitlines()
    given = [shlex.split(line.removesuffix(" &"))[1:] for line in lines if line.startswith("patchsae ")]
    return {arguments[0]: arguments for arguments in given}


FINISHED = commands("finished.sh")
ALWAYS_ANEW = ("table", "explain")
STAGES = {"adapt": ("adapt-vpt-seed1",), "compare": ("compare", "compare-test")}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with the runs `finished` and `stopped`, as if they had been made there."""
    for name in ("finished", "stopped"):
        with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
    for config in tmp_path.rglob("config.toml"):  # a comparison records where its adapter was
        config.write_text(config.read_text().replace(MADE_IN, str(tmp_path)))
    (tmp_path / "cells.toml").write_bytes((FIXTURES / "cells.toml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_readable(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["check", "finished"])
    cli.main(["check", "stopped"])
    said = capsys.readouterr().out
    assert "13 stages, 110 files: all are whole" in said
    assert "stopped/train: not finished (the command that began it goes on), 3 of 3 files whole" in said


@pytest.mark.parametrize("verb", [verb for verb in FINISHED if verb not in ALWAYS_ANEW])
def test_what_is_finished_stays_as_it_is_and_the_report_is_made_again(
    old: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (old / "finished" / "report.html").unlink()
    before = content(old / "finished")
    cli.main(FINISHED[verb])
    said = capsys.readouterr().out
    for stage in STAGES.get(verb, (verb,)):
        assert f"{stage}: already finished in finished/{stage}; nothing to do" in said
    after = content(old / "finished")
    assert after.pop("report.html")
    assert after == before


def test_the_report_has_a_section_of_every_stage(old: Path) -> None:
    cli.main(FINISHED["classes"])
    report = (old / "finished" / "report.html").read_text()
    sections = list((old / "finished").glob("*/section.json"))
    assert len(sections) == 11
    for section in sections:
        assert html.escape(json.loads(section.read_text())["title"]) in report


def test_an_extraction_that_is_read_back_gives_the_same_ranking(old: Path) -> None:
    cli.main([*FINISHED["classes"], "--name", "again"])
    for name in ("top_latents.csv", "rankings.safetensors"):
        assert (old / "finished" / "again" / name).read_bytes() == (old / "finished" / "classes" / name).read_bytes()


def test_a_comparison_that_is_read_back_gives_the_same_correlation(old: Path) -> None:
    cli.main([*FINISHED["correlate"], "--name", "again"])
    before, after = (rows(old / "finished" / name / "correlation.csv") for name in ("correlate", "again"))
    assert list(after) == list(before)
    for name, expected in before.items():  # the diagonal was 1 but for rounding, and is 1 now
        assert after[name] == pytest.approx(expected, rel=1e-12)


def test_finished_cells_give_the_same_table(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (old / "finished" / "table" / "table.csv").read_bytes()
    cli.main(FINISHED["table"])
    said = capsys.readouterr().out
    assert "shapes: already finished" in said
    assert "shapes-test: already finished" in said
    assert (old / "finished" / "table" / "table.csv").read_bytes() == before


def test_an_image_is_explained_by_the_old_extraction(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(FINISHED["explain"])
    assert "mostly triangle" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_autoencoder(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(commands("stopped.sh")["train"])
    assert "train: going on after step 4 of 24" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in (old / "stopped/train/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25))
    sae = patchsae.load_sae(old / "stopped" / "train")
    for name, expected in RESUMED.items():
        assert digits(getattr(sae, name)) == pytest.approx(expected, rel=0, abs=ROUNDING[name])


def rows(table: Path) -> dict[str, list[float]]:
    """A table of numbers by the name that stands first in each row."""
    with table.open() as file:
        return {name: [float(value) for value in values] for name, *values in list(csv.reader(file))[1:]}


def digits(parameter: Tensor) -> list[float]:
    """Three sums that no change of the elements leaves alone, but for rounding: by cosines, by sines, of squares."""
    elements = parameter.detach().double().flatten()
    place = torch.arange(len(elements), dtype=torch.float64)
    return [float(elements @ weights) for weights in (place.cos(), place.sin(), elements)]
