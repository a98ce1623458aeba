"""UCF101 as CoOp keeps it: one frame per video in UCF-101-midframes/CLASS/*.jpg, the lists of ucfTrainTestlist/.

Lists have "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1" per line; folders of frames are called Apply_Eye_Makeup.
"""

from __future__ import annotations

import re
from pathlib import Path

from patchsae.data.base import DataError
from patchsae.data.listed import Listing, lines_of, listed_layout, need
from patchsae.disk.names import spoken

_FRAMES = "UCF-101-midframes"
_LISTS = "ucfTrainTestlist"


def _matches(root: Path) -> bool:
    return (root / _LISTS).is_dir() or (root / _FRAMES).is_dir()


def _read(root: Path, split: str | None) -> Listing:
    lists = need(root / _LISTS, "the lists of the videos; or split_zhou_UCF101.json in its place")
    need(root / _FRAMES, "the middle frame of every video; videos themselves are not read")
    actions = [line.split()[-1] for line in lines_of(need(lists / "classInd.txt", "the names of the classes"))]
    label = {action: position for position, action in enumerate(actions)}
    file = need(lists / f"{split}list01.txt", "a list of videos")
    paths, labels = [], []
    for number, line in enumerate(lines_of(file), 1):
        action, _, video = line.split()[0].partition("/")
        if action not in label or not video.endswith(".avi"):
            raise DataError(f"{file} line {number} is {line!r}; expected CLASS/VIDEO.avi, the class in classInd.txt")
        paths.append(f"{_FRAMES}/{_folder(action)}/{video[: -len('.avi')]}.jpg")
        labels.append(label[action])
    return Listing(file, paths, labels, [spoken(_folder(action)) for action in actions])


def _folder(action: str) -> str:
    """ "ApplyEyeMakeup" -> "Apply_Eye_Makeup"."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


LAYOUT = listed_layout(
    dataset="UCF101",
    looks_for=f"UCF101: ROOT/{_LISTS}/*.txt and ROOT/{_FRAMES}/CLASS/*.jpg",
    matches=_matches,
    splits=lambda root: ["train", "test"],
    read=_read,
)
