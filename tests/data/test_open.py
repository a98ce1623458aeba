from __future__ import annotations

import subprocess
import sys

import pytest

from patchsae.data import DataError, layouts, open_images, splits
from patchsae.data.open import all_layouts


def test_opening_does_not_import_torch(write_files):
    root = write_files({"a/1.png": 1, "b/2.png": 2})
    code = "import sys, patchsae.data as d; d.open_images(sys.argv[1]).sample(0); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'PIL', 'pyarrow'}"
    code = f"import sys, patchsae.data; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_stays_a_function():
    import patchsae.data as data

    for _ in range(2):
        for name in data.__all__:
            assert callable(getattr(data, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = data.nothing


def test_layouts_have_names_of_their_own():
    names = [layout.name for layout in all_layouts()]
    assert len(set(names)) == len(names) >= 8


NEW_LAYOUT = """
from patchsae.data.layout import Layout
from patchsae.data.open import open_images

LAYOUT = Layout(
    name="lists",
    looks_for="a list",
    matches=lambda source: isinstance(source, list),
    splits=lambda source: [],
    open=lambda source, split, outside: open_images(source[0], outside=outside),
)
"""


def test_a_new_layout_is_one_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path)])
    (tmp_path / "lists_of_sources.py").write_text(NEW_LAYOUT)
    assert len(open_images(["shapes?n=3"])) == 3


def test_nothing_there_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match="no such file or folder") as error:
        open_images(tmp_path / "gone")
    for layout in all_layouts():
        assert layout.looks_for in str(error.value)


def test_a_folder_without_images_says_what_it_holds(write_files):
    root = write_files({"a/x.txt": "", "b/y.txt": "", "z.txt": ""})
    with pytest.raises(DataError, match=r"no images found .* 2 folders \(a, b\) and 1 other files"):
        open_images(root)


def test_a_single_image_and_other_things_are_named(write_files, tmp_path):
    root = write_files({"a.png": 1, "b.txt": "text"})
    with pytest.raises(DataError, match="a single image, not a dataset"):
        open_images(root / "a.png")
    with pytest.raises(DataError, match="a file of another kind"):
        open_images(root / "b.txt")
    with pytest.raises(DataError, match="no file matches this pattern"):
        open_images(f"{root}/*.parquet")
    with pytest.raises(DataError, match="source a dict: not a dataset"):
        open_images({})


def test_the_shapes_world_by_name():
    assert splits("shapes") == ["train", "val", "test"]
    assert splits("shapes:val?n=3") == ["val"]
    val = open_images("shapes:val?n=3&seed=1")
    assert len(val) == 3
    assert val.fingerprint == open_images("shapes?n=3&seed=1", "val").fingerprint
    assert val.fingerprint != open_images("shapes?n=3&seed=1").fingerprint
    with pytest.raises(DataError, match=r"split is 'test'; .* has 'val'"):
        open_images("shapes:val", "test")
    with pytest.raises(DataError, match="names split 'holdout'"):
        open_images("shapes:holdout")


def test_a_folder_called_shapes_opens_by_its_path(write_files, monkeypatch):
    root = write_files({"shapes/a/1.png": 1, "shapes/b/2.png": 2})
    monkeypatch.chdir(root)
    assert open_images("./shapes").classnames == ["a", "b"]
