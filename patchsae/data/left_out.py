"""What is said about images that could not be decoded."""

from __future__ import annotations

from collections.abc import Sequence

from patchsae.data.base import BadImageRecord


def inherited(on_bad_image: str) -> dict[str, str]:
    """What a training or a cache records for later stages, which shall not stop at an image that it went by."""
    return {} if on_bad_image == "stop" else {"on_bad_image": on_bad_image}


def each_once(*found: Sequence[BadImageRecord]) -> list[BadImageRecord]:
    """The images of all of them, once each."""
    return list({record.index: record for records in found for record in records}.values())


def left_out(bad: Sequence[BadImageRecord], images: int) -> list[str]:
    """Lines to print: how many of `images` were left out, then each with its reason. Empty when all were good."""
    if not bad:
        return []
    count = f"{len(bad):,} of {images:,} images could not be read and were left out:"
    return [count, *(f"  {record.id}: {record.reason}" for record in bad)]
