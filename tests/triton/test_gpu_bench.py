"""`python -m benches.gpu` proven without a GPU: tiny sizes through the interpreter, and broken ops and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import patchsae_kernels as pk
from benches.gpu import lines, report, stages, steps, supervisor, timing, worker
from benches.gpu.bench import Bench
from benches.gpu.records import BAD, ERROR, FAILED, PASSED, SKIPPED, Finding, Item, Result
from benches.gpu.sizes import PAPER, TINY
from benches.gpu.stages import sanitizer, table, training

ROOT = Path(__file__).parents[2]
KERNEL_STAGES = [stage.name for stage in stages.STAGES if stage.name != "masking"]  # half a minute when interpreted


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The document of a run of every stage but the masking sweep, through the interpreted kernels."""
    bench = tiny(tmp_path_factory.mktemp("bench"))
    worker.run(bench, KERNEL_STAGES, time.time())
    return supervisor.collect(bench.out, "tiny", time.time())


def tiny(out: Path) -> Bench:
    return Bench(TINY, torch.device("cpu"), out)


def of(document: dict, stage: str) -> dict[str, dict]:
    return {record["name"]: record for record in document["records"] if record["stage"] == stage}


@pytest.mark.slow
def test_every_stage_leaves_records_and_nothing_fails(interpreted: dict) -> None:
    assert [stage["stage"] for stage in interpreted["stages"]] == KERNEL_STAGES
    assert all(stage["finished"] for stage in interpreted["stages"])
    assert [r for r in interpreted["records"] if r["status"] in BAD] == []
    for stage in KERNEL_STAGES:
        assert any(record["status"] == PASSED for record in of(interpreted, stage).values()), stage


@pytest.mark.slow
def test_what_needs_a_gpu_is_skipped_by_name(interpreted: dict) -> None:
    assert of(interpreted, "sanitizer")["memcheck"]["status"] == SKIPPED
    captured = [r for name, r in of(interpreted, "capture").items() if name.startswith("captured graph")]
    assert {record["status"] for record in captured} == {SKIPPED}


@pytest.mark.slow
def test_the_table_says_what_the_document_says(interpreted: dict) -> None:
    text = report.table(json.loads(json.dumps(interpreted)))
    measured = of(interpreted, "table")
    assert measured.keys() == {line.name for line in lines.table(TINY, "aot_eager")}
    for name, record in measured.items():
        data = record["data"]
        start = next(
            i for i, row in enumerate(text.splitlines()) if row.startswith(f"{name} ({data['ours']['precision']})")
        )
        rows = text.splitlines()[start : start + len(data["against"])]
        assert report.milliseconds(data["milliseconds"]["ours"]) in rows[0]
        for row, against in zip(rows, data["against"], strict=True):
            assert f"{against['name']} ({against['precision']})" in row
            assert report.milliseconds(against["milliseconds"]) in row
            assert f"{against['ratio']['median']:.3g}" in row
            assert against["bar"] in row
    for name, record in of(interpreted, "training").items():
        assert name in text or not record["data"]
        if "meet at L0" in record["data"]:
            assert f"{name}: " in text


def test_the_issues_lines_and_bars_are_in_the_table() -> None:
    bars = {
        (line.name, o.side.name, o.side.precision): (o.bar.at_most, o.bar.limit)
        for line in lines.table(PAPER, "inductor")
        for o in line.opponents
        if o.bar
    }
    floor = ("torch.mm of the same shape", "bf16")
    assert bars[("encode ReLU, L0 149, bf16", *floor)] == (True, 1.35)
    assert bars["encode ReLU, L0 149, exact", "addmm + relu", "fp32"] == (False, 4)
    for k, limit in ((32, 1.35), (64, 1.4), (256, 1.6)):
        assert bars[(f"encode top-k {k}, bf16", *floor)] == (True, limit)
        assert bars[f"encode top-k {k}, bf16", "torch.mm + relu + torch.topk", "bf16"] == (False, 2)
    assert bars["decode, L0 149, bf16", "dense product", "bf16"] == (False, 1.5)
    assert bars["decode, L0 149, fp32", "dense product", "fp32"] == (False, 8)
    assert bars["decode, k 64, fp32", "F.embedding_bag", "fp32"] == (False, 1.3)
    assert bars["decode_sweep, 10 ks, fp32", "our decode once + writing the output", "fp32"] == (True, 1.4)
    assert bars["latent_stats, 10 classes", "encode", "exact"] == (True, 0.1)
    fused = "encode-ReLU-decode with loss, exact"
    assert bars[fused, "our encode + decode", "exact"] == (True, 1.15)
    assert bars[fused, "dense autoencoder with loss, eager", "fp32"] == (False, 6)
    assert bars[fused, "dense autoencoder with loss, torch.compile (inductor)", "fp32"] == (False, 5)


def test_the_lines_and_bars_of_training() -> None:
    bars = {
        (line.name, line.ours.precision, o.side.precision): o.bar
        for line in steps.training_lines(PAPER)
        for o in line.opponents
    }
    trained, start = "SAE step, L0 149, none dead", "SAE step at the dense start, half of 49152 active"
    assert bars[trained, "exact", "fp32"] == (False, 14)
    assert bars[trained, "exact", "tf32"] == (False, 4)
    assert bars[start, "exact", "fp32"] == bars[f"{start}, TF32", "tf32", "tf32"] == (False, 1.2)
    assert bars["top-k 64 step", "bf16", "bf16"] == (False, 3)
    assert bars["Adam, projection, unit rows", "fp32", "fp32"] == (True, 1.25)  # 80 % of the bandwidth
    assert ("SAE step, L0 149, 20 % dead", "exact", "fp32") in bars
    low = "bfloat16 products"
    assert bars[f"{trained}, {low}", "bf16", "fp32"] == (False, 20)
    assert bars[f"{trained}, {low}", "bf16", "tf32"] == (False, 6)
    assert bars[f"{start}, {low}", "bf16", "bf16"] == (False, 1.2)
    assert (f"SAE step, L0 149, 20 % dead, {low}", "bf16", "tf32") in bars
    assert bars["Adam, bfloat16 moments, encoder packed", "fp32", "fp32"] == (True, 1.25)


def test_a_gradient_that_is_wrong_fails_its_line(tmp_path: Path, monkeypatch) -> None:
    right = pk.sae_step

    def broken(*arguments: object, **options: object) -> tuple:
        terms, grads = right(*arguments, **options)
        return terms, {**grads, "W_enc": grads["W_enc"] * 1.05}

    monkeypatch.setattr(pk, "sae_step", broken)
    bench = tiny(tmp_path)
    line = next(i for i in training.items(bench) if i.name.startswith("SAE step, L0"))
    result = line.run()
    assert result.status == FAILED
    assert "W_enc" in result.message
    assert "milliseconds" not in result.data


@pytest.mark.parametrize("fault", ["one token off", "NaN", "raises"])
def test_a_broken_op_fails_its_check_and_is_not_timed(fault: str, tmp_path: Path, monkeypatch) -> None:
    right = pk.decode

    def broken(*arguments: object) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("no such kernel")
        y = right(*arguments)
        y[-1] = y[-1] * 1.01 if fault == "one token off" else float("nan")
        return y

    monkeypatch.setattr(pk, "decode", broken)
    bench = tiny(tmp_path)
    decodes = SimpleNamespace(
        name="table", items=lambda bench: (i for i in table.items(bench) if i.name.startswith("decode, L0"))
    )
    worker.run_stage(decodes, bench, time.time())
    document = supervisor.collect(tmp_path, "tiny", time.time())
    assert len(document["records"]) == 2
    for record in document["records"]:
        assert record["status"] == (ERROR if fault == "raises" else FAILED)
        assert "milliseconds" not in record["data"]
        assert record["name"] in report.table(document)
    assert supervisor.failed(document)


def test_nan_is_beyond_every_limit() -> None:
    assert not Finding("x", float("nan"), float("inf")).ok
    assert Result((Finding("x", float("nan"), 1.0),)).status == FAILED


def test_out_of_time_is_recorded_by_name(tmp_path: Path) -> None:
    bench = tiny(tmp_path)

    def spend() -> Result:
        bench.end = 0.0
        return Result()

    two = SimpleNamespace(name="table", items=lambda _bench: iter((Item("a", spend), Item("b", Result))))
    worker.run_stage(two, bench, time.time())
    records = of(supervisor.collect(tmp_path, "tiny", time.time()), "table")
    assert (records["a"]["status"], records["b"]["status"]) == (PASSED, SKIPPED)
    assert records["b"]["message"] == "out of time"


def test_a_stage_that_cannot_list_its_items_is_an_error_of_its_own(tmp_path: Path) -> None:
    def unlisted(_bench: Bench) -> Iterator[Item]:
        yield Item("a", Result)
        raise RuntimeError("no weights")

    worker.run_stage(SimpleNamespace(name="table", items=unlisted), tiny(tmp_path), time.time())
    records = of(supervisor.collect(tmp_path, "tiny", time.time()), "table")
    assert (records["a"]["status"], records["preparing"]["status"]) == (PASSED, ERROR)
    assert "no weights" in records["preparing"]["message"]


def test_the_schedule_keeps_eight_minutes() -> None:
    last = stages.ends(0.0)[stages.STAGES[-1].name]
    assert last + supervisor.GRACE < 8 * 60 - 10


WORKER = """
import os, sys, time
from pathlib import Path
from benches.gpu.records import Record, StageFile
from benches.gpu.worker import stage_file

for name in sys.argv[2:]:
    file = StageFile(stage_file(Path(sys.argv[1]), name), name)
    for item in ("first", "second", "third"):
        if item in [record.name for record in file.records]:
            continue
        file.write(running=item)
        if (name, item) == ("correctness", "second"):
            os._exit(9)  # crashes
        if (name, item) == ("capture", "second"):
            time.sleep(600)  # hangs
        file.add(Record(name, item, "error" if (name, item) == ("table", "second") else "passed", 0.0))
        if (name, item) == ("table", "second"):
            os._exit(3)  # has lost the device
    file.write(running="", finished=True)
    if name == "environment":
        os._exit(3)  # lost it with the last item: the next stage has not begun
    if name == "designs":
        os._exit(1)
"""


def test_a_worker_that_dies_costs_an_item_and_one_that_hangs_its_stage(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.0)
    started, late = time.time(), time.time() + 300
    ends = {stage.name: late for stage in stages.STAGES} | {"capture": started + 12}

    def start(names) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, str(tmp_path), *names]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)

    supervisor.supervise(tmp_path, start, started, ends, "tiny")
    document = json.loads((tmp_path / "results.json").read_text())
    assert [stage["stage"] for stage in document["stages"] if not stage["finished"]] == ["capture"]
    assert len(document["stages"]) == len(stages.STAGES)
    assert of(document, "correctness")["second"]["message"] == "the worker ended with status 9"
    assert of(document, "capture")["second"]["message"] == "still running after its time"
    for name in ("correctness", "table", "environment", "determinism", "designs", "masking"):
        assert of(document, name).keys() == {"first", "second", "third"}, name
        assert of(document, name)["third"]["status"] == PASSED
    assert supervisor.failed(document)


def test_times_are_taken_in_turn() -> None:
    order = []
    sides = {name: lambda turn, name=name: order.append((turn, name)) for name in "ab"}
    times = timing.interleaved(sides, torch.device("cpu"), timing.Pace(0.0, 3, 9, 1))
    assert order == [(0, "a"), (0, "b"), *((turn, name) for turn in range(3) for name in "ab")]
    assert [len(values) for values in times.values()] == [3, 3]


@pytest.mark.slow
def test_the_sanitizers_program_runs_every_op() -> None:
    subprocess.run([sys.executable, "-m", "benches.gpu.small", "cpu"], cwd=ROOT, check=True, timeout=120)


def test_the_sanitizer_is_looked_for_in_the_usual_places(tmp_path: Path, monkeypatch) -> None:
    program = tmp_path / "cuda-13" / "bin" / sanitizer.PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sanitizer, "PLACES", (f"{tmp_path}/cuda*/bin",))
    assert sanitizer.find() is not None


@pytest.mark.slow
def test_the_command_runs_all_of_it_without_the_interpreter_too(tmp_path: Path) -> None:
    """On the reference, so that the masking sweep and the supervisor are in it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benches.gpu", "--out", str(tmp_path), "--size", "tiny", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    document = json.loads((tmp_path / "results.json").read_text())
    assert [stage["stage"] for stage in document["stages"]] == [stage.name for stage in stages.STAGES]
    assert any(name.startswith("masking sweep") for name in of(document, "masking"))
    assert (tmp_path / "table.txt").read_text() == report.table(document)
