"""What an experiment is handed to write its result, and the protocol by which it does, alone or with other processes.

begin, compute, save, report, finish: a killed run goes on where it was, and a finished one is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from patchsae.data import Batch, ImageDataset
from patchsae.disk.runs import Stage
from patchsae.experiments.options import StreamOptions
from patchsae.experiments.stream.fold import FoldResult, fold
from patchsae.experiments.stream.fold_state import FILE, Accumulator
from patchsae.parallel.base import Alone, Parallel
from patchsae.report import Section

T = TypeVar("T")

MAY_DIFFER = ("workers", "on_bad_image", "save_minutes")
"""Options that do not decide a result, so that a resumed run may change them (`Stage.begin`)."""


@dataclass(frozen=True)
class Job:
    """Where and how an experiment leaves its result. A :class:`Stage` stands for a job of which no more is said:

    stage = patchsae.Run("runs/mine").stage("extract")
    extract.run(clip, sae, images, stage)
    extract.run(clip, sae, images, patchsae.Job(stage, overwrite=True))
    """

    stage: Stage
    """Folder of the result: its files, what it was made from, and a section of the run's report."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the caller wants recorded, and compared on resume, beside the options (how things were opened)."""
    overwrite: bool = False
    """Begin again even if the stage is finished or holds part of a run."""
    parallel: Parallel = field(default_factory=Alone)
    """The processes that share the images (see `fold`), all of which call the experiment."""

    @staticmethod
    def of(given: Job | Stage) -> Job:
        """What an experiment was handed, as a job."""
        return given if isinstance(given, Job) else Job(given)

    def config(self, options: Any, **made_from: Any) -> dict[str, Any]:
        """What the stage records: the caller's settings, the experiment's options (or None), what it is made from."""
        chosen = {} if options is None else asdict(options)
        return {**self.settings, **chosen, "made_from": made_from}

    def fold(
        self,
        dataset: ImageDataset,
        preprocess: Callable[[Any], Tensor],
        update: Callable[[Batch], None],
        accumulators: Mapping[str, Accumulator],
        options: StreamOptions,
        *,
        label: str,
    ) -> FoldResult:
        """:func:`~patchsae.experiments.stream.fold.fold` with its state in the stage, shared by the processes."""
        stage, parallel = self.stage, self.parallel
        return fold(dataset, preprocess, update, accumulators, options, label=label, stage=stage, parallel=parallel)

    def make(
        self,
        config: Mapping[str, Any],
        compute: Callable[[], T],
        write: Callable[[Stage, T], Section],
        *,
        device: torch.device | str = "cpu",
        may_differ: Collection[str] = MAY_DIFFER,
        spent: str = FILE,
    ) -> None:
        """Make the result unless it is there already; all processes return when it is.

        Args:
            config: every setting that decides the result, and those that `may_differ` when a stopped run goes on.
            compute: called by all processes.
            write: called by the first with the stage and what it computed; saves that, and returns its section of the
                report.
            spent: a file that only going on needs.

        Raises: as `Stage.begin`, in the first process.
        """
        with self.stage as stage:
            if not self.parallel.broadcast(self._begin(config, str(device), may_differ)):
                return
            computed = compute()
            if self.parallel.is_first:
                write(stage, computed).write(stage)
                stage.finish(spent)
            self.parallel.barrier()

    def _begin(self, config: Mapping[str, Any], device: str, may_differ: Collection[str]) -> bool:
        """Whether there is anything to do, as the first process knows."""
        begin = self.stage.begin
        return self.parallel.is_first and begin(config, self.overwrite, device=device, may_differ=may_differ)
