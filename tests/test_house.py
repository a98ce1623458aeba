"""The walls of the house that no linter holds: no circle of imports, few modules at the root, no crowded folder."""

from __future__ import annotations

import graphlib
from collections import Counter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("patchsae", "patchsae_kernels")
AT_ROOT, IN_FOLDER = 8, 28


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_needs_what_needs_it(package):
    """Imports in functions and for types count too."""
    graph = grimp.build_graph(package, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > len(imports), "the graph is empty: nothing was looked at"
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_few_modules_lie_at_the_root():
    loose = sorted(path.name for path in (ROOT / "patchsae").glob("*.py"))
    assert 0 < len(loose) <= AT_ROOT, loose


@pytest.mark.parametrize("tree", [*PACKAGES, "tests", "benches"])
def test_no_folder_is_crowded(tree):
    files = Counter(path.parent.relative_to(ROOT) for path in (ROOT / tree).rglob("*.py"))
    assert files
    assert {str(folder): count for folder, count in files.items() if count > IN_FOLDER} == {}
