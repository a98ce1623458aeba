"""Whether two runs hold the same tables, results, settings and tensors: python -m tests.same_tables RUN RUN

Files are compared byte for byte, but for what cannot agree between two runs of the same commands: the folders in
recorded paths, numbers that depend on the clock (``CLOCK``), and in a config.toml what it was made by (``MADE_BY``).
Pages, sections of pages, pictures, locks and checksums are not looked at. Exits with 1 where anything differs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLOCK = {"images_per_s", "minutes"}
"""Keys of metrics.jsonl (a rate) and of the training.json of a small CLIP (a time)."""
MADE_BY = {"git_commit", "versions"}
_COMPARED = {".csv", ".parquet", ".json", ".jsonl", ".md", ".safetensors", ".toml"}
_TEXT = _COMPARED - {".parquet", ".safetensors"}
_FOLDERS = re.compile(rb'(?<=")/[^"\n]*/|(?<=local-dir:)[^"\n]*/')


def differences(first: Path, second: Path) -> Iterator[str]:
    """A line for each file that only one of the runs has, and for each that differs."""
    names = files(first) | files(second)
    if not names:
        yield f"neither {first} nor {second} holds anything to compare"
    for name in sorted(names):
        path, other = first / name, second / name
        if not path.exists() or not other.exists():
            yield f"{name}: only in {first if path.exists() else second}"
            continue
        ours, theirs = comparable(path), comparable(other)
        if ours != theirs:
            yield f"{name}: {_where(ours, theirs)}"


def files(run: Path) -> set[str]:
    """What is compared, as paths within the run."""
    found = (path for path in run.rglob("*") if path.suffix in _COMPARED and path.name != "section.json")
    return {str(path.relative_to(run)) for path in found}


def comparable(path: Path) -> bytes:
    """What a file of a run has in common with that of another run of the same commands."""
    data = path.read_bytes()
    if path.suffix not in _TEXT:
        return data
    data = _FOLDERS.sub(b"", data)
    if path.suffix == ".toml":
        return json.dumps(_without(MADE_BY, tomllib.loads(data.decode())), indent=1).encode()
    if path.suffix == ".jsonl" or path.name == "training.json":
        lines = data.splitlines() if path.suffix == ".jsonl" else [data]
        return b"\n".join(json.dumps(_without(CLOCK, json.loads(line))).encode() for line in lines)
    return data


def _without(keys: set[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(keys, inner) for key, inner in value.items() if key not in keys}
    return value


def _where(ours: bytes, theirs: bytes) -> str:
    """The first line that differs, of text; the number of bytes that do, of anything else."""
    try:
        lines = zip_longest(ours.decode().splitlines(), theirs.decode().splitlines())
    except UnicodeDecodeError:
        unequal = sum(a != b for a, b in zip_longest(ours, theirs))
        return f"{unequal} of {max(len(ours), len(theirs))} bytes differ"
    for number, (a, b) in enumerate(lines, 1):
        if a != b:
            return f"line {number} is {a!r} and {b!r}"
    return "line ends differ"


def main(runs: list[str]) -> int:
    if len(runs) != 2:
        print(__doc__)
        return 2
    first, second = map(Path, runs)
    found = list(differences(first, second))
    print("\n".join(found) or f"{len(files(first))} files are the same")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
