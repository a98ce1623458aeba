"""The protocol of a stage: what is computed once, by whom, and what a second call does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patchsae.disk.runs import ConfigDiffers, Run, Stage
from patchsae.experiments import Job
from patchsae.experiments.options import StreamOptions
from patchsae.parallel import Alone
from patchsae.report import Section


class Second(Alone):
    """A process that does not write, beside a first one that has work to do."""

    is_first = False

    def broadcast(self, value: Any) -> Any:
        return True


def make(job: Job, k: int = 1, **how: object) -> list[str]:
    """What was called, in order."""
    calls: list[str] = []

    def write(stage: Stage, computed: int) -> Section:
        calls.append(f"write {computed}")
        stage.save_json("result", computed)
        return Section("Result")

    job.make(job.config(None, k=k), lambda: calls.append("compute") or 7, write, **how)  # type: ignore[arg-type]
    return calls


def test_a_stage_is_a_job_with_nothing_more_to_say(tmp_path: Path) -> None:
    stage = Run(tmp_path).stage("result")
    job = Job.of(stage)
    assert Job.of(job) is job
    assert (job.stage, dict(job.settings), job.overwrite, job.parallel.is_first) == (stage, {}, False, True)


def test_a_result_is_made_once_and_anew_when_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Run(tmp_path).stage("result")
    assert make(Job(stage)) == ["compute", "write 7"]
    assert stage.finished
    assert stage.load_json("result") == 7
    assert stage.load_json("section")["title"] == "Result"
    assert make(Job(stage)) == []
    assert "already finished" in capsys.readouterr().out
    assert make(Job(stage, overwrite=True)) == ["compute", "write 7"]


def test_what_decides_the_result_may_not_change_and_what_does_not_may(tmp_path: Path) -> None:
    stage = Run(tmp_path).stage("result")
    make(Job(stage, {"images": "shapes", "workers": 0}))
    make(Job(stage, {"images": "shapes", "workers": 2}))
    for job, k in ((Job(stage, {"images": "others"}), 1), (Job(stage, {"images": "shapes"}), 2)):
        with pytest.raises(ConfigDiffers):
            make(job, k)


def test_options_and_settings_are_recorded_flat(tmp_path: Path) -> None:
    job = Job(Run(tmp_path).stage("result"), {"images": "shapes"})
    config = job.config(StreamOptions(batch_size=3), sae={"k": 1})
    assert list(config) == ["images", "batch_size", "workers", "on_bad_image", "save_minutes", "made_from"]
    assert config["made_from"] == {"sae": {"k": 1}}


def test_another_process_computes_and_writes_nothing(tmp_path: Path) -> None:
    stage = Run(tmp_path).stage("result")
    assert make(Job(stage, parallel=Second())) == ["compute"]
    assert not stage.path.exists()


def test_what_only_going_on_needs_is_gone_once_it_is_finished(tmp_path: Path) -> None:
    stage = Run(tmp_path).stage("result")
    with stage:
        stage.begin(Job(stage).config(None, k=1))
        stage.save_json("fold", 1)
    assert make(Job(stage), spent="fold.json") == ["compute", "write 7"]
    assert not (stage.path / "fold.json").exists()
    assert "fold.json" not in stage.files()
