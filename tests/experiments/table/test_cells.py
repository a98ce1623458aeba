"""The list of cells: what is left out, what is shared, and an error that names the key for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from patchsae.experiments.table.cells import EXAMPLE, Cell, read_cells

OTHER = 'name = "a-test"\nimages = "shapes"\nadapter = "x"\n'
GOOD = 'name = "a"\nimages = "shapes"\nadapter = "x"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "cells.toml"
    path.write_text(text)
    return path


def test_keys_left_out_have_their_defaults(tmp_path) -> None:
    (cell,) = read_cells(written(tmp_path, EXAMPLE))
    assert cell == Cell("dtd-maple", "/data/dtd", "runs/dtd/adapt-maple-seed1")
    assert (cell.rank_split, cell.test_split, cell.stages) == ("train", "test", ("dtd-maple", "dtd-maple-test"))


def test_defaults_hold_for_all_and_a_cell_may_differ(tmp_path) -> None:
    text = f'[defaults]\nimages = "shapes"\ntest_limit = 5\ntemplates = ["a {{}}."]\n[[cells]]\n{GOOD}test_limit = 7\n'
    text += '[[cells]]\nname = "b"\nadapter = "y"\n'
    first, second = read_cells(written(tmp_path, text))
    assert (first.images, first.test_limit, first.templates) == ("shapes", 7, ("a {}.",))
    assert (second.images, second.test_limit, second.adapter) == ("shapes", 5, "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[cells]\n", r"cells\.toml is not TOML"),
        ("", "cells is empty"),
        ("cells = 3\n", "cells is 3; expected at least one table"),
        ("cells = [1]\n", r"cells is \[1\]"),
        (f"[[cell]]\n{GOOD}", r"cell is not known; expected \[\[cells\]\]"),
        ("defaults = 3\n[[cells]]\n" + GOOD, "defaults is 3"),
        (
            '[defaults]\nadaptor = "x"\n[[cells]]\n' + GOOD,
            r"defaults\.adaptor is not known; expected one of name",
        ),
        ('[[cells]]\nname = "a"\nimages = "shapes"\n', r"cells\[0\]\.adapter is missing"),
        (f'[[cells]]\n{GOOD}[[cells]]\n{GOOD}adaptor = "x"\n', r"cells\[1\]\.adaptor is not known"),
        (f"[[cells]]\n{GOOD}test_limit = -1\n", r"cells\[0\]\.test_limit is -1; expected an integer of at least 0"),
        (f"[[cells]]\n{GOOD}test_limit = true\n", r"cells\[0\]\.test_limit is True"),
        (f"[[cells]]\n{GOOD}rank_split = 1\n", r"cells\[0\]\.rank_split is 1; expected text"),
        (f"[[cells]]\n{GOOD}outside = 1\n", r"cells\[0\]\.outside is 1; expected true or false"),
        (f'[[cells]]\n{GOOD}templates = "a"\n', r"cells\[0\]\.templates is 'a'; expected a list of texts"),
        (f"[[cells]]\n{GOOD}templates = [1]\n", r"cells\[0\]\.templates is \[1\]"),
        ('[[cells]]\nname = "a/b"\nimages = "shapes"\nadapter = "x"\n', r"cells\[0\]\.name is 'a/b'; expected letters"),
        (f"[[cells]]\n{GOOD}[[cells]]\n{GOOD}", r"cells\[1\]\.name is 'a', which is taken"),
        (
            f"[[cells]]\n{GOOD}[[cells]]\n{OTHER}",
            r"cells\[1\]\.name is 'a-test', which is taken",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_cells(written(tmp_path, text))


def test_reading_cells_loads_no_torch() -> None:
    program = "import sys, patchsae.experiments.table.cells; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
