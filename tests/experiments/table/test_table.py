"""The table over datasets and adapters: what its fields are, and that finished cells are not run again."""

from __future__ import annotations

import shutil
import signal
import time

import pytest

from patchsae.disk.runs import Run
from patchsae.experiments.accuracies import improvement
from patchsae.experiments.compare import Comparison
from patchsae.experiments.compare.crossed_result import CrossedResult
from patchsae.experiments.compare.transitions import NORMALISATIONS, TRANSITIONS
from patchsae.experiments.table import Cell, TableRow
from patchsae.report import build
from tests.experiments.table import table_process
from tests.experiments.table.table_process import CELLS, TESTED, make_table
from tests.parallel.launch import alone


@pytest.fixture(scope="module")
def made(clip, tmp_path_factory) -> tuple[list[TableRow], Run]:
    root = tmp_path_factory.mktemp("tables")
    return make_table(clip, root), Run(root)


def test_fields_are_those_of_the_cells(made) -> None:
    rows, run = made
    columns = run.stage("table").read_table("table.csv")
    groups = ["all", "base", "novel", "harmonic mean"]
    assert columns["cell"] == [cell.name for cell in CELLS for _ in groups]
    assert columns["group"] == groups * len(CELLS)
    for number, cell in enumerate(CELLS):
        comparison = Comparison.load(Run(run.root / "table-cells").stage(cell.stages[0]))
        classified = CrossedResult.load(Run(run.root / "table-cells").stage(cell.stages[1]))
        assert int(classified.models[0].images.sum()) == TESTED
        for place, group in enumerate(groups[:3]):
            line = number * len(groups) + place
            labels = comparison.seen_labels[group]
            assert columns["classes"][line] == len(labels)
            latents = comparison.transitions.counts[labels].double().mean(0).tolist()
            assert [columns[kind][line] for kind in TRANSITIONS] == pytest.approx(latents)
            for of in NORMALISATIONS:
                shares = comparison.transitions.mean_shares(of, labels)
                assert [columns[f"{kind} of {of}"][line] for kind in TRANSITIONS] == pytest.approx(shares)
        assert columns["accuracy_a"][number * 4] is None  # all classes together: images compete within their group
        for group in ("base", "novel"):
            line = number * len(groups) + groups.index(group)
            pair = (columns["accuracy_a"][line], columns["accuracy_b"][line])
            assert pair == classified.accuracies[group]
            assert columns["delta"][line] == improvement(*pair)
        assert rows[number].accuracies == classified.accuracies


def test_markdown_reads_as_the_paper_prints_it(made) -> None:
    rows, run = made
    head, rule, *body = (run.stage("table").path / "table.md").read_text().splitlines()
    assert head == "| dataset | adapter | high/high | high->low | low->high | CLIP | adapted | delta |"
    assert rule.count("---") == 8
    fields = [field.strip() for field in body[0].replace(r"\|", "¦").strip("|").split("|")]
    assert fields[:2] == ["shapes¦one", "vpt"]
    shares = [rows[0].means[group].shares["high_either"][0] for group in ("base", "novel")]
    assert fields[2] == "/".join(f"{100 * share:.2f}" for share in shares)
    assert fields[5] == "/".join(f"{100 * rows[0].accuracies[group][0]:.2f}" for group in ("base", "novel"))
    assert "base/novel classes" in body[-1]
    assert NORMALISATIONS["high_either"] in body[-1]


def test_the_report_has_the_table_and_the_cells_have_theirs(made) -> None:
    _, run = made
    assert "shapes|one, vpt" in build(run).read_text()
    assert "Comparison: CLIP against vpt" in (run.root / "table-cells" / "report.html").read_text()


def test_finished_cells_are_skipped_and_say_so_and_new_ones_join(clip, made, tmp_path, capsys) -> None:
    rows, original = made
    run = Run(shutil.copytree(original.root, tmp_path / "moved"))
    finished = [run.root / "table-cells" / name / "finished" for cell in CELLS for name in cell.stages]
    before = [path.stat().st_mtime_ns for path in finished]
    three = (*CELLS, Cell("three", "shapes", "in memory"))
    longer = make_table(clip, run.root, three, share="active_either")
    out = capsys.readouterr().out
    assert all(f"{name}: already finished" in out for cell in CELLS for name in cell.stages)
    assert "three: already finished" not in out
    assert [path.stat().st_mtime_ns for path in finished] == before
    assert longer[:2] == rows
    assert longer[2].dataset == "three"
    assert len(set(run.stage("table").read_table("table.csv")["cell"])) == 3


def test_an_unknown_share_and_no_cells_are_refused(clip, tmp_path) -> None:
    with pytest.raises(ValueError, match="share is 'half'; expected one of high, high_a"):
        make_table(clip, tmp_path, share="half")
    with pytest.raises(ValueError, match="cells is empty"):
        make_table(clip, tmp_path, ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # the process that others are forked from imports torch and torchvision first
def test_a_killed_table_goes_on_with_the_cell_it_was_in(clip, clip_folder, made, tmp_path, capsys) -> None:
    process = alone(table_process.work, clip_folder, tmp_path)
    cells = Run(tmp_path / "table-cells")
    while not (cells.stage("two").path / "fold.safetensors").exists():
        assert process.is_alive(), "ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert cells.stage("one-test").finished
    assert not cells.stage("two").finished
    assert not (tmp_path / "table").exists()
    rows = make_table(clip, tmp_path)
    out = capsys.readouterr().out
    assert "one: already finished" in out
    assert "two: already finished" not in out
    assert rows == made[0]
