"""Where the lines of a training go: metrics.jsonl always, TensorBoard and Weights & Biases on demand.

A resumed training writes steps again that a killed one had reached after its last checkpoint, with the same numbers.
No logger shows a step twice: the lines of metrics.jsonl after the checkpoint are dropped before it goes on
(`Stage.keep_metrics`), TensorBoard is told to drop them, and Weights & Biases, which cannot take a line back, is not
sent a step that it has.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from patchsae.errors import PatchsaeError

if TYPE_CHECKING:
    from patchsae.disk.runs import Stage

TENSORBOARD, WANDB = "tensorboard", "wandb"
NAMES = (TENSORBOARD, WANDB)
PROJECT = "patchsae"

_STATE = "wandb-run"  # .json in the stage


class Logger(Protocol):
    """Takes the lines of a training."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One line: "step" and figures by name; a figure that is not finite is none."""
        ...

    def close(self) -> None:
        """Write what is still on its way."""
        ...


def open_loggers(names: Sequence[str], stage: Stage) -> Loggers:
    """metrics.jsonl of a begun stage, and the named loggers beside it.

    Of a resumed stage `keep_metrics` must have dropped the lines after the checkpoint before this is called.

    Args:
        names: of NAMES, in any order.

    Raises:
        ValueError: another name.
        ImportError: a named logger is not installed; the message names the extra.
    """
    check_names(names)
    rows = stage.metrics()
    next_step = int(rows[-1]["step"]) + 1 if rows else 0
    found: list[Logger] = [JsonLines(stage)]
    if TENSORBOARD in names:
        found.append(TensorBoard(stage, next_step))
    if WANDB in names:
        found.append(WeightsAndBiases(stage))
    return Loggers(found)


def check_names(names: Sequence[str]) -> None:
    """ValueError for a name that is none of NAMES."""
    for name in names:
        if name not in NAMES:
            raise ValueError(
                f"log has {name!r}; expected names of {', '.join(NAMES)} (metrics.jsonl is always written)"
            )


class Loggers:
    """Several loggers as one; leaving its `with` block closes them."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = tuple(loggers)

    def log(self, row: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            logger.log(row)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class JsonLines:
    """metrics.jsonl of the stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def log(self, row: Mapping[str, Any]) -> None:
        self._stage.append_metrics(row)

    def close(self) -> None:
        """Every line is in the file already."""


class TensorBoard:
    """Event files in the stage's folder "tensorboard", a scalar per figure under the stage's name.

    next_step: what earlier event files hold from this step on is not shown.
    """

    def __init__(self, stage: Stage, next_step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise _missing(TENSORBOARD) from error
        self._writer = SummaryWriter(str(stage.folder(TENSORBOARD)), purge_step=next_step or None)
        self._prefix = stage.name

    def log(self, row: Mapping[str, Any]) -> None:
        for name, value in _figures(row).items():
            self._writer.add_scalar(f"{self._prefix}/{name}", value, row["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project "patchsae" with the stage's settings, which a resumed stage goes on with.

    Its id, and the step up to which it was sent, stay in the stage (wandb-run.json). WANDB_MODE=offline keeps the run
    on the disk, in the stage's folder "wandb", for `wandb sync`.

    Raises PatchsaeError where no run can be started (nobody is logged in, no connection).
    """

    def __init__(self, stage: Stage) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing(WANDB) from error
        stage.folder(WANDB)
        known = (stage.path / f"{_STATE}.json").exists()
        self._stage = stage
        fresh: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "step": -1}
        self._state = stage.load_json(_STATE) if known else fresh
        try:
            self._run = wandb.init(
                project=PROJECT,
                dir=str(stage.path),
                id=self._state["id"],
                resume="allow",
                name=f"{stage.path.resolve().parent.name}/{stage.name}",
                config=stage.config,
                reinit="create_new",  # the trainings of a sweep each have their own
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            raise PatchsaeError(
                f"Weights & Biases cannot start a run ({error}); log in (`wandb login`), or set WANDB_MODE=offline"
            ) from error

    def log(self, row: Mapping[str, Any]) -> None:
        if row["step"] <= self._state["step"]:
            return
        self._run.log(_figures(row), step=row["step"])
        self._state["step"] = row["step"]
        self._stage.save_json(_STATE, self._state)

    def close(self) -> None:
        self._run.finish()


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite figures of a line."""
    return {name: float(value) for name, value in row.items() if name != "step" and math.isfinite(value)}


def _missing(extra: str) -> ImportError:
    return ImportError(f"--log {extra} needs the package {extra}: pip install 'patchsae[{extra}]'")
