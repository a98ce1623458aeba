"""A table, for a process that the tests kill as well."""

from __future__ import annotations

import time
from pathlib import Path

from patchsae.data import Sample
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run
from patchsae.experiments import table
from patchsae.experiments.compare import Side
from patchsae.experiments.table import Cell, OpenCell, TableRow
from patchsae.experiments.table.options import CellOptions, TableOptions
from patchsae.models.clip import SplitCLIP
from tests.experiments.worlds import make_clip, make_images, make_prompted, make_sae

RANKED, TESTED = 12, 8
OPTIONS = CellOptions(batch_size=3, save_minutes=0, show_latents=0, templates=("a {}.",), high=4, low=8)
CELLS = tuple(Cell(name, images="shapes", adapter="in memory", dataset=f"shapes|{name}") for name in ("one", "two"))


class Slow(ShapesWorld):
    """Pictures that take long enough for a signal to come in between."""

    def sample(self, i: int) -> Sample:
        time.sleep(0.05)
        return super().sample(i)


def opened(cell: Cell, clip: SplitCLIP, world: type[ShapesWorld] = ShapesWorld) -> OpenCell:
    """Cells differ in their prompts."""
    dataset = world("train", n=RANKED, seed=0)
    adapted = make_prompted(clip, dataset.classnames or [], seed=len(cell.name) + ord(cell.name[0]))
    sides = Side("CLIP", clip, dataset), Side(cell.label or "vpt", adapted, dataset)
    return OpenCell(*sides, make_images(TESTED, "val"), {"adapter": cell.adapter})


def make_table(
    clip: SplitCLIP,
    root: Path,
    cells: tuple[Cell, ...] = CELLS,
    world: type[ShapesWorld] = ShapesWorld,
    share: str = "high_either",
) -> list[TableRow]:
    stage, options = Run(root).stage("table"), TableOptions(OPTIONS, share=share)
    return table.run(cells, lambda cell: opened(cell, clip, world), make_sae(clip.width), stage, options)


def work(clip_folder: Path, root: Path) -> None:
    make_table(make_clip(clip_folder), root, world=Slow)
