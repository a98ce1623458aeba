"""Class names as prompts say them."""

from __future__ import annotations


def spoken(name: str) -> str:
    """A name from a file or folder with its underscores as spaces, as CoOp, CoCoOp and MaPLe put it into prompts."""
    return name.replace("_", " ")
