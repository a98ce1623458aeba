import csv
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchsae.disk import tables
from patchsae.disk.tables import read_table, write_table
from tests.examples import examples

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
DTYPES = [np.bool_, np.int32, np.int64, np.uint8, np.float32, np.float64]


@st.composite
def tables_(draw):
    """Columns of every kind, with gaps, NaN, quotes, line ends and names to match."""
    rows = draw(st.integers(1, 6))
    exactly = {"min_size": rows, "max_size": rows}
    column = st.one_of(
        *(hnp.arrays(dtype, rows) for dtype in DTYPES),
        st.lists(texts, **exactly),
        st.lists(st.none() | texts, **exactly),
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), **exactly),
        st.lists(st.none() | st.floats(), **exactly),
        st.lists(st.none() | st.booleans(), **exactly),
    )
    return draw(st.dictionaries(texts, column, min_size=1, max_size=4))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@examples(30)
@given(columns=tables_())
def test_round_trip(tmp_path_factory, ending, columns):
    path = tmp_path_factory.getbasetemp() / f"table.{ending}"
    write_table(path, columns)
    got = read_table(path)
    assert list(got) == list(columns)
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            if ending == "parquet":
                assert got[name].dtype == values.dtype
            np.testing.assert_array_equal(np.asarray(got[name]).astype(values.dtype), values)
        else:
            assert repr([_python(value) for value in got[name]]) == repr(values)


def test_csv_is_read_by_python_s_own_reader(tmp_path):
    write_table(tmp_path / "a.csv", {"class": ["a,b", 'say "hi"', ""], "recall": [0.5, None, 1.0]})
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["class", "recall"], ["a,b", "0.5"], ['say "hi"', ""], ["", "1.0"]]


def test_csv_of_other_software_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfname,n,x\r\ncat,3,0.5\r\ndog,,1e-3")
    assert read_table(tmp_path / "a.csv").keys() == {"name", "n", "x"}
    got = read_table(tmp_path / "a.csv")
    assert got["name"] == ["cat", "dog"]
    assert got["n"] == [3, None]
    np.testing.assert_array_equal(got["x"], [0.5, 1e-3])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_no_rows(tmp_path, ending):
    write_table(tmp_path / f"a.{ending}", {"latent": np.empty(0, np.int64), "class": []})
    assert {name: len(values) for name, values in read_table(tmp_path / f"a.{ending}").items()} == {
        "latent": 0,
        "class": 0,
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "at least one named column"),
        ({"a": [1], "b": [1, 2]}, r"different lengths: \{'a': 1, 'b': 2\}"),
        ({"a": np.zeros((2, 2))}, r"column 'a' has shape \(2, 2\)"),
        ({"a": ["x", 1]}, "column 'a' holds int, str"),
        ({"a": [2**63]}, "column 'a' holds an integer that does not fit"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        write_table(tmp_path / "a.csv", columns)
    assert not list(tmp_path.iterdir())


def test_unknown_endings_and_ragged_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends with \.csv or \.parquet; got 'a\.tsv'"):
        write_table(tmp_path / "a.tsv", {"a": [1]})
    (tmp_path / "a.csv").write_text("a,b\n1\n")
    with pytest.raises(ValueError, match="row 2 has 1 fields; the header has 2"):
        read_table(tmp_path / "a.csv")


def _python(value):
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / name
    path.write_text('"x","y","x"\n1,2,3\n')
    if name == "a.parquet":
        pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]), path)
    with pytest.raises(ValueError, match=rf"{name}: two columns have the name 'x'"):
        tables.read_table(path)


def test_a_small_table_that_unpacks_to_more_than_there_is_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    tables.write_table(path, {"x": np.zeros(3_000_000)})
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("patchsae.disk.claims.available_memory", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"a\.parquet needs .* MB of memory; 1 MB are available"):
        tables.read_table(path)


@pytest.mark.slow
def test_no_thread_of_the_reader_holds_memory_of_python_when_the_interpreter_ends(tmp_path):
    """Given a file of Python's own, 8 of 20 such processes were aborted after their last line."""
    path = tmp_path / "a.parquet"
    tables.write_table(path, {"name": ["x" * 1_000_000] * 500, "x": list(range(500))})
    program = "import sys, pathlib; from patchsae.disk import tables; tables.read_table(pathlib.Path(sys.argv[1]))"
    for _ in range(8):
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)


@pytest.mark.slow
def test_a_long_text_that_is_stored_once_is_held_once(tmp_path):
    import tracemalloc

    path, text = tmp_path / "a.parquet", "x" * 1_000_000
    tables.write_table(path, {"name": [text] * 500, "x": list(range(500))})
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    found = tables.read_table(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert found["name"] == [text] * 500
