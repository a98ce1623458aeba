"""What the experiments collect while images stream by.

Every accumulator has ``update`` (one batch), ``merge`` (another accumulator that saw other images), ``state_dict`` and
``load_state_dict`` (tensors only, for resuming) and ``finalize``. Merging is associative and does not depend on the
order, so one process, a resumed run and several processes give the same result. None holds anything of size
images x latents.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.stream.top_table import TopTable


class TopImagesResult(NamedTuple):
    """Reference images of every latent, best first."""

    values: Tensor
    """float32 [S, n]: mean activation over the image's tokens; 0 where there is no further image."""
    images: Tensor
    """int64 [S, n]: position of the image in its dataset; -1 where there is no further image."""


class TopPatchesResult(NamedTuple):
    """Tokens with the largest activations of every latent, best first."""

    values: Tensor
    """float32 [S, n]: activation; 0 where there is no further token."""
    images: Tensor
    """int64 [S, n]: position of the image in its dataset; -1 where there is none."""
    tokens: Tensor
    """int64 [S, n]: token of that image, 0 for CLS, then the patches in raster order; -1 where there is none."""


def image_means(latents: pk.SparseLatents, tokens_per_image: int) -> pk.SparseLatents:
    """Mean activation over the tokens of every image: [B * T, S] -> [B, S], still sparse."""
    pooled = pk.pool_tokens(latents, tokens_per_image=tokens_per_image)
    return pooled.with_values(pooled.values / tokens_per_image)


class LatentStatistics:
    """Sums, counts above a threshold (per latent and per class), image counts and maxima of every latent.

    Sums are float64 and exact in a fixed order of images; after a merge they agree to float64 rounding, all else
    exactly.

    Args:
        latents: S.
        tokens_per_image: T.
        threshold: tau; a token counts for a latent when its activation is larger.
        num_classes: C, or None for images without labels (then there are no class counts).
        device: of the latents that will come.
    """

    def __init__(
        self,
        latents: int,
        tokens_per_image: int,
        threshold: float = 0.2,
        num_classes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.threshold = threshold
        self.stats = pk.LatentStats.empty(latents, tokens_per_image, num_classes, device)

    def update(self, latents: pk.SparseLatents, labels: Tensor | None = None) -> None:
        """Take in the latents [B * T, S] of a batch and, if classes are counted, its labels, int64 [B], -1 for none."""
        classes = self.stats.class_counts
        self.stats = pk.latent_stats(
            latents,
            tokens_per_image=self.stats.tokens_per_image,
            threshold=self.threshold,
            labels=None if classes is None or labels is None else labels.to(latents.device),
            num_classes=None if classes is None else len(classes),
            first_image=self.stats.images,
            previous=self.stats,
        )

    def merge(self, other: LatentStatistics) -> None:
        self.stats = self.stats.merge(other.stats)

    def state_dict(self) -> dict[str, Tensor]:
        fields = {field.name: getattr(self.stats, field.name) for field in dataclasses.fields(self.stats)}
        return {name: torch.as_tensor(value) for name, value in fields.items() if value is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        device = self.stats.sums.device
        values: dict[str, Any] = {n: int(v) if v.ndim == 0 else v.to(device) for n, v in state.items()}
        self.stats = dataclasses.replace(self.stats, **values)

    def finalize(self) -> pk.LatentStats:
        return self.stats


class TopImages:
    """The n images with the largest mean activation of every latent; ties go to the lower image index.

    Parameters: ``latents`` S, ``n`` images per latent, ``device`` of the latents that will come.
    """

    def __init__(self, latents: int, n: int, device: torch.device | str = "cpu") -> None:
        self.table = TopTable(latents, n, device)

    def update(self, means: pk.SparseLatents, index: Tensor) -> None:
        """Take in a batch: ``means`` [B, S] from :func:`image_means`, ``index`` int64 [B] dataset positions."""
        self.table.insert(means.indices, means.values, index.to(means.device)[means.rows()])

    def merge(self, other: TopImages) -> None:
        self.table.merge(other.table)

    def state_dict(self) -> dict[str, Tensor]:
        return {"keys": self.table.keys}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.keys = state["keys"].to(self.table.keys.device)

    def finalize(self) -> TopImagesResult:
        return TopImagesResult(self.table.values(), self.table.positions())


class TopPatches:
    """The n tokens with the largest activations of every latent; ties go to the lower image, then the lower token.

    Parameters: ``latents`` S, ``n`` tokens per latent, ``tokens_per_image`` T, ``device`` of the latents that will
        come.
    """

    def __init__(self, latents: int, n: int, tokens_per_image: int, device: torch.device | str = "cpu") -> None:
        self.table = TopTable(latents, n, device)
        self.tokens_per_image = tokens_per_image

    def update(self, latents: pk.SparseLatents, index: Tensor) -> None:
        """Take in a batch: ``latents`` [B * T, S], ``index`` int64 [B] dataset positions."""
        rows = latents.rows()
        image = rows // self.tokens_per_image
        token = rows - image * self.tokens_per_image
        position = index.to(latents.device)[image] * self.tokens_per_image + token
        self.table.insert(latents.indices, latents.values, position)

    def merge(self, other: TopPatches) -> None:
        self.table.merge(other.table)

    def state_dict(self) -> dict[str, Tensor]:
        return {"keys": self.table.keys}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.keys = state["keys"].to(self.table.keys.device)

    def finalize(self) -> TopPatchesResult:
        positions = self.table.positions()
        empty = positions < 0
        images = torch.where(empty, -1, positions // self.tokens_per_image)
        tokens = torch.where(empty, -1, positions % self.tokens_per_image)
        return TopPatchesResult(self.table.values(), images, tokens)
