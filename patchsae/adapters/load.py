"""From any file of an adapter to an adapted CLIP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from patchsae.adapters import files, maple, official
from patchsae.adapters.base import AdaptedCLIP
from patchsae.disk.contents import unexpected, what_is
from patchsae.models.clip import SplitCLIP


def load_adapter(clip: SplitCLIP, path: str | Path, classnames: Sequence[str] | None = None) -> AdaptedCLIP:
    """Read an adapter onto a CLIP.

    Args:
        path: what `save_adapter` wrote (file or folder), or a checkpoint of the official MaPLe code.
        classnames: classes to tell apart; None: those that it was saved with.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is damaged, of another version, does not fit this CLIP or was learned on another, or no
            classes are given for an official checkpoint; a linear probe is given other classes than its own.
    """
    if files.is_ours(Path(os.path.expanduser(path))):
        return files.read_adapter(clip, path, classnames)
    if classnames is None:
        checkpoint = official.find(path)
        if what_is(checkpoint).kind != "torch":
            raise unexpected(checkpoint, "what save_adapter wrote, or a checkpoint of MaPLe's code")
        raise ValueError(f"{path} is an official MaPLe checkpoint, which names no classes; give classnames")
    return maple.load_maple(clip, path, classnames)
