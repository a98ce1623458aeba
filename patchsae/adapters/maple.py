"""MaPLe: learned context in both towers of CLIP, the image's projected from the text's (Khattak et al., CVPR 2023)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from patchsae.adapters import files, official, witness
from patchsae.adapters.base import AdaptedCLIP, check_range, check_shapes
from patchsae.adapters.kinds import create
from patchsae.adapters.official import OfficialMaPLe
from patchsae.adapters.text import TextTower, class_features, class_prompts
from patchsae.models.clip import SplitCLIP
from patchsae.models.given import outside_inference_mode
from patchsae.models.prompts import check_prompts

PARTS = ("weight", "bias")
WORDS = ("a", "photo", "of", "a")
SPREAD = 0.02  # standard deviation of the first values that are not word embeddings


@dataclass(frozen=True)
class MaPLeConfig:
    """The published settings of the base-to-novel experiments."""

    n_ctx: int = 2
    """Learned tokens of a prompt, P: they replace as many words of "a photo of a"; more than 4 replace all of it."""
    depth: int = 9
    """Blocks of each tower that get context of their own; 1 is shallow."""


def load_maple(
    clip: SplitCLIP,
    path: str | Path | None,
    classnames: Sequence[str],
    n_ctx: int | None = None,
    depth: int | None = None,
    seed: int = 1,
) -> MaPLe:
    """MaPLe on a CLIP: trained, from a file, or new.

    Args:
        path: a checkpoint of the official code (``model.pth.tar-N``, or a folder with such files, of which the latest
            is taken), or what `save_adapter` wrote. None: a new one from ``seed``.
        classnames: the classes to tell apart, which need not be those of the training.
        n_ctx, depth: what is expected of the file. None takes what it holds; a new one then gets the published
            n_ctx 2 and depth 9, or as many blocks as this CLIP has.

    Raises:
        ValueError: the file holds another n_ctx or depth than asked for, does not fit this CLIP, was trained on
            another, or asks for more than tensors (`archives.UnsafeFileError`).
        FileNotFoundError: there is no such file.
    """
    if path is None:
        usual = MaPLe.default_config(clip)
        config = MaPLeConfig(usual.n_ctx if n_ctx is None else n_ctx, usual.depth if depth is None else depth)
        adapted = create("maple", clip, classnames, config, seed)
    elif files.is_ours(Path(os.path.expanduser(path))):
        adapted = files.read_adapter(clip, path, classnames)
    else:
        return _from_official(clip, official.read(path), classnames, n_ctx, depth)
    if not isinstance(adapted, MaPLe):
        raise ValueError(f"{path} holds an adapter of kind {adapted.kind!r}; expected 'maple'")
    _require_asked(path, adapted.config, n_ctx, depth)
    return adapted


class MaPLe(AdaptedCLIP):
    """See `AdaptedCLIP`. Learned, with W the width of the text tower and D that of the image tower:

    ``ctx [P, W]`` and ``compound_prompts_text.{i} [P, W]`` (in front of text block i + 1), and the linear maps
    ``proj`` and ``compound_prompt_projections.{i}``, weight ``[D, W]`` and bias ``[D]``, that make the image tower's
    prompts of them.
    """

    kind = "maple"
    config_class = MaPLeConfig
    config: MaPLeConfig

    @classmethod
    def default_config(cls, clip: SplitCLIP) -> MaPLeConfig:
        return MaPLeConfig(depth=min(MaPLeConfig.depth, _most_blocks(clip)))

    @classmethod
    def shapes(cls, clip: SplitCLIP, config: MaPLeConfig, classes: int) -> dict[str, tuple[int, ...]]:
        text = TextTower(clip)
        check_range("n_ctx", config.n_ctx, 0, text.context_length - 3, "it shares the text tower's context with names")
        check_range("depth", config.depth, 1, _most_blocks(clip), f"the towers of {clip.name!r} have no more blocks")
        shapes: dict[str, tuple[int, ...]] = {"ctx": (config.n_ctx, text.width)}
        for i in range(config.depth - 1):
            shapes[f"compound_prompts_text.{i}"] = (config.n_ctx, text.width)
        for name in _projections(config):
            shapes |= {f"{name}.weight": (clip.width, text.width), f"{name}.bias": (clip.width,)}
        return shapes

    @classmethod
    def initial(
        cls, clip: SplitCLIP, config: MaPLeConfig, classes: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The first context is the words that it replaces, later ones are noise; later projections start alike."""
        shapes = cls.shapes(clip, config, classes)
        tensors = {
            name: SPREAD * torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
            if name.startswith(("ctx", "compound_prompts_text"))
        }
        if config.n_ctx <= len(WORDS):
            ids = clip.tokenizer([" ".join(WORDS)])[0, 1 : 1 + config.n_ctx]
            tensors["ctx"] = TextTower(clip).embedding_of(ids)
        bound = 1 / math.sqrt(TextTower(clip).width)  # torch's default for a linear map
        first, later = (
            {part: bound * (2 * torch.rand(shapes[f"proj.{part}"], generator=generator) - 1) for part in PARTS}
            for _ in range(2)
        )
        for name in _projections(config):
            tensors |= {f"{name}.{part}": (first if name == "proj" else later)[part].clone() for part in PARTS}
        return tensors

    @property
    def prompt_tokens(self) -> int:
        return self.config.n_ctx

    def text_classifier(
        self,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        renormalise: bool = True,
    ) -> Tensor:
        ids = self._class_ids if classnames is None else self._ids(classnames)
        return class_features(self._text_tower, ids, self._text_prompts(), self.text_budget_mb)

    def _text_prompts(self) -> list[Tensor]:
        later = [self._learned[f"compound_prompts_text.{i}"] for i in range(self.config.depth - 1)]
        return [self._learned["ctx"], *later]

    def _vision_prompts(self) -> list[Tensor]:
        if self.config.n_ctx == 0:
            return []
        return [
            F.linear(context, self._learned[f"{name}.weight"], self._learned[f"{name}.bias"])
            for context, name in zip(self._text_prompts(), _projections(self.config), strict=True)
        ]

    @cached_property
    def _text_tower(self) -> TextTower:
        return TextTower(self.clip)

    @cached_property
    @outside_inference_mode
    def _class_ids(self) -> Tensor:
        return self._ids(self.classnames)

    def _ids(self, classnames: Sequence[str]) -> Tensor:
        check_prompts(classnames, self.templates)
        n_ctx = self.config.n_ctx
        words = " ".join(WORDS[n_ctx:])
        return class_prompts(self.clip, self._text_tower, classnames, words, n_ctx)


ADAPTER = MaPLe


def _from_official(
    clip: SplitCLIP, checkpoint: OfficialMaPLe, classnames: Sequence[str], n_ctx: int | None, depth: int | None
) -> MaPLe:
    found, text_width = MaPLeConfig(checkpoint.n_ctx, checkpoint.depth), TextTower(clip).width
    _require_asked(checkpoint.file, found, n_ctx, depth)
    if checkpoint.widths != (text_width, clip.width):
        raise ValueError(
            f"{checkpoint.file} was learned on a CLIP of text width {checkpoint.widths[0]} and image width "
            f"{checkpoint.widths[1]}; {clip.name!r} has {text_width} and {clip.width}. Load the CLIP it was learned on"
        )
    witness.require_same_clip(clip, checkpoint.clip_weights, str(checkpoint.file))
    check_shapes(checkpoint.learned, MaPLe.shapes(clip, found, len(classnames)), str(checkpoint.file))
    return MaPLe(clip, classnames, found, checkpoint.learned)


def _projections(config: MaPLeConfig) -> list[str]:
    """Names of the linear maps, in the order of the blocks that they serve."""
    return ["proj", *(f"compound_prompt_projections.{i}" for i in range(config.depth - 1))]


def _most_blocks(clip: SplitCLIP) -> int:
    """Context for blocks that one tower lacks still serves the other."""
    return max(clip.layers, TextTower(clip).layers)


def _require_asked(path: str | Path | None, found: MaPLeConfig, n_ctx: int | None, depth: int | None) -> None:
    asked = MaPLeConfig(found.n_ctx if n_ctx is None else n_ctx, found.depth if depth is None else depth)
    if asked != found:
        raise ValueError(
            f"{path} holds n_ctx={found.n_ctx} and depth={found.depth}; asked for were n_ctx={asked.n_ctx} and "
            f"depth={asked.depth}: ask for what it holds (or leave both out), or give another file"
        )
