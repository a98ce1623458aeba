"""Reports: each stage writes a Section, `build` joins them into one self-contained report.html."""

from patchsae.report.elements import Row, Tile
from patchsae.report.page import build
from patchsae.report.section import Section

__all__ = ["Row", "Section", "Tile", "build"]
