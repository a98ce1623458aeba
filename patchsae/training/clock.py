"""What a training loop reads off the clock: when a checkpoint is due, and how fast images go by."""

from __future__ import annotations

import time


class CheckpointClock:
    """Says when so many minutes have passed since the last checkpoint."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint was written."""
        self._saved = time.monotonic()

    @property
    def overdue(self) -> bool:
        return time.monotonic() - self._saved > self._seconds


class Speed:
    """Images a second between two lines of a log.

    images: trained on so far.
    """

    def __init__(self, images: int) -> None:
        self._then, self._images = time.monotonic(), images

    def since(self, images: int) -> float:
        """The rate since the last call, now that so many have been trained on."""
        now = time.monotonic()
        rate = (images - self._images) / max(now - self._then, 1e-9)
        self._then, self._images = now, images
        return rate
