"""Runs on disk: an experiment directory with one folder per stage, complete at every moment.

    runs/demo/                 Run
      report.html              patchsae.report.build
      train/                   Stage
        config.toml            resolved settings, [environment], [versions]
        metrics.jsonl          one JSON object a line
        *.safetensors *.csv *.parquet *.json *.png *.md
        finished               there once the stage is done
        .files .sums .lock     the stage's own names; their checksums; who is writing

Every file is replaced whole (see `atomic`): a process killed anywhere leaves the last complete state, and `Stage.begin`
carries on from it. What a run says about itself is untrusted: only plain names inside a stage are written or removed
(see `paths`), and files are read back by their checksums (see `checksums`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from patchsae.disk import atomic, checksums, environment, settings, tables
from patchsae.disk.again import CONFIG, options
from patchsae.disk.documents import parse_json, read_json
from patchsae.disk.locks import FolderLock
from patchsae.disk.paths import OutsidePath, is_plain, plain_name

if TYPE_CHECKING:
    import torch

_CONFIG, _METRICS, _FINISHED, _DISCARDED = CONFIG, "metrics.jsonl", "finished", ".discarded"
_MANIFEST = ".files"
_LARGEST_JSON = 2**30  # a report's pictures are text in it
_RESERVED = ("environment", "versions")
_OWN_NAMES = (_CONFIG, _FINISHED, _MANIFEST, _DISCARDED)


class ConfigDiffers(ValueError):
    """A stage was begun before with other settings."""


class Run:
    """An experiment directory. Making a Run touches nothing on disk."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def stage(self, name: str, verb: str | None = None) -> Stage:
        """The stage `name`, whether or not it exists yet. verb: which writes it; left out: the one of that name."""
        return Stage(self.root / plain_name(name), verb or name)

    def stages(self) -> list[Stage]:
        """The stages that exist on disk, by name."""
        if not self.root.is_dir():
            return []
        folders = sorted(path for path in self.root.iterdir() if path.is_dir() and is_plain(path.name))
        return [stage for stage in map(Stage, folders) if stage.exists]


class Stage:
    """One folder of a run. Read at any time; write between `begin` and `finish`.

    with run.stage("extract") as stage:
        if stage.begin(config, overwrite=overwrite):
            ...
            stage.finish()
    """

    def __init__(self, path: Path, verb: str | None = None) -> None:
        self.path = path
        self.verb = verb
        """The verb of the command line that writes it, for a message about how to make it again."""
        self._lock: FolderLock | None = None
        self._names: set[str] = set()  # what _owned returns, while begun
        self._metrics_digest: Any = None  # of metrics.jsonl, once a line was added here

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Whether the stage was ever begun."""
        return (self.path / _MANIFEST).exists() and (self.path / _CONFIG).exists()

    @property
    def finished(self) -> bool:
        """Whether the stage ran to its end."""
        # The order matters: a stage that is being discarded keeps both files for a moment.
        done = (self.path / _FINISHED).exists() and (self.path / _CONFIG).exists()
        return done and not (self.path / _DISCARDED).exists()

    @property
    def config(self) -> dict[str, Any] | None:
        """The resolved settings the stage was begun with (None entries absent); None before the first `begin`."""
        table = self._config_table()
        return None if table is None else {key: value for key, value in table.items() if key not in _RESERVED}

    @property
    def environment(self) -> dict[str, Any]:
        """Device, commit and {"versions": {...}} as recorded at the first `begin`; {} before it."""
        table = self._config_table() or {}
        return {**table.get("environment", {}), "versions": table.get("versions", {})} if table else {}

    def begin(
        self,
        config: Mapping[str, Any],
        overwrite: bool = False,
        *,
        device: str = "cpu",
        may_differ: Collection[str] = (),
    ) -> bool:
        """Take the stage for writing: afresh, or where a killed process left it. False: finished already (and said so).

        config: every setting that decides the result (plain values, paths, nested mappings or dataclasses).
        may_differ: top-level keys that do not decide the result (workers, ...); recorded, but not compared on resume.
        overwrite: removes what this stage wrote, and nothing else in the folder, and starts afresh.
        Raises ConfigDiffers if the stage was begun with other settings, StageLocked if another process is writing it,
        FileExistsError if the folder holds files and is not a stage.
        """
        wanted = self._resolved(config, device)
        self._take()
        try:
            proceed = self._prepare(wanted, overwrite, may_differ)
        except BaseException:
            self.close()
            raise
        if not proceed:
            self.close()
            print(f"{self.name}: already finished in {self.path}; nothing to do (--overwrite runs it again)")
        return proceed

    def finish(self, *spent: str) -> None:
        """Mark the stage as done, remove what is `spent` (files that only going on needs), and let go of it."""
        self._require_begun()
        self._settle_checksums(gone=spent)
        atomic.write_text(self.path / _FINISHED, "")
        for name in spent:
            _remove(self.path / plain_name(name))
        self.close()

    def close(self) -> None:
        """Let go of the stage without finishing it; the next `begin` carries on. Harmless when repeated."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save_tensors(self, name: str, tensors: Mapping[str, np.ndarray | torch.Tensor]) -> Path:
        """Write numpy arrays and torch tensors (any device and strides; stored contiguous) to `name`.safetensors."""
        path = self.own(f"{name}.safetensors")
        with atomic.replacing(path) as temporary:
            if any(not isinstance(value, np.ndarray) for value in tensors.values()):
                _save_torch(tensors, temporary)
            else:
                from safetensors.numpy import save_file

                save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, temporary)
        return path

    def load_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `name`.safetensors, on the CPU."""
        from safetensors.torch import load_file

        with self.reading(f"{name}.safetensors") as path:
            tensors: dict[str, torch.Tensor] = load_file(path)
            return tensors

    def write_table(self, name: str, columns: Mapping[str, tables.Column]) -> Path:
        """Write a table to `name` (`.csv` or `.parquet`); see `tables.write_table`."""
        path = self.own(name)
        tables.write_table(path, columns)
        return path

    def read_table(self, name: str) -> dict[str, np.ndarray | list[Any]]:
        """The columns of the table `name`; see `tables.read_table`."""
        with self.reading(name) as path:
            return tables.read_table(path)

    def save_json(self, name: str, value: Any) -> Path:
        """Write `value` to `name`.json. ValueError for NaN or infinity, which JSON does not have."""
        path = self.own(f"{name}.json")
        atomic.write_text(path, json.dumps(value, default=_json_value, allow_nan=False, ensure_ascii=False, indent=1))
        return path

    def load_json(self, name: str) -> Any:
        """The content of `name`.json."""
        with self.reading(f"{name}.json") as path:
            return read_json(path, most=_LARGEST_JSON)

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file of any other kind (a picture) under its full name."""
        path = self.own(name)
        atomic.write_bytes(path, content)
        return path

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl. A value that is not finite is written as null."""
        path = self.own(_METRICS)
        finite = {key: _finite(value) for key, value in row.items()}
        line = (json.dumps(finite, default=_json_value, allow_nan=False, ensure_ascii=False) + "\n").encode()
        with atomic.room_for(path):
            if self._metrics_digest is None:
                self._metrics_digest = hashlib.sha256(path.read_bytes() if path.exists() else b"")
                checksums.record(path, self._metrics_digest.hexdigest())
            self._metrics_digest.update(line)
            checksums.record(path, self._metrics_digest.hexdigest(), sync=False)
            with checksums.open_own(path) as file:
                file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line torn by a kill is left out."""
        if not (self.path / _METRICS).exists():
            return []
        with self.reading(_METRICS) as path:
            return [_row(path, line) for line in _whole_lines(path)]

    def keep_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop rows for which `keep` is false: on resume, those after the checkpoint, which will be written again."""
        if not self.own(_METRICS).exists():
            return
        with self.reading(_METRICS) as path:
            lines = [line for line in _whole_lines(path) if keep(_row(path, line))]
        atomic.write_bytes(path, b"".join(lines))
        self._metrics_digest = None

    def reading(self, name: str) -> AbstractContextManager[Path]:
        """The path of the file `name`, for a reader. Raises DamagedFile; see `checksums.reading`."""
        return checksums.reading(self.path / plain_name(name))

    @contextmanager
    def understanding(self) -> Iterator[None]:
        """DamagedFile for what is stumbled over where something is made of the stage's files."""
        with checksums.understanding(self.path):
            yield

    def remove(self, name: str) -> None:
        """Remove a file or folder of the stage's own; harmless where it is not there."""
        path = self.own(name)
        if path.exists() or path.is_symlink():
            self._settle_checksums(gone=[name])
            _remove(path)

    def own(self, name: str) -> Path:
        """The path of `name`, recorded as this stage's own, for code that writes it itself (`atomic.replacing`)."""
        self._require_begun()
        path = self.path / plain_name(name)
        if name in _OWN_NAMES:
            raise ValueError(f"{name!r} is written by the stage itself; use another name")
        if name not in self._names:
            if path.exists():
                raise FileExistsError(f"{path} was not written by this stage; move it away")
            # The name goes first: a kill in between leaves a name without a file, never a file without a name.
            with atomic.room_for(path), checksums.open_own(self.path / _MANIFEST) as file:
                file.write(f"{name}\n".encode())
                os.fsync(file.fileno())
            self._names.add(name)
        return path

    def folder(self, name: str) -> Path:
        """A sub-folder, made if missing, that is the stage's own with all it holds (checkpoints)."""
        path = self.own(name)
        if path.is_symlink():
            raise FileExistsError(f"{path} is a link and could lead anywhere; expected a folder of the stage's own")
        path.mkdir(exist_ok=True)
        return path

    def files(self) -> list[str]:
        """The files that the stage wrote and that are there, those in its folders included, as paths within it."""
        own = [self.path / name for name in (_CONFIG, *self._owned(), _FINISHED)]
        inner = [path for folder in own if folder.is_dir() for path in sorted(folder.rglob("*"))]
        there = [path for path in [*own, *inner] if path.is_file() and path.name != checksums.FILE]
        return [str(path.relative_to(self.path)) for path in there]

    def _config_table(self) -> dict[str, Any] | None:
        if not (self.path / _CONFIG).exists():
            return None
        with self.reading(_CONFIG) as path:
            return settings.read(path)

    def _resolved(self, config: Mapping[str, Any], device: str) -> dict[str, Any]:
        table: dict[str, Any] = settings.plain(config)
        for key in _RESERVED:
            if key in table:
                raise ValueError(f"config has the key {key!r}, which the run writes itself; rename it")
        made = {"stage": self.name, "verb": self.verb, "options": options(), "device": str(device)}
        made["git_commit"] = environment.git_commit()
        return table | {"environment": settings.plain(made), "versions": environment.versions()}

    def _take(self) -> None:
        if self._lock is not None:
            raise RuntimeError(f"stage {self.name} was already begun here; finish or close it first")
        _refuse_foreign(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path)

    def _prepare(self, wanted: dict[str, Any], overwrite: bool, may_differ: Collection[str]) -> bool:
        """Bring the locked folder into a state to write in; False if there is nothing to do."""
        atomic.remove_partial(self.path)
        if overwrite or (self.path / _DISCARDED).exists():
            self._discard()
        before = self._config_table()
        if before is None:
            atomic.write_text(self.path / _MANIFEST, f"stage {self.name}\n")
        else:
            _refuse_changes(self.path, before, wanted, may_differ)
            if self.finished:
                return False
            wanted |= {key: before[key] for key in _RESERVED if key in before}
            self._repair()
        checksums.keep(self.path)
        atomic.write_text(self.path / _CONFIG, settings.dumps(wanted))
        self._names = set(self._owned())
        return True

    def _repair(self) -> None:
        """Cut the torn last line that a kill can leave in the files that grow by appending."""
        for path in (self.path / _METRICS, self.path / _MANIFEST, self.path / checksums.FILE):
            if path.exists():
                with checksums.open_own(path) as file:
                    file.truncate(sum(map(len, _whole_lines(path))))

    def _discard(self) -> None:
        """Remove what this stage wrote. Killed half-way, the marker makes the next `begin` go on with it."""
        names = self._owned()
        (self.path / _DISCARDED).touch()
        for name in [_FINISHED, _CONFIG, *names, checksums.FILE, _MANIFEST, _DISCARDED]:
            _remove(self.path / name)

    def _owned(self) -> list[str]:
        """The names in the manifest. Raises OutsidePath where it speaks of anything but plain names in the stage."""
        path = self.path / _MANIFEST
        if not path.exists():
            return []
        names = [line.decode(errors="replace").rstrip("\n") for line in _whole_lines(path)][1:]
        for name in names:
            if not is_plain(name):
                raise OutsidePath(
                    f"{path} names {name!r}; expected plain names of files in {self.path}. Nothing was removed; remove "
                    "the folder yourself if you do not need it"
                )
        return names

    def _settle_checksums(self, gone: Collection[str]) -> None:
        atomic.write_text(self.path / checksums.FILE, checksums.settled(self.path, gone))

    def _require_begun(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"stage {self.name} is not open for writing; call begin() first")


def _remove(path: Path) -> None:
    """A file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_foreign(folder: Path) -> None:
    """A folder that holds anything but lacks a stage's manifest belongs to somebody else."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a stage needs a folder of that name")
    if not folder.is_dir() or (folder / _MANIFEST).exists() or (folder / _DISCARDED).exists():
        return
    foreign = sorted(p.name for p in folder.iterdir() if p.name != FolderLock.FILE and not atomic.is_partial(p))
    if foreign:
        raise FileExistsError(
            f"{folder} holds {', '.join(foreign[:3])} and is not a stage of a run; use another directory"
        )


def _refuse_changes(folder: Path, before: dict[str, Any], wanted: dict[str, Any], may_differ: Collection[str]) -> None:
    skip = {*_RESERVED, *may_differ}
    old, new = ({k: v for k, v in table.items() if k not in skip} for table in (before, wanted))
    changed = settings.differences(old, new)
    if changed:
        lines = [f"  {key}: was {_shown(a)}, now {_shown(b)}" for key, (a, b) in changed.items()]
        hint = "Give the same settings to go on, --overwrite to start again, or another run directory."
        raise ConfigDiffers("\n".join([f"{folder} was begun with other settings:", *lines, hint]))


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that grows by appending, line ends kept, without a last one that has none."""
    return [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]


def _row(path: Path, line: bytes) -> dict[str, Any]:
    row = parse_json(path, line)
    if not isinstance(row, dict):
        raise ValueError(f"a line is {line[:40]!r}; expected an object")
    return row


def _finite(value: Any) -> Any:
    value = _json_value(value) if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_value(value: Any) -> Any:
    """For json: numpy and torch values as Python's, paths as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) has no JSON form")


def _save_torch(tensors: Mapping[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    def prepared(value: Any) -> torch.Tensor:
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        return tensor.detach().contiguous()

    save_file({key: prepared(value) for key, value in tensors.items()}, path)
