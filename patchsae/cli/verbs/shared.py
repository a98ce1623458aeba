"""What verbs share: the stage they write, the report they renew, the processes they run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from patchsae.cli.choices import Model

if TYPE_CHECKING:
    from patchsae.disk.runs import Stage
    from patchsae.parallel.base import Parallel

PLAIN = tyro.conf.arg(name="")
"""Of a dataclass of options: they stand among those of the verb itself."""


def require_prompts(templates: Sequence[str]) -> None:
    """ValueError for templates that are none, before anything is loaded."""
    from patchsae.models import prompts

    prompts.resolve(templates)


def stage_of(run: Path, name: str, verb: str) -> Stage:
    from patchsae.disk.runs import Run

    return Run(run).stage(name, verb)


def renew_report(run: Path) -> None:
    from patchsae import report
    from patchsae.disk.runs import Run

    print(f"report: {report.build(Run(run)).resolve()}")


@contextmanager
def together(run: Path, model: Model) -> Iterator[tuple[Model, Parallel]]:
    """The processes that share the images, and the model on this one's device; the first one renews the report."""
    from patchsae.cli import opening
    from patchsae.parallel import open_parallel

    with open_parallel(1, opening.device(model)) as parallel:
        yield replace(model, device=str(parallel.device)), parallel
        if parallel.is_first:
            renew_report(run)
