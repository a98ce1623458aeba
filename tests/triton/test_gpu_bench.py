"""`python -m benches.gpu` proven without a GPU: tiny sizes through the interpreter, and broken ops.

Its supervisor has `test_gpu_bench_supervisor`, what it compiles ahead and needs installed `test_gpu_bench_ahead`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import patchsae_kernels as pk
from benches.gpu import lines, measure, report, sources, stages, steps, worker
from benches.gpu.bench import Bench
from benches.gpu.collected import FILES, Collection
from benches.gpu.records import BAD, ERROR, FAILED, PASSED, SKIPPED, Result
from benches.gpu.sizes import PAPER, TINY
from benches.gpu.stages import sanitizer, table, training
from patchsae.bench import timing
from patchsae.bench.case import Bar, Opponent, Side
from patchsae.bench.findings import Finding

ROOT = Path(__file__).parents[2]
KERNEL_STAGES = tuple(name for name in stages.NAMES if name not in ("masking", "sanitizer"))
"""Those run through the interpreter. The masking sweep would take half a minute there, and `test_gate_of_bench` runs
what the sanitizer does."""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of `KERNEL_STAGES` collects, through the interpreted kernels."""
    folder = tmp_path_factory.mktemp("bench")
    done = command(folder, "--stages", *KERNEL_STAGES)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return folder / "results"


@pytest.fixture(scope="module")
def interpreted(collected: Path) -> dict:
    return json.loads((collected / "results.json").read_text())


def command(folder: Path, *options: str, interpreter: str = "1") -> subprocess.CompletedProcess[str]:
    """The whole command at tiny sizes, to ``folder``/results."""
    line = [sys.executable, "-m", "benches.gpu", "--out", str(folder / "run"), "--collect", str(folder / "results")]
    line += ["--size", "tiny", "--device", "cpu", *options]
    environment = {**os.environ, "TRITON_INTERPRET": interpreter}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def tiny(out: Path) -> Bench:
    return Bench(TINY, torch.device("cpu"), out)


def of(document: dict, stage: str) -> dict[str, dict]:
    return {record["name"]: record for record in document["records"] if record["stage"] == stage}


@pytest.mark.slow
def test_every_stage_leaves_records_and_nothing_fails(interpreted: dict) -> None:
    assert [stage["stage"] for stage in interpreted["stages"]] == list(KERNEL_STAGES)
    assert all(stage["finished"] for stage in interpreted["stages"])
    assert [r for r in interpreted["records"] if r["status"] in BAD] == []
    for stage in set(KERNEL_STAGES) - {"warm"}:  # which has nothing to do without a GPU
        assert any(record["status"] == PASSED for record in of(interpreted, stage).values()), stage


@pytest.mark.slow
def test_what_is_collected_is_four_files_that_agree(collected: Path, interpreted: dict) -> None:
    assert {path.name for path in collected.iterdir()} == set(FILES)
    assert list(collected.parent.glob(".*")) == []
    assert (collected / "table.txt").read_text() == report.table(interpreted)
    assert json.loads((collected / "environment.json").read_text()).keys() == of(interpreted, "environment").keys()
    log = (collected / "log.txt").read_text()
    for record in interpreted["records"]:
        assert f"{record['status']:8} {record['name']} " in log


@pytest.mark.slow
def test_a_record_names_the_modules_that_started_its_kernels(interpreted: dict) -> None:
    found = {name: record["sources"] for name, record in of(interpreted, "correctness").items()}
    assert found["inputs"] == []
    assert found["decode, fp32"] == [f"{sources.KERNELS}.{name}" for name in ("decode", "launch")]
    assert f"{sources.KERNELS}.encode" in found["encode relu, exact"]  # host code, whose kernels are in other modules
    assert f"{sources.KERNELS}.decode" not in found["encode relu, exact"]


@pytest.mark.slow
def test_a_second_run_takes_over_what_passed(collected: Path, interpreted: dict, tmp_path: Path) -> None:
    done = command(tmp_path, "--merge", str(collected / "results.json"), "--stages", *KERNEL_STAGES)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    merged = json.loads((tmp_path / "results" / "results.json").read_text())
    anew = {(r["stage"], r["name"]) for r in merged["records"] if not r["taken_from"]}
    expected = {
        (r["stage"], r["name"])
        for r in interpreted["records"]
        if r["stage"] in ("environment", "warm") or r["status"] == SKIPPED
    }
    assert anew == expected
    key = ("stage", "name", "status", "data")
    for before, after in zip(interpreted["records"], merged["records"], strict=True):
        assert [before[k] for k in key if k != "data" or after["taken_from"]] == [
            after[k] for k in key if k != "data" or after["taken_from"]
        ]
    assert f"taken over from {interpreted['started']}" in (tmp_path / "results" / "table.txt").read_text()


@pytest.mark.slow
def test_the_table_ends_with_the_missed_bars_by_time_lost(interpreted: dict) -> None:
    judged = [a for r in interpreted["records"] for a in r["data"].get("against", ()) if a["met"] is not None]
    missed = [against for against in judged if not against["met"]]
    *_, last = report.table(interpreted).strip().split("\n\n")
    head, _, *rows = last.splitlines()
    assert head == f"missed bars: {len(missed)} of {len(judged)} measured"
    lost = [float(row.split()[0]) for row in rows]
    assert lost == sorted((round(float(a["lost_us"])) for a in missed), reverse=True)
    for record in interpreted["records"]:
        for against in record["data"].get("against", ()):
            against["met"] = None if against["met"] is None else True
    assert report.table(interpreted).endswith(f"\n\nmissed bars: none of {len(judged)} measured\n")


@pytest.mark.slow
def test_what_needs_a_gpu_is_skipped_by_name(interpreted: dict) -> None:
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
    worker.run_stage(decodes, bench, time.time(), sources.Watch())
    document = Collection(tmp_path, tmp_path, tmp_path / "log", {"size": "tiny", "started": ""}, ()).document()
    assert len(document["records"]) == 2
    for record in document["records"]:
        assert record["status"] == (ERROR if fault == "raises" else FAILED)
        assert "milliseconds" not in record["data"]
        assert record["name"] in report.table(document)


def test_nan_is_beyond_every_limit() -> None:
    assert not Finding("x", float("nan"), float("inf")).ok
    assert Result((Finding("x", float("nan"), 1.0),)).status == FAILED


def test_times_are_taken_in_turn() -> None:
    order = []
    sides = {name: lambda turn, name=name: order.append((turn, name)) for name in "ab"}
    times = timing.interleaved(sides, torch.device("cpu"), timing.Pace(0.0, 3, 9, 1))
    in_turn = [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert order == [(0, "a"), (0, "b"), *in_turn]
    assert [len(taken.milliseconds) for taken in times.values()] == [3, 3]


def test_the_sanitizer_is_looked_for_in_the_usual_places(tmp_path: Path, monkeypatch) -> None:
    program = tmp_path / "cuda-13" / "bin" / sanitizer.PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sanitizer, "PLACES", (f"{tmp_path}/cuda*/bin",))
    assert sanitizer.find() is not None


@pytest.mark.slow
def test_the_command_runs_all_of_it_without_the_interpreter_too(tmp_path: Path) -> None:
    """On the reference, so that the masking sweep and the sanitizer's program are in it."""
    done = command(tmp_path, interpreter="0")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    document = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [stage["stage"] for stage in document["stages"]] == list(stages.NAMES)
    assert any(name.startswith("masking sweep") for name in of(document, "masking"))
    assert of(document, "sanitizer")["small shapes, plain"]["status"] == PASSED
    assert of(document, "sanitizer")["memcheck"]["status"] == SKIPPED
    assert done.stdout.endswith((tmp_path / "results" / "table.txt").read_text() + "\n")


def test_what_was_skipped_for_one_reason_shares_a_row() -> None:
    record = {"status": SKIPPED, "stage": "designs", "message": "out of time", "data": {}}
    names = ("a", "b", "c")
    records = [*({**record, "name": n} for n in names), *({**record, "name": n, "status": ERROR} for n in names)]
    document = {"size": "tiny", "started": "", "seconds": 0.0, "stages": [], "records": records}
    rows = [row.split() for row in report.table(document).splitlines()]
    assert ["skipped", "designs", "a", "and", "2", "others", "out", "of", "time"] in rows
    assert all(["error", "designs", name, "out", "of", "time"] in rows for name in names)


def test_time_lost_is_what_ours_would_have_to_save() -> None:
    side, ours, theirs = Side("theirs", "fp32", lambda _p, _turn: None), timing.Times([3.0]), timing.Times([2.0])
    for bar, lost in ((Bar(True, 1.25), 500.0), (Bar(False, 4.0), 2500.0), (Bar(True, 2.0), -1000.0)):
        found = measure.compared(Opponent(side, bar), ours, theirs)
        assert found["lost_us"] == pytest.approx(lost)
        assert found["met"] == (lost <= 0)
