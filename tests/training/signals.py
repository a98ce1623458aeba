"""A dataset that stops whoever reads it."""

from __future__ import annotations

import os

import numpy as np

from patchsae.data import ImageDataset
from patchsae.data.base import Sample, Subset


class SignalsOnce(Subset):
    """The images of another dataset; sends its process a signal when an image is asked for the n-th time."""

    def __init__(self, parent: ImageDataset, signum: int, at: int) -> None:
        super().__init__(parent, np.arange(len(parent)))
        self.signum, self.at = signum, at

    def sample(self, i: int) -> Sample:
        self.at -= 1
        if self.at == 0:
            os.kill(os.getpid(), self.signum)
        return super().sample(i)
