"""Zero-shot accuracy of a small CLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from torch import Tensor

from patchsae.data.base import ImageDataset
from patchsae.data.loader import batches
from patchsae.data.shapes import FACTORS, ShapesWorld
from patchsae.disk.atomic import write_text
from patchsae.tinyclip.model import load_model, preprocess

TEMPLATES = ("a photo of a {}.",)

PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "a photo of a {}.": TEMPLATES,
        "{}": ("{}",),
        "the 80 of ImageNet": tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
    }
)
"""Sets of templates under which `measure_shapes` asks."""


def evaluate_zero_shot(
    model: Path | str | CLIP,
    dataset: ImageDataset,
    templates: Sequence[str] = TEMPLATES,
    batch_size: int = 256,
    workers: int = 0,
) -> dict[str, float]:
    """Share of the images whose nearest class text is their own: {label: accuracy}.

    Of the shapes world every factor is a label, all read from one pass over the images; of other datasets "class"
    is. The text of a class is the mean of its templates' unit embeddings. The model is a local-dir checkpoint or an
    open_clip CLIP.
    """
    clip = model if isinstance(model, CLIP) else load_model(model)[0]
    clip = clip.eval()
    questions = _questions(dataset)
    classifiers = {label: _classifier(clip, names, templates) for label, (names, _) in questions.items()}
    right = dict.fromkeys(questions, 0)
    for batch in batches(dataset, preprocess(clip), batch_size, workers=workers):
        with torch.inference_mode():
            images = clip.encode_image(batch.pixels, normalize=True)
        for label, (_, truth) in questions.items():
            answer = (images @ classifiers[label].T).argmax(1).numpy()
            right[label] += int((answer == truth[batch.index.numpy()]).sum())
    return {label: count / max(1, len(dataset)) for label, count in right.items()}


def measure_shapes(directory: Path | str, images: int = 2000, seed: int = 0, workers: int = 0) -> dict[str, Any]:
    """Zero-shot accuracy of a checkpoint on held-out combinations, by prompt; written to `directory`/zero_shot.json.

    Returns what is written: {"dataset", "images", "chance": {factor: share}, "accuracy": {prompts: {factor: share}}}.
    """
    world = ShapesWorld("test", n=images, seed=seed)
    model = load_model(directory)[0]
    accuracy = {
        prompts: evaluate_zero_shot(model, world, templates, workers=workers) for prompts, templates in PROMPTS.items()
    }
    chance = {factor: 1 / len(values) for factor, values in FACTORS.items()}
    figures = {"dataset": world.name, "images": images, "chance": chance, "accuracy": accuracy}
    write_text(Path(directory) / "zero_shot.json", json.dumps(figures, indent=2) + "\n")
    return figures


def _questions(dataset: ImageDataset) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    if isinstance(dataset, ShapesWorld):
        return {factor: (values, dataset.factor_labels(factor)) for factor, values in FACTORS.items()}
    return {"class": (dataset.classnames or [], dataset.labels)}


@torch.inference_mode()
def _classifier(clip: CLIP, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit text embeddings [C, E]."""
    tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
    texts = tokenizer([template.format(name) for name in names for template in templates])
    mean: Tensor = clip.encode_text(texts, normalize=True).unflatten(0, (len(names), len(templates))).mean(1)
    length: Tensor = mean.norm(dim=-1, keepdim=True)
    return mean / length
