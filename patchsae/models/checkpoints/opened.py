"""A checkpoint of any format, opened: the file with weights, what it holds, and which configuration lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from patchsae.disk import archives, contents
from patchsae.disk.claims import FalseClaim
from patchsae.disk.documents import parse_json, read_json
from patchsae.disk.tensor_files import read_tensors

CONFIGS = ("cfg.json", "config.json", "config.yaml", "config.yml")
MOST_CONFIG = 2**20  # bytes
MOST_YAML = 2**15  # bytes; PyYAML reads a hundred in a millisecond
MOST_NESTED = 500
MISUSED = (ValueError, LookupError, AttributeError, TypeError, OverflowError)  # by tags: !!int of no digits
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# What libraries call the weights that they load, rather than what lies beside them: optimisers, statistics
FIRST = ("sae_weights.safetensors", "sae.safetensors", "ae.pt", "sae.pt", "model.safetensors", "model.pt")
MOST_SHOWN, MOST_BELOW = 4, 10_000
EXPECTED = "what torch.save (1.6 or newer) writes, safetensors, or a saev file"


@dataclass(frozen=True, eq=False)
class Opened:
    """A path, and what lies there; each part is read when it is first asked for, and nothing of it is run.

    Attributes:
        path: as it was given, a file or a directory.
        stand_ins, packages: of all formats, see `Format`.
    """

    path: Path
    stand_ins: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    @cached_property
    def file(self) -> Path:
        """The file with the weights: the path itself, or the one such file of the directory.

        Of several, the one that libraries load. Raises ValueError where a directory holds none, or several of these.
        """
        if not self.path.is_dir():
            return self.path
        found = sorted(file for file in self.path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        found = [file for file in found if file.name in FIRST] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{self.path} holds several files of weights: name one, such as {found[0]}")
        raise ValueError(
            f"{self.path} holds no weights ({', '.join(f'*{suffix}' for suffix in SUFFIXES)}){self._folders_below()}"
        )

    @cached_property
    def config_file(self) -> Path | None:
        """The configuration in the directory, or beside the file; None where there is none."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return next((folder / name for name in CONFIGS if (folder / name).is_file()), None)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What it says; empty where there is none, or where it is no table."""
        if self.config_file is None:
            return {}
        is_yaml = self.config_file.suffix in (".yaml", ".yml")
        record = _read_yaml(self.config_file) if is_yaml else read_json(self.config_file, MOST_CONFIG)
        return record if isinstance(record, dict) else {}

    @cached_property
    def header(self) -> Mapping[str, Any]:
        """The line of JSON before a torch archive, as saev writes it; empty where there is none."""
        return {} if self._start == 0 else _header(self.file, self._start)

    @cached_property
    def content(self) -> Any:
        """What the file holds: tensors by name, or what `torch.save` was given.

        Raises:
            UnsafeFileError: it asks for something that it may not have.
            UnexpectedContent: it holds no weights, or is damaged.
        """
        kind = contents.what_is(self.file).kind
        if kind == "safetensors":
            return read_tensors(self.file)[0]
        if kind not in ("torch", "zip", "cut zip") and not self._start:
            archives.refuse_asking(self.file, self.stand_ins)
            raise contents.unexpected(self.file, EXPECTED)
        return archives.load_archive(self.file, self.stand_ins, self.packages, self._start)

    @property
    def table(self) -> Mapping[str, Any]:
        """`content` where it is a table; else an empty one."""
        return self.content if isinstance(self.content, Mapping) else {}

    def tensors(self, *within: str) -> dict[str, Tensor]:
        """The tensors of the table, or of one nested in it by these keys; empty where that is none."""
        table: Any = self.table
        for key in within:
            table = table.get(key) if isinstance(table, Mapping) else None
        if not isinstance(table, Mapping):
            return {}
        return {str(name): value for name, value in table.items() if isinstance(value, Tensor)}

    def _folders_below(self) -> str:
        """What to say of folders in the directory that hold weights."""
        files = (file for depth in ("*/*", "*/*/*") for file in self.path.glob(depth))
        folders = sorted({str(file.parent) for file in islice(files, MOST_BELOW) if file.suffix in SUFFIXES})
        more = f" and {len(folders) - MOST_SHOWN} more" if len(folders) > MOST_SHOWN else ""
        return f"; name a folder that holds some: {', '.join(folders[:MOST_SHOWN])}{more}" if folders else ""

    @cached_property
    def _start(self) -> int:
        """Where a torch archive begins that follows a line of JSON; 0 where the file is none such."""
        with self.file.open("rb") as file:
            if file.read(1) != b"{":
                return 0
            file.seek(0)
            line = file.readline(MOST_CONFIG)
            return len(line) if line.endswith(b"\n") and file.read(4) == b"PK\x03\x04" else 0


def _header(path: Path, length: int) -> Mapping[str, Any]:
    with path.open("rb") as file:
        record = parse_json(f"{path}, its first line", file.read(length))
    return record if isinstance(record, dict) else {}


def _read_yaml(path: Path) -> Any:
    """The YAML of a file, as plain data."""
    if path.stat().st_size > MOST_YAML:
        raise FalseClaim(f"{path} holds more than {MOST_YAML:,} bytes of YAML; nothing was read")
    try:
        text = path.read_text(encoding="utf-8")
        if text.count("[") + text.count("{") > MOST_NESTED:  # which take PyYAML time that grows as their cube
            raise ValueError(f"it opens more than {MOST_NESTED} lists and tables")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it repeats a part of itself by an alias, which no configuration needs")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, *MISUSED) as error:
        raise ValueError(f"{path} is not YAML that can be read: {str(error)[:200]}") from error
