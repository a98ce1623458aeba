"""From what a command line names to the objects the experiments take: images, CLIP, SAE, earlier stages.

A run directory remembers: what a verb is not told, it takes from the stage that trained the SAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patchsae import clip_weights
from patchsae.choices import Images, Model
from patchsae.clip import SplitCLIP, load_clip
from patchsae.data import ImageDataset, limit, open_images
from patchsae.runs import Run, Stage
from patchsae.sae import SparseAutoencoder, load_sae

TRAIN = "train"
DEFAULT_IMAGES = "shapes"
DEFAULT_MODEL = "tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def finished_stage(run: Run, name: str, option: str) -> Stage:
    """A stage whose results another verb needs; FileNotFoundError says which verb makes them."""
    stage = run.stage(name)
    if not stage.finished:
        state = "is not finished" if stage.path.exists() else "does not exist"
        have = ", ".join(s.name for s in run.stages() if s.finished) or "none"
        raise FileNotFoundError(
            f"{stage.path} {state} ({option} names it); run `patchsae {name} --run {run.root}` first. "
            f"Finished stages there: {have}"
        )
    return stage


def autoencoder(run: Run, sae: str | None, device: torch.device | str) -> SparseAutoencoder:
    """The SAE that ``--sae`` names, or the one trained in this run."""
    return load_sae(finished_stage(run, TRAIN, "--sae left out").path if sae is None else sae, device)


def images(choice: Images, origin: Mapping[str, Any]) -> tuple[ImageDataset, dict[str, Any]]:
    """The dataset of a choice, and what to record of it. What is left out comes from ``origin``."""
    source = choice.images or origin.get("images") or DEFAULT_IMAGES
    inherited = origin if choice.images is None and choice.split is None else {}
    split = choice.split or inherited.get("split")
    most, seed = choice.limit or inherited.get("limit"), inherited.get("limit_seed", choice.limit_seed)
    dataset = open_images(source, split)
    if most is not None:
        dataset = limit(dataset, most, seed)
    found = {"images": _portable(source), "split": split, "limit": most, "limit_seed": seed if most else None}
    return dataset, {key: value for key, value in found.items() if value is not None}


def clip(choice: Model, origin: Mapping[str, Any]) -> SplitCLIP:
    """The CLIP of a choice; what is left out comes from ``origin``, the metadata of a SAE."""
    same = choice.model is None or choice.model == origin.get("model")
    pretrained = choice.pretrained or (origin.get("pretrained") or None if same else None)
    layer = choice.layer if choice.layer is not None else int(origin.get("layer", -2))
    return load_clip(
        choice.model or str(origin.get("model", DEFAULT_MODEL)),
        pretrained,
        layer=layer,
        device=choice.device,
        dtype=DTYPES[choice.dtype],
    )


def clip_folder(name: str) -> Path:
    """The folder of "tiny", "local-dir:PATH" or PATH."""
    return clip_weights.TINY if name == "tiny" else Path(name.removeprefix(clip_weights.LOCAL_DIR))


def position(dataset: ImageDataset, index: int) -> int:
    """An index that the user gave; ValueError outside of the dataset."""
    if not 0 <= index < len(dataset):
        raise ValueError(f"index is {index}; expected 0..{len(dataset) - 1}, the images of {dataset.name}")
    return index


def device(choice: Model) -> str:
    """ "auto" resolved."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if choice.device == "auto" else choice.device


def _portable(source: str) -> str:
    """A path is recorded whole, so that a later verb finds it from another directory."""
    return str(Path(source).resolve()) if Path(source).exists() else source
