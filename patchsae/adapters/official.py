"""Checkpoints of the official MaPLe code: ``MultiModalPromptLearner/model.pth.tar-N``, as Dassl writes them.

Such a file holds the whole CLIP beside the prompts, and pickled objects of the optimiser and its schedule. Of the CLIP
only the few weights are looked at by which it is recognised; the objects become inert stand-ins.
"""

from __future__ import annotations

import io
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae.adapters import witness
from patchsae.adapters.base import AdaptedCLIP
from patchsae.disk import archives, atomic
from patchsae.disk.checksums import verified
from patchsae.disk.tensor_files import require_float32

FOLDER = "MultiModalPromptLearner"
LEARNER = "prompt_learner."
OF_THE_CLASSES = ("token_prefix", "token_suffix")  # embeddings of the classes trained on; recomputed for those at hand
NAME = re.compile(r"model\.pth\.tar-(\d+)")
BEST = "model-best.pth.tar"


@dataclass(frozen=True, eq=False)
class OfficialMaPLe:
    """What such a checkpoint says about MaPLe.

    Attributes:
        file: the file itself.
        epoch: how many epochs were done; 0 where the file does not say.
        learned: the learned tensors in float32, without "prompt_learner." in their names.
        clip_weights: those of `witness.witnesses` that the file has.
    """

    file: Path
    epoch: int
    learned: dict[str, Tensor]
    clip_weights: dict[str, Tensor]

    @property
    def n_ctx(self) -> int:
        return self.learned["ctx"].shape[0]

    @property
    def depth(self) -> int:
        return 1 + sum(name.startswith("compound_prompts_text.") for name in self.learned)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the text tower and the image tower."""
        return self.learned["ctx"].shape[1], self.learned["proj.weight"].shape[0]


def read(path: str | Path) -> OfficialMaPLe:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Args:
        path: the file, the folder ``MultiModalPromptLearner`` or the one above it. Of several files the one with the
            most epochs is taken, and ``model-best.pth.tar`` where it is the only one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no MaPLe prompts, is damaged, or asks for something that it may not have
            (`archives.UnsafeFileError`).
    """
    file = verified(find(path))
    content = archives.load_archive(file, _stand_ins())
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        keys = str([str(key)[:40] for key in content])[:200] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{file} holds {keys}; expected 'state_dict' and 'epoch', as MaPLe's code writes them")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    learned = {
        name.removeprefix(LEARNER): _weights(file, name, value)
        for name, value in tensors.items()
        if name.startswith(LEARNER) and name.removeprefix(LEARNER) not in OF_THE_CLASSES
    }
    if not all(name in learned and learned[name].dim() == 2 for name in ("ctx", "proj.weight")):
        raise ValueError(
            f"{file}: state_dict has {str(sorted(learned)[:6])[:200]} under {LEARNER!r}; expected MaPLe's matrices "
            "'ctx', 'proj.weight', ... (class-specific contexts and other methods' prompts are not MaPLe's)"
        )
    epoch = content.get("epoch")
    encoders = {name: value for name, value in tensors.items() if name.startswith(witness.ENCODERS)}
    return OfficialMaPLe(file, epoch if type(epoch) is int else 0, learned, encoders)


def write(adapted: AdaptedCLIP, folder: str | Path, epoch: int) -> Path:
    """Write ``folder/MultiModalPromptLearner/model.pth.tar-{epoch}`` and name it in ``checkpoint`` beside it.

    It holds the learned tensors and the few weights by which its CLIP is recognised, not the whole CLIP: the official
    code reads it (it loads by name and leaves alone what a file lacks), and so does `read`.

    Raises:
        ValueError: the adapter is not MaPLe, or the epoch is negative.
    """
    if adapted.kind != "maple":
        raise ValueError(f"adapted is of kind {adapted.kind!r}; only 'maple' has an official layout")
    if epoch < 0:
        raise ValueError(f"epoch={epoch}; expected 0 or more")
    state: dict[str, Tensor] = {LEARNER + name: value for name, value in adapted.trainable().items()}
    state |= witness.witnesses(adapted.clip)
    content = {"state_dict": OrderedDict((name, _plain(value)) for name, value in state.items()), "epoch": epoch}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    file = Path(os.path.expanduser(folder)) / FOLDER / f"model.pth.tar-{epoch}"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(file, buffer.getvalue())
    atomic.write_text(file.with_name("checkpoint"), f"{file.name}\n")
    return file


def find(path: str | Path) -> Path:
    """The checkpoint file that a file, or a folder of the official code, stands for; see `read`."""
    path = Path(os.path.expanduser(path))
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a model.pth.tar-N of MaPLe, or its folder")
    folders = [folder for folder in (path, path / FOLDER) if folder.is_dir()]
    files = [file for folder in folders for file in folder.iterdir() if NAME.fullmatch(file.name)]
    files = files or [folder / BEST for folder in folders if (folder / BEST).is_file()]
    if not files:
        raise FileNotFoundError(f"{path} holds no model.pth.tar-N, nor does {path / FOLDER}")
    return max(files, key=_epoch)


def _weights(file: Path, name: str, value: Tensor) -> Tensor:
    try:
        return require_float32(name, value)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _epoch(file: Path) -> int:
    found = NAME.fullmatch(file.name)
    return int(found[1]) if found else -1


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _stand_ins() -> dict[str, Callable[..., Any]]:
    """Classes of the optimiser and its schedule, which Dassl saves as objects."""
    optimisers = ("adam.Adam", "adamw.AdamW", "rmsprop.RMSprop", "sgd.SGD")
    schedules = ("CosineAnnealingLR", "MultiStepLR", "StepLR")
    names = [f"torch.optim.{name}" for name in optimisers] + [f"torch.optim.lr_scheduler.{name}" for name in schedules]
    inert: dict[str, Callable[..., Any]] = dict.fromkeys(names, archives.Inert)
    # The optimiser's state is a defaultdict(dict); Python 2's name of dict is what protocol 2 writes.
    return {**inert, "collections.defaultdict": _dictionary, "__builtin__.dict": dict, "builtins.dict": dict}


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}
