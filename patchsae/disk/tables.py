"""Tables with named columns, as CSV or parquet by the ending of the file.

CSV as written here keeps types without a schema: text is always quoted, numbers and true/false never, a missing value
is empty and unquoted. Any spreadsheet or data frame library reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from patchsae.disk import atomic
from patchsae.disk.claims import require_memory

Column: TypeAlias = "Sequence[Any] | np.ndarray"

_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^,\r\n"]*))(,|\r?\n|\Z)')


def write_table(path: Path, columns: Mapping[str, Column]) -> None:
    """Write columns of equal length to `path` (`.csv` or `.parquet`), atomically.

    A column is a sequence or 1-D array of bool, int (64 bits), float or text; a missing value is None and stays apart
    from NaN and from empty text. ValueError names the column that does not fit.
    """
    checked = _checked(columns)
    if path.suffix == ".csv":
        atomic.write_text(path, _to_csv(checked))
    elif path.suffix == ".parquet":
        _write_parquet(path, checked)
    else:
        raise _bad_ending(path)


def read_table(path: Path) -> dict[str, np.ndarray | list[Any]]:
    """The columns of a table: numeric ones without gaps as 1-D arrays, text and columns with gaps (None) as lists.

    Parquet returns the dtypes that were written; CSV returns bool, int64 and float64.
    """
    if path.suffix == ".csv":
        return _from_csv(path.read_bytes().decode("utf-8-sig"), path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise _bad_ending(path)


def _bad_ending(path: Path) -> ValueError:
    return ValueError(f"a table's name ends with .csv or .parquet; got {path.name!r}")


def _checked(columns: Mapping[str, Column]) -> dict[str, np.ndarray | list[Any]]:
    if not columns:
        raise ValueError("columns is empty; a table has at least one named column")
    checked = {str(name): _column(str(name), values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in checked.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have different lengths: {lengths}")
    return checked


def _column(name: str, values: Column) -> np.ndarray | list[Any]:
    """A numeric array, or a list of text or of one type with gaps."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        if values.ndim != 1:
            raise ValueError(f"column {name!r} has shape {values.shape}; expected one dimension")
        if values.dtype.kind == "u" and values.size and values.max() > np.iinfo(np.int64).max:
            raise ValueError(f"column {name!r} holds {values.max()}, which does not fit 64 signed bits")
        return values
    items = [value.item() if isinstance(value, np.generic) else value for value in values]
    present = [value for value in items if value is not None]
    kinds = {type(value) for value in present}
    if kinds <= {str}:
        return items
    if kinds == {int, float}:
        items, kinds = [None if value is None else float(value) for value in items], {float}
    if not (kinds == {bool} or kinds == {int} or kinds == {float}):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"column {name!r} holds {names}; expected only bool, only numbers or only text")
    if kinds == {int} and not all(-(2**63) <= value < 2**63 for value in present):
        raise ValueError(f"column {name!r} holds an integer that does not fit 64 signed bits")
    dtype = {bool: np.bool_, int: np.int64, float: np.float64}[kinds.pop()]
    return np.asarray(items, dtype) if len(present) == len(items) else items


def _to_csv(columns: Mapping[str, np.ndarray | list[Any]]) -> str:
    lines = [",".join(_quote(name) for name in columns)]
    cells = [[_cell(value) for value in values] for values in columns.values()]
    lines += [",".join(row) for row in zip(*cells, strict=True)]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    # str of a numpy scalar is the shortest text that gives back the same value in its own precision
    return str(value)


def _from_csv(text: str, path: Path) -> dict[str, np.ndarray | list[Any]]:
    rows: list[list[str | _Bare]] = [[]]
    position = 0
    while position < len(text):
        match = _FIELD.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise ValueError(f"{path}: line {line} is not CSV: {text[position : position + 40]!r}")
        quoted, bare, end = match.groups()
        rows[-1].append(quoted.replace('""', '"') if quoted is not None else _Bare(bare))
        position = match.end()
        if end != ",":
            rows.append([])
    header, *body = [row for row in rows if row] or [[]]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: two columns have the name {_twin(header)!r}")
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise ValueError(f"{path}: row {number} has {len(row)} fields; the header has {len(header)}")
    return {str(name): _parse([row[i] for row in body]) for i, name in enumerate(header)}


def _twin(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


class _Bare(str):
    """A field that stood without quotes, so a number, true, false or missing (or text written by other software)."""


def _parse(fields: list[str | _Bare]) -> np.ndarray | list[Any]:
    present = [field for field in fields if field != "" or not isinstance(field, _Bare)]
    if not fields or not all(isinstance(field, _Bare) for field in present) or not present:
        return [None if field == "" and isinstance(field, _Bare) else str(field) for field in fields]
    for convert, dtype in ((_boolean, np.bool_), (int, np.int64), (float, np.float64)):
        try:
            values = [None if field == "" else convert(field) for field in fields]
        except ValueError:
            continue
        return np.asarray(values, dtype) if len(present) == len(fields) else values
    return [None if field == "" else str(field) for field in fields]


def _boolean(field: str) -> bool:
    if field not in ("true", "false"):
        raise ValueError(field)
    return field == "true"


def _write_parquet(path: Path, columns: Mapping[str, np.ndarray | list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # from_pandas=False keeps NaN apart from missing
    arrays = {name: pa.array(values, from_pandas=False) for name, values in columns.items()}
    with atomic.replacing(path) as temporary:
        pq.write_table(pa.table(arrays), temporary)


def _read_parquet(path: Path) -> dict[str, np.ndarray | list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # not Python's own file: its buffers are freed by threads of pyarrow that outlive the reading, some while the
    # interpreter ends, and abort it
    with pa.OSFile(str(path)) as file:
        about = pq.read_metadata(file)
        schema = about.schema.to_arrow_schema()
        if len(set(schema.names)) < len(schema.names):
            raise ValueError(f"{path}: two columns have the name {_twin(schema.names)!r}")
        encoded = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        require_memory(f"{path}", 2 * encoded + 16 * about.num_rows * len(schema.names))
        # texts as they are stored, each once: written out they may take a thousand times the file
        texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
        table = pq.read_table(file, read_dictionary=texts)
    return {name: _column_of(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _column_of(column: Any) -> np.ndarray | list[Any]:
    """A pyarrow column: an array where it is numeric without gaps, else a list."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        found: list[Any] = []
        for chunk in column.chunks:
            texts = chunk.dictionary.to_pylist()
            found += [None if i is None else texts[i] for i in chunk.indices.to_pylist()]
        return found
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    plain = column.null_count == 0 and any(is_kind(column.type) for is_kind in numeric)
    values: np.ndarray | list[Any] = column.to_numpy() if plain else column.to_pylist()
    return values
