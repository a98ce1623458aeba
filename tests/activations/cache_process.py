"""Writes a cache in a process of its own, which the tests kill, or for which the disk becomes full."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np

from patchsae.activations import CacheOptions, write_cache
from patchsae.data import ImageDataset, open_images
from patchsae.data.base import Sample, Subset
from patchsae.errors import PatchsaeError
from patchsae.interrupt import Interrupted
from patchsae.models.clip import load_clip


class NoRoomAfter(Subset):
    """A dataset after so many images of which the system writes no file of more than a kilobyte."""

    def __init__(self, parent: ImageDataset, images: int) -> None:
        super().__init__(parent, np.arange(len(parent)))
        self.left = images

    def sample(self, i: int) -> Sample:
        self.left -= 1
        if self.left == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        return super().sample(i)


def write(clip_folder: Path, source: str, out: Path, room: int = 0) -> None:
    """Ends the process as the command line would; after `room` images, where given, the disk is full."""
    images = open_images(source)
    shard = 8 * 5 * 32  # bytes of 8 images
    try:
        write_cache(
            load_clip(f"local-dir:{clip_folder}", device="cpu"),
            NoRoomAfter(images, room) if room else images,
            out,
            CacheOptions(batch_size=4, shard_mb=shard / 1e6),
        )
    except (Interrupted, PatchsaeError) as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.code if isinstance(stopped, Interrupted) else 2) from None
