"""A CLIP as it is, or adapted: what the experiments take, and the little they must know to tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from patchsae.adapters.base import AdaptedCLIP
from patchsae.data import ImageDataset
from patchsae.experiments.options import PromptOptions
from patchsae.models import prompts
from patchsae.models.checkpoints.understood import require_readable
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder

AnyCLIP: TypeAlias = SplitCLIP | AdaptedCLIP

_LEARNED_CLASSIFIERS = {"maple": "learned prompts", "coop": "learned prompts", "linear": "a learned classifier"}


def kind_of(model: AnyCLIP) -> str | None:
    """The kind of adapter, or None for a CLIP as it is."""
    return model.kind if isinstance(model, AdaptedCLIP) else None


def preprocess_settings(model: AnyCLIP) -> Mapping[str, Any]:
    """open_clip's settings of the image transform: "mean", "std", "size", ..."""
    frozen = model.clip if isinstance(model, AdaptedCLIP) else model
    settings: Mapping[str, Any] = frozen.model.visual.preprocess_cfg
    return settings


def prompts_in_words(model: AnyCLIP, options: PromptOptions) -> str:
    """What a model's classifier is made of, for a report."""
    learned = _LEARNED_CLASSIFIERS.get(kind_of(model) or "")
    if learned:
        return learned
    if not options.templates:
        return "OpenAI's 80 ImageNet templates"
    templates = prompts.resolve(options.templates)
    return f"the template {templates[0]!r}" if len(templates) == 1 else f"{len(templates)} templates"


def require_fit(clip: AnyCLIP, sae: SparseAutoencoder, dataset: ImageDataset) -> None:
    """ValueError unless the autoencoder reads every token of this model's residual stream and there are images."""
    require_readable(sae.config, clip)
    if len(dataset) == 0:
        raise ValueError(f"dataset {dataset.name!r} holds no images; expected at least one")
