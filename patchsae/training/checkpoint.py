"""The state between two training steps: written whole to one file with a checksum, and put back bit for bit.

    checkpoints/            folder of a stage
      000001000.safetensors after step 1000; its metadata holds the fingerprint of its tensors
      000002000.safetensors

Whatever is drawn at random follows from the seed and the position. So there is no generator to keep. A file holds the
whole autoencoder, however many processes share it: a run goes on with another number of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import patchsae_kernels as pk
from patchsae.data import BadImageRecord
from patchsae.disk import atomic
from patchsae.disk.hashing import fingerprint
from patchsae.errors import PatchsaeError
from patchsae.parallel.base import Parallel
from patchsae.training.dead import DeadCounter

FOLDER = "checkpoints"
_SUFFIX = ".safetensors"
_FINGERPRINT = "fingerprint"
_EVERYWHERE = ("buffers.", "constants.")  # the same in every process


class DamagedCheckpoints(PatchsaeError):
    """There are checkpoints, and none of them is as it was written."""

    def __init__(self, folder: Path, reasons: Mapping[str, str]) -> None:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
        super().__init__(
            f"none of the checkpoints in {folder} is whole:{listed}\n"
            "Nothing was changed. Put back a copy of one of them, or give --overwrite to start again."
        )


class _Damaged(Exception):
    """What is wrong with one file."""


@dataclass
class TrainState:
    """Everything that decides how training goes on. Where processes share the latents, each holds its own."""

    params: dict[str, Tensor]
    """What is trained, by name: W_enc, b_enc, W_dec, b_dec and what else the variant has."""
    buffers: dict[str, Tensor]
    """What a variant keeps beside its parameters; the same in every process."""
    constants: dict[str, Tensor]
    """What the start measured and no step changes (the input's normalisation); the same in every process."""
    adam: pk.AdamState
    dead: DeadCounter
    step: int = 0
    """Steps taken."""
    position: int = 0
    """How much of the order of images has been used."""
    images: int = 0
    """Images trained on: those that could not be decoded are not among them."""
    bad: list[BadImageRecord] = field(default_factory=list)
    """The images that were left out."""


def save(folder: Path, state: TrainState, parallel: Parallel, keep: int) -> None:
    """Write `state` to `folder`, atomically, and keep the newest `keep` checkpoints.

    Every process calls it and returns when the file is on disk; the first one writes, and raises DiskFull.
    """
    whole = {name: _whole(name, tensor, parallel) for name, tensor in _tensors(state).items()}
    if parallel.is_first:
        tensors = {name: tensor for name, tensor in whole.items() if tensor is not None} | _counters(state)
        try:
            with atomic.replacing(_path(folder, state.step)) as temporary:
                save_file(tensors, temporary, metadata={_FINGERPRINT: fingerprint(tensors)})
        except atomic.DiskFull:
            parallel.barrier()
            raise
        _prune(folder, state.step, keep)
    parallel.barrier()


def exists(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint, be it damaged."""
    return bool(files(folder))


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, "" where nothing is."""
    try:
        _read(path)
    except _Damaged as error:
        return str(error)
    return ""


def restore(folder: Path, state: TrainState, parallel: Parallel) -> None:
    """Fill `state` in place from the newest checkpoint in `folder` that is as it was written.

    Every process calls it; the first one reads. Damaged checkpoints are named on standard error and left alone.

    Raises:
        DamagedCheckpoints: there is none or none is whole; the folder is as it was.
    """
    stored = _newest_whole(folder) if parallel.is_first else {}
    with torch.no_grad():
        for name, tensor in _tensors(state).items():
            _fill(name, tensor, stored.get(name), parallel)
    counts, bad = parallel.broadcast((stored.get("counts"), stored.get("bad")))
    if counts is not None and bad is not None:
        state.step, state.position, state.images, state.adam.step = counts.tolist()
        state.bad = [BadImageRecord(**record) for record in json.loads(bytes(bad.tolist()))]


def _newest_whole(folder: Path) -> dict[str, Tensor]:
    """The content of the newest checkpoint that is as it was written."""
    reasons: dict[str, str] = {}
    for path in files(folder):
        try:
            return _read(path)
        except _Damaged as damage:
            print(f"checkpoint {path} is damaged ({damage}) and left out", file=sys.stderr)
            reasons[path.name] = str(damage)
    raise DamagedCheckpoints(folder, reasons)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get(_FINGERPRINT)
    except (SafetensorError, OSError) as error:
        raise _Damaged(error) from error
    found = fingerprint(tensors)
    if found != expected:
        raise _Damaged(f"its content has the fingerprint {found} and should have {expected}")
    return tensors


def files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, be they damaged, the newest first."""
    found = [path for path in folder.glob(f"*{_SUFFIX}") if path.name.removesuffix(_SUFFIX).isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:09d}{_SUFFIX}"


def _step(path: Path) -> int:
    return int(path.name.removesuffix(_SUFFIX))


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove what is older than the newest `keep`, and damaged ones of a later step that were passed over."""
    known = files(folder)
    later = [path for path in known if _step(path) > step]
    for path in [*later, *known[len(later) + keep :]]:
        path.unlink(missing_ok=True)


def _tensors(state: TrainState) -> dict[str, Tensor]:
    groups = {
        "params": state.params,
        "exp_avg": state.adam.exp_avg,
        "exp_avg_sq": state.adam.exp_avg_sq,
        "buffers": state.buffers,
        "constants": state.constants,
        "dead": {"since_fired": state.dead.since_fired},
    }
    return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def _counters(state: TrainState) -> dict[str, Tensor]:
    bad = json.dumps([asdict(record) for record in state.bad]).encode()
    return {
        "counts": torch.tensor([state.step, state.position, state.images, state.adam.step]),
        "bad": torch.tensor(list(bad), dtype=torch.uint8),
    }


def _whole(name: str, tensor: Tensor, parallel: Parallel) -> Tensor | None:
    """All latents of one of `_tensors`, contiguous on the CPU; None but in the first process.

    W_enc is written as it lies in memory, latent-major: to transpose it takes longer than to write it.
    """
    whole = tensor.detach() if name.startswith(_EVERYWHERE) else parallel.full(name, tensor)
    if whole is None or not parallel.is_first:
        return None
    return (whole.T if name.endswith(".W_enc") else whole).cpu().contiguous()


def _fill(name: str, tensor: Tensor, stored: Tensor | None, parallel: Parallel) -> None:
    """The inverse of `_whole`, in place; `stored` is None but in the first process."""
    if name.startswith(_EVERYWHERE):
        everybodys = parallel.broadcast(stored)
        assert everybodys is not None
        tensor.copy_(everybodys)
    else:
        parallel.fill_(name, tensor, stored.T if stored is not None and name.endswith(".W_enc") else stored)
