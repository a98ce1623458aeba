"""What a fold saves: its position, the images left out, and the accumulators of every process, as one file.

With several processes each one's accumulators are stored apart, because float64 sums that were merged on the way would
depend on when that happened. Only the first process touches the file.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from patchsae.data import BadImageRecord

if TYPE_CHECKING:
    from patchsae.disk.runs import Stage
    from patchsae.parallel.base import Parallel

NAME = "fold"
FILE = f"{NAME}.safetensors"


class Accumulator(Protocol):
    """What a fold needs of an accumulator; it is fed by the caller's ``update``."""

    def merge(self, other: Any) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass
class Part:
    """What one process holds."""

    bad: list[BadImageRecord]
    states: dict[str, dict[str, Tensor]]
    """Accumulator -> its state, on the CPU."""


class FoldState:
    """Position in the dataset, bad images, and the accumulators; filled from the stage where a fold was stopped there.

    Args:
        accumulators: this process's; those of the first process receive what a run of another number of processes left.
        stage: where the state is saved by the first process; None saves nothing.
    """

    def __init__(self, accumulators: Mapping[str, Accumulator], stage: Stage | None, parallel: Parallel) -> None:
        self._accumulators = accumulators
        self._stage = stage
        self._parallel = parallel
        self._saved = time.monotonic()
        self._earlier_bad: list[BadImageRecord] = []
        self._new_bad: list[BadImageRecord] = []
        self.position = 0
        """Images of the dataset that went by, in all processes."""
        if stage is not None:
            self._load(stage)

    @property
    def age(self) -> float:
        """Seconds since the last save."""
        return time.monotonic() - self._saved

    def advance(self, position: int, bad: list[BadImageRecord]) -> None:
        """All images before `position` went by; `bad` are those that this process left out since it began."""
        self.position = position
        self._new_bad = bad

    def save(self) -> None:
        """Save what all processes hold; when this returns it is on disk."""
        if self._stage is None:
            return
        parts = self._parallel.gather(self._part())
        if parts is not None:
            self._stage.save_tensors(NAME, {"position": torch.tensor(self.position), **_tensors(parts)})
        self._parallel.barrier()
        self._saved = time.monotonic()

    def merge(self) -> tuple[BadImageRecord, ...]:
        """Bring everything together in the accumulators of the first process, in the order of ranks.

        Returns:
            the images that any process left out, in the order of the dataset.
        """
        parts = self._parallel.gather(self._part())
        if parts is not None:
            self._merge(parts[1:])
        bad = self._parallel.broadcast([record for part in parts or () for record in part.bad])
        return tuple(sorted(bad, key=lambda record: record.index))

    def _part(self) -> Part:
        states = {name: accumulator.state_dict() for name, accumulator in self._accumulators.items()}
        on_cpu = {name: {key: value.cpu() for key, value in state.items()} for name, state in states.items()}
        # the loader may be ahead; an image that did not go by yet comes up again
        new = [record for record in self._new_bad if record.index < self.position]
        return Part([*self._earlier_bad, *new], on_cpu)

    def _load(self, stage: Stage) -> None:
        parts, parallel = None, self._parallel
        if parallel.is_first and (stage.path / FILE).exists():
            with stage.understanding():
                tensors = stage.load_tensors(NAME)
                self.position = int(tensors.pop("position"))
                parts = _parts(tensors)
        size = parallel.data_size * parallel.latent_size
        self.position, stored = parallel.broadcast((self.position, len(parts or ())))
        with stage.understanding():
            if stored == size:
                self._take(parallel.scatter(parts))
            elif parts is not None:
                self._take(parts[0])
                self._merge(parts[1:])
                self._earlier_bad = [record for part in parts for record in part.bad]

    def _take(self, part: Part) -> None:
        self._earlier_bad = part.bad
        for name, accumulator in self._accumulators.items():
            accumulator.load_state_dict(part.states[name])

    def _merge(self, parts: list[Part]) -> None:
        for part in parts:
            for name, accumulator in self._accumulators.items():
                other = copy.deepcopy(accumulator)
                other.load_state_dict(part.states[name])
                accumulator.merge(other)


def _tensors(parts: list[Part]) -> dict[str, Tensor]:
    """Names: "bad" and "ACCUMULATOR.KEY" of the first process, "RANK/..." of the others."""
    tensors = {}
    for rank, part in enumerate(parts):
        prefix = f"{rank}/" if rank else ""
        records = json.dumps([asdict(record) for record in part.bad]).encode()
        tensors[f"{prefix}bad"] = torch.from_numpy(np.frombuffer(records, np.uint8).copy())
        for name, state in part.states.items():
            tensors |= {f"{prefix}{name}.{key}": value for key, value in state.items()}
    return tensors


def _parts(tensors: Mapping[str, Tensor]) -> list[Part]:
    """The inverse of `_tensors`."""
    parts: dict[int, Part] = {}
    for full, tensor in tensors.items():
        rank, _, name = full.rpartition("/")
        part = parts.setdefault(int(rank or 0), Part([], {}))
        if name == "bad":
            part.bad = [BadImageRecord(**record) for record in json.loads(tensor.numpy().tobytes())]
        else:
            accumulator, _, key = name.partition(".")
            part.states.setdefault(accumulator, {})[key] = tensor
    return [parts[rank] for rank in sorted(parts)]
