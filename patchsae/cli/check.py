"""`patchsae check`: whether every file of a run is what was written, and what to run again where it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchsae import progress
from patchsae.disk import checksums, settings, tables
from patchsae.disk.again import again
from patchsae.disk.checksums import DamagedFile
from patchsae.disk.documents import read_json
from patchsae.disk.runs import Run, Stage
from patchsae.words import counted


@dataclass(frozen=True)
class StageCheck:
    """What was found in a stage."""

    path: Path
    finished: bool
    files: int
    """Files that were looked at."""
    unchecked: int
    """Those of them that have no checksum (a run from before there were any): they can be read, no more is known."""
    damaged: dict[str, str]
    """Path in the stage -> what is wrong with it."""
    stale: str = ""
    """What it was made from that the run no longer has; "" for nothing known."""

    @property
    def lines(self) -> list[str]:
        """For people."""
        state = "finished" if self.finished else "not finished (the command that began it goes on)"
        whole = self.files - len(self.damaged)
        known = "" if not self.unchecked else f", {self.unchecked} of them without a checksum"
        lines = [f"{self.path}: {state}, {whole} of {counted(self.files, 'file')} whole{known}"]
        lines += [f"  {self.path / name}: {reason}" for name, reason in self.damaged.items()]
        lines += [f"  {self.stale}"] if self.stale else []
        return lines + ([f"  {again(self.path)}"] if self.damaged or self.stale else [])


def check(root: Path) -> list[StageCheck]:
    """Look through every file that the stages of a run wrote, and those of the runs in it (what a sweep trained).

    Args:
        root: a run, one stage of it, or a cache.

    Raises:
        FileNotFoundError: there is no stage in `root`.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; expected the directory of a run")
    stages = list(_stages(root))
    if not stages:
        raise FileNotFoundError(f"{root} is no run: no stage of one is in it")
    found, trained = [], _trained(root)
    with progress.track(len(stages), "check", unit="stages") as bar:
        for stage in stages:
            one = check_stage(stage)
            found.append(one if one.damaged else replace(one, stale=_stale(stage, trained)))
            bar.advance()
    return found


def check_stage(stage: Stage) -> StageCheck:
    """Look through the files of one stage."""
    damaged: dict[str, str] = {}
    unchecked = 0
    try:
        finished, names = stage.finished, stage.files()
        known = set(checksums.recorded(stage.path))
        own = _own_checksums(stage)
    except (DamagedFile, ValueError) as error:  # the lists of names themselves
        return StageCheck(stage.path, False, 1, 0, {"": str(error)})
    missing = sorted(name for name in known if finished and not (stage.path / name).exists())
    for path in [*(stage.path / name for name in names), *(stage.path / name for name in missing)]:
        name = str(path.relative_to(stage.path))
        reason = own.get(name) or checksums.damage(path)
        if not reason and name not in own and path.name not in checksums.recorded(path.parent):
            unchecked += 1
            reason = unreadable(path)
        if reason:
            damaged[name] = reason
    return StageCheck(stage.path, finished, len(names) + len(missing), unchecked, damaged)


def unreadable(path: Path) -> str:
    """Why a file without a checksum cannot be read as what its name says, "" where it can."""
    reader = _READERS.get(path.suffix)
    try:
        if reader is not None:
            with checksums.understanding(path):
                reader(path)
    except DamagedFile as error:
        return error.reason
    except OSError as error:
        return str(error)
    return ""


def summary(found: Sequence[StageCheck]) -> str:
    """The last line."""
    damaged, stale = [one for one in found if one.damaged], [one for one in found if one.stale]
    files = sum(one.files for one in found)
    if stale and not damaged:
        return f"{len(stale)} of {counted(len(found), 'stage')} made from an earlier training: {_named(stale)}"
    if not damaged:
        return f"{counted(len(found), 'stage')}, {counted(files, 'file')}: all are whole"
    return f"{len(damaged)} of {counted(len(found), 'stage')} damaged: {_named(damaged)}"


def _own_checksums(stage: Stage) -> dict[str, str]:
    """What is wrong with files that hold checksums of their own (checkpoints, shards of a cache), "" for nothing."""
    from patchsae.activations import CacheIndex
    from patchsae.activations.repair import damage_of_shards
    from patchsae.training import checkpoint

    folder = stage.path / checkpoint.FOLDER
    found = {f"{folder.name}/{path.name}": checkpoint.damage(path) for path in checkpoint.files(folder)}
    if stage.environment.get("verb") == "cache":
        index = CacheIndex.load(stage.path)
        shards = damage_of_shards(stage.path, index)
        found |= {record.file: shards[number] for number, record in enumerate(index.shards)}
    return found


def _named(stages: Sequence[StageCheck]) -> str:
    return ", ".join(str(one.path) for one in stages)


def _trained(run: Path) -> str | None:
    """The fingerprint of the autoencoder that was trained in a run, where it is whole."""
    from patchsae.disk.hashing import fingerprint
    from patchsae.models.checkpoints.load import load_sae

    stage = Run(run).stage("train")
    try:
        return fingerprint(load_sae(stage.path, "cpu").state_dict()) if stage.finished else None
    except (DamagedFile, ValueError, OSError):
        return None


def _stale(stage: Stage, trained: str | None) -> str:
    """Whether a stage read another autoencoder than the run's, which nobody named."""
    config = stage.config or {}
    made_from = config.get("made_from")
    sae = made_from.get("sae") if isinstance(made_from, dict) else None
    weights = sae.get("weights") if isinstance(sae, dict) else None
    if trained is None or weights in (None, trained) or "sae" in config:
        return ""
    return f"it was made from another autoencoder (weights {weights}) than the one trained here now ({trained})"


def _stages(root: Path) -> Iterator[Stage]:
    if Stage(root).exists:
        yield Stage(root)
        return
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
        if Stage(folder).exists:
            yield Stage(folder)
        else:
            yield from Run(folder).stages()


def _read_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        file.keys()


def _read_picture(path: Path) -> None:
    from patchsae.data import BadImage, load_image

    try:
        load_image(path)
    except BadImage as error:
        raise ValueError(error.reason) from error


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".json": lambda path: read_json(path, most=2**30),
    ".toml": settings.read,
    ".csv": tables.read_table,
    ".parquet": tables.read_table,
    ".png": _read_picture,
}
