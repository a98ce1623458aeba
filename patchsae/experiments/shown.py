"""What a display shows of many classes and latents, and what it says of those that it leaves out."""

from __future__ import annotations

from collections.abc import Sequence

from patchsae.words import counted, number

SHOWN_CLASSES = 40
"""Classes that a figure of the report has room for. Tables on disk always hold all of them."""


def shown_labels(images: Sequence[int]) -> list[int]:
    """Labels of the classes that a figure shows: the first that have images. images: how many, by label."""
    return [label for label, count in enumerate(images) if count][:SHOWN_CLASSES]


def rest_of_classes(shown: int, classes: int) -> str:
    """A sentence that goes on after another, where not all classes are shown; "" where they are."""
    return "" if shown == classes else f" {shown} of {classes:,} classes are shown."


def left_out(count: int, above: float) -> str:
    """How many latents were left out for a mean activation above ``above``, and how to see them; "" where none was."""
    if count == 0:
        return ""
    were = "is" if count == 1 else "are"
    return (
        f"{counted(count, 'noisy latent')} (mean activation above {number(above)}) {were} left out; "
        "--noisy-above inf leaves none out."
    )
