"""Shapes world: rendered pictures with known factors, captions and masks, made from a seed."""

from patchsae.data.shapes.captions import describe
from patchsae.data.shapes.factors import FACTORS, Scene, ShapeObject, split_of
from patchsae.data.shapes.spec import from_spec
from patchsae.data.shapes.world import ShapesWorld

__all__ = ["FACTORS", "Scene", "ShapeObject", "ShapesWorld", "describe", "from_spec", "split_of"]
