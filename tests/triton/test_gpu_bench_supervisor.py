"""The supervisor of `python -m benches.gpu`: its schedule, workers that die or hang, runs killed and gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benches.gpu import collected, merging, sources, stages, supervisor, worker
from benches.gpu.bench import Bench
from benches.gpu.collected import FILES, Collection
from benches.gpu.records import ERROR, PASSED, SKIPPED, Item, Record, Result, StageFile, stage_file
from benches.gpu.sizes import TINY
from benches.gpu.stages import correctness

ROOT = Path(__file__).parents[2]
HEAD = {"size": "tiny", "started": "2026-01-01T00:00:00Z"}


def document(out: Path) -> dict:
    return Collection(out, out, out / "log", HEAD, ()).document()


def of(found: dict, stage: str) -> dict[str, dict]:
    return {record["name"]: record for record in found["records"] if record["stage"] == stage}


def run_stage(out: Path, bench: Bench, items) -> dict[str, dict]:
    stage = SimpleNamespace(name="table", items=items)
    worker.run_stage(stage, bench, time.time(), sources.Watch())
    return of(document(out), "table")


def tiny(out: Path) -> Bench:
    return Bench(TINY, torch.device("cpu"), out)


def test_out_of_time_is_recorded_by_name(tmp_path: Path) -> None:
    bench = tiny(tmp_path)

    def spend() -> Result:
        bench.end = 0.0
        return Result()

    records = run_stage(tmp_path, bench, lambda _bench: iter((Item("a", spend), Item("b", Result))))
    assert (records["a"]["status"], records["b"]["status"]) == (PASSED, SKIPPED)
    assert records["b"]["message"] == "out of time"


def test_a_stage_that_cannot_list_its_items_is_an_error_of_its_own(tmp_path: Path) -> None:
    def unlisted(_bench: Bench) -> Iterator[Item]:
        yield Item("a", Result)
        raise RuntimeError("no weights")

    records = run_stage(tmp_path, tiny(tmp_path), unlisted)
    assert (records["a"]["status"], records["preparing"]["status"]) == (PASSED, ERROR)
    assert "no weights" in records["preparing"]["message"]


def test_records_of_an_earlier_run_are_brought_into_order(tmp_path: Path) -> None:
    StageFile(stage_file(tmp_path, "table"), "table").add(Record("table", "b", PASSED, 1.0, taken_from="before"))
    records = run_stage(tmp_path, tiny(tmp_path), lambda _bench: iter((Item("a", Result), Item("b", Result))))
    assert [(name, record["taken_from"]) for name, record in records.items()] == [("a", ""), ("b", "before")]


def test_the_schedule_has_five_minutes_for_what_comes_first_and_four_for_the_rest() -> None:
    first = ("environment", "warm", "correctness", "table", "training", "masking")
    assert stages.NAMES[:6] == first
    assert (stages.total(first), stages.total(stages.NAMES)) == (300, 540)
    assert stages.NAMES[-1] == "sanitizer"


def test_what_a_stage_leaves_of_its_time_the_next_ones_have_and_seconds_cut_the_end() -> None:
    until = stages.ends(1000.0, stages.NAMES, 540)
    assert until["environment"] == 1000 + stages.STAGES[0].seconds
    assert until["sanitizer"] == 1000 + 540 - stages.GRACE
    short = stages.ends(1000.0, stages.NAMES, 300)
    assert short["training"] == until["training"]
    assert short["masking"] == short["designs"] == short["sanitizer"] == 1000 + 300 - stages.GRACE
    some = stages.ends(0.0, ("capture", "designs"), 1000)  # in the order of the schedule; the last has what is left
    assert some == {"designs": stages.chosen(["designs"])[0].seconds, "capture": 1000 - stages.GRACE}


WORKER = """
import os, sys, time
from pathlib import Path
from benches.gpu.records import Record, StageFile, stage_file

for name in sys.argv[2:]:
    if name == "training":
        time.sleep(0.8)  # has begun nothing yet, long after it was started
    file = StageFile(stage_file(Path(sys.argv[1]), name), name)
    for item in ("first", "second", "third"):
        if item in [record.name for record in file.records]:
            continue
        file.write(running=item)
        if (name, item) == ("correctness", "second"):
            os._exit(9)  # crashes
        if (name, item) in (("capture", "second"), ("determinism", "second")):
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


@pytest.mark.slow
def test_a_worker_that_dies_or_hangs_costs_an_item_and_one_that_runs_on_its_stage(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.0)
    patience = {"determinism": 2.0}
    monkeypatch.setattr(
        stages, "STAGES", tuple(s._replace(patience=patience.get(s.name, s.patience)) for s in stages.STAGES)
    )
    late, starts = time.time() + 90, []
    until = {stage.name: late for stage in stages.STAGES} | {"capture": time.time() + 12}

    def start(names) -> subprocess.Popen[bytes]:
        starts.append(names[0])
        command = [sys.executable, "-c", WORKER, str(tmp_path), *names]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)

    collection = Collection(tmp_path, tmp_path, tmp_path / "log", HEAD, stages.NAMES)
    supervisor.supervise(collection, start, until)
    found = collection.write()
    assert found == json.loads((tmp_path / "results.json").read_text())
    assert starts == ["environment", "warm", "correctness", "table", "determinism", "determinism", "sanitizer"]
    assert [stage["stage"] for stage in found["stages"] if not stage["finished"]] == ["capture"]
    assert len(found["stages"]) == len(stages.STAGES)
    assert of(found, "correctness")["second"]["message"] == "the worker ended with status 9"
    assert of(found, "determinism")["second"]["message"] == "took too long"
    assert of(found, "capture")["second"]["message"] == "still running after its time"
    for name in ("correctness", "determinism", "table", "environment", "designs", "masking", "sanitizer"):
        assert of(found, name).keys() == {"first", "second", "third"}, name
        assert of(found, name)["third"]["status"] == PASSED
    assert supervisor.failed(found, stages.NAMES)
    assert not supervisor.failed({**found, "records": []}, ("table", "designs"))
    assert supervisor.failed({**found, "records": []}, ("capture",))


def command(folder: Path, *options: str) -> list[str]:
    line = [sys.executable, "-m", "benches.gpu", "--out", str(folder / "run"), "--collect", str(folder / "results")]
    return [*line, "--size", "tiny", "--device", "cpu", *options]


def workers(folder: Path) -> list[int]:
    """Processes that still run for a run in ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition) -> None:
    end = time.time() + 60
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_what_it_measured_and_a_second_one_goes_on(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    results, names = first / "results" / "results.json", ("--stages", "environment", "correctness")
    with (tmp_path / "output").open("w") as output:
        running = subprocess.Popen(command(first, *names), cwd=ROOT, stdout=output, stderr=output)
        wait_until(lambda: results.exists() and len(json.loads(results.read_text())["records"]) > 6)
        time.sleep(random.uniform(0, 1.5))
        printed = (tmp_path / "output").read_text()
        time.sleep(2 * collected.EVERY)  # what was measured a moment before it is killed may be missing
        running.send_signal(signal.SIGKILL)
        running.wait()
    wait_until(lambda: not workers(first))
    assert {path.name for path in (first / "results").iterdir()} == set(FILES)
    left = json.loads(results.read_text())
    assert all(f"{record['name']} " in (first / "results" / "log.txt").read_text() for record in left["records"])
    passed = {record["name"] for record in left["records"] if record["stage"] == "correctness"}
    for line in printed.splitlines():
        assert "  passed " not in line or any(line.rstrip().endswith(r["name"]) for r in left["records"]), line

    line = command(second, *names, "--merge", str(results))
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = of(json.loads((second / "results" / "results.json").read_text()), "correctness")
    assert {name for name, record in found.items() if record["taken_from"]} == passed
    assert {record["status"] for record in found.values()} == {PASSED}
    assert found.keys() == {item.name for item in correctness.items(tiny(tmp_path))}
    log = (second / "results" / "log.txt").read_text()
    assert all((f"passed   {name} " in log) == (name not in passed) for name in found)


def earlier(out: Path, **machine: str) -> Path:
    """Results of one decode and of an encode, as of now."""
    versions = {"torch": "2", "triton": "3"}
    place = {"device": {"name": "A"}, "versions": versions}
    kernels = {name: [f"{sources.KERNELS}.{name}"] for name in ("decode", "encode")}
    machine = {"stage": "environment", "name": "machine", "status": PASSED, "data": place, "sources": []}
    records = [{**machine, "digest": sources.digest("environment", [])}] + [
        {"stage": "correctness", "name": name, "status": PASSED, "data": {}, "sources": modules}
        | {"digest": sources.digest("correctness", modules), "seconds": 1.0}
        for name, modules in kernels.items()
    ]
    unfit = [{"status": status} for status in ("failed", "error", "skipped")]
    unfit += [{"digest": "of other sources"}, {"digest": ""}, {"data": {"cut": "9 bytes are left out"}}]
    records += [{**records[-1], "name": "unfit", **changes} for changes in unfit]
    whole = [{"stage": "correctness", "seconds": 9.0, "finished": True}]
    path = out / "results.json"
    path.write_text(json.dumps({**HEAD, "stages": whole, "records": records}))
    return path


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"device": "B"}, "device is B, the earlier run's was A"),
        ({"torch": "2.1"}, "torch is 2.1, the earlier run's was 2"),
        ({"triton": "3.1"}, "triton is 3.1, the earlier run's was 3"),
        ({"size": "paper"}, "size is paper, the earlier run's was tiny"),
    ],
)
def test_results_of_another_setting_are_refused_by_name(changed: dict, words: str, tmp_path: Path) -> None:
    found = merging.read(earlier(tmp_path))
    now = {"device": "A", "torch": "2", "triton": "3"}
    merging.compare(found, "tiny", now)
    size = changed.pop("size", "tiny")
    with pytest.raises(merging.Refused, match=words):
        merging.compare(found, size, {**now, **changed})


def test_what_is_no_result_is_refused_before_anything_is_written(tmp_path: Path, capsys) -> None:
    for content in ("", "[]", "{}"):
        (tmp_path / "bad.json").write_text(content)
        plan = supervisor.Plan(tmp_path / "x", tmp_path / "x", "tiny", "cpu", ("table",), 60, tmp_path / "bad.json")
        with pytest.raises(merging.Refused, match="bad.json"):
            supervisor.run(plan)
    assert not (tmp_path / "x").exists()


def test_what_passed_is_taken_over_and_what_did_not_runs_again(tmp_path: Path) -> None:
    found = merging.read(earlier(tmp_path))
    assert merging.take(found, tmp_path, ("correctness",)) == {"started": HEAD["started"], "taken": 2, "left": 7}
    content = json.loads(stage_file(tmp_path, "correctness").read_text())
    assert [r["name"] for r in content["records"]] == ["decode", "encode"]
    assert {r["taken_from"] for r in content["records"]} == {HEAD["started"]}
    assert not content["finished"]
    assert not stage_file(tmp_path, "environment").exists()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A copy of the sources that a test may change."""
    for package in ("benches", "patchsae", "patchsae_kernels"):
        left_out = shutil.ignore_patterns("__pycache__", "*.so", "native", "assets", "results")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=left_out)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    caches = (sources._digest, sources._modules_of_kernels)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("patchsae_kernels/triton/decode.py", {"decode", "sweep", "any"}),  # the sweep imports it
        ("patchsae_kernels/triton/pick.py", {"encode", "any"}),
        ("patchsae_kernels/triton/launch.py", {"decode", "encode", "sweep", "any"}),
        ("patchsae_kernels/api.py", {"decode", "encode", "sweep", "any"}),
        ("patchsae/bench/checks.py", {"decode", "encode", "sweep", "any"}),
        ("patchsae/bench/cases.py", set()),
        ("benches/gpu/stages/designs.py", set()),
        ("benches/gpu/report.py", set()),
        ("patchsae_kernels/triton/adam.py", {"any"}),
    ],
)
def test_a_change_measures_again_what_ran_it(path: str, changes: set[str], tree: Path) -> None:
    ran = {name: [f"{sources.KERNELS}.{name}"] for name in ("decode", "encode", "sweep")} | {"any": []}
    before = {name: sources.digest("correctness", modules) for name, modules in ran.items()}
    (tree / path).write_text((tree / path).read_text() + "\n# mended\n")
    sources._digest.cache_clear()
    assert {name for name, modules in ran.items() if sources.digest("correctness", modules) != before[name]} == changes


def test_a_file_beyond_its_limit_gives_way_and_says_so() -> None:
    small = {"stage": "a", "name": "small", "data": {"x": [1.0]}}
    large = [{"stage": "a", "name": str(i), "data": {"samples": list(range(n))}} for i, n in enumerate((900, 3000))]
    text = collected.fitting({"records": [small, *large]}, 20_000)
    kept = json.loads(text)["records"]
    assert len(text) <= 20_000
    assert (kept[0], kept[1]["data"]) == (small, large[0]["data"])
    assert "bytes are left out" in kept[2]["data"]["cut"]
    cut = collected.shortened("ä" * 5000 + "end", 4000)
    assert len(cut.encode()) <= 4000
    assert cut.endswith("end")
    assert "bytes are left out" in cut


def test_a_table_that_cannot_be_drawn_ends_no_run() -> None:
    assert "KeyError" in collected.drawn({"records": []})


def test_a_folder_that_nothing_can_be_moved_into_is_written_from_inside(tmp_path: Path, monkeypatch) -> None:
    replace = os.replace

    def within(source: Path, target: Path) -> None:
        if source.parent != target.parent:
            raise OSError("Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(collected.os, "replace", within)
    Collection(tmp_path, tmp_path / "x", tmp_path / "log", HEAD, ()).write()
    assert {path.name for path in (tmp_path / "x").iterdir()} == set(FILES)
