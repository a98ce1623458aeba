"""Concept score: how well the best single latent tells which images show a concept, and where.

For every concept the latent is chosen on one half of the images (those at even positions in the dataset) by average
precision, with its threshold for masks, and judged on the other half: choosing the best of thousands on the images it
is judged on would flatter noise.

The score of a latent for an image is its largest activation over the patches (`patch_maxima`). Not the mean: a concept
may fill two patches or sixty, and a mean asks how large it is rather than whether it is there (on the shapes world with
the shipped CLIP and a SAE of 2,048 latents, over all tokens: 0.69 by the mean, 0.74 by the maximum). And not CLS: a
latent of the CLS token may know what is in the image (0.74 with it, 0.66 without) but never where, so that the average
precision and the mask would be of different latents (intersection over union 0.20 with CLS, 0.28 without).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.evaluate.average_precision import average_precision

THRESHOLDS = (0.0, *(2 ** (n / 2) for n in range(-16, 15)))
"""Activations among which a mask's threshold is chosen: 0, then half octaves from 1/256 to 128. They can be counted in
one pass, and cost little: on the shapes world the mean overlap is 0.2828 with them, 0.2831 with 200 quantiles each."""

_BUDGET_MB = 64  # of mask rows gathered at a time
_CHOSEN, _JUDGED = 0, 1  # the two halves


@dataclass(frozen=True, eq=False)
class ConceptScores:
    """Scores of V concepts on the half of the images that nothing was chosen on. NaN where a concept has none: it is in
    no image of a half, or (mask figures) nobody knows its masks."""

    names: tuple[tuple[str, str], ...]
    """(group, concept), V of them."""
    images: tuple[int, int]
    """Images of the half to choose on, and of the half to judge on."""
    base_rate: Tensor
    """float64 [V]: share of images that show the concept, which is the average precision of a coin."""
    latent: Tensor
    """int64 [V]: the best latent; -1 where there is none."""
    precision: Tensor
    """float64 [V]: its average precision over images."""
    chosen_precision: Tensor
    """float64 [V]: the same on the images that it was chosen on."""
    iou: Tensor
    """float64 [V]: its mask against the concept's: patches in both / patches in either, over all images of the half."""
    threshold: Tensor
    """float64 [V]: the mask is where the latent's activation is above this."""
    random_precision: Tensor
    """float64 [V]: average precision of a random latent (the mean over those that fired in the other half)."""
    random_iou: Tensor
    """float64 [V]: the same of its mask, with the best threshold of every latent."""

    @property
    def mean_precision(self) -> float:
        """Mean of `precision` over the concepts that have one."""
        return float(self.precision.nanmean())

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the concepts that have one."""
        return float(self.iou.nanmean())


def patch_maxima(latents: pk.SparseLatents, tokens_per_image: int) -> pk.SparseLatents:
    """Largest activation over the patches of every image, CLS left out: [B * T, S] -> [B, S], still sparse."""
    patches = latents.where(latents.rows() % tokens_per_image != 0)
    pooled = pk.pool_tokens(patches, tokens_per_image=tokens_per_image)
    size = latents.shape[1]
    keys = patches.rows() // tokens_per_image * size + patches.indices
    places = torch.searchsorted(pooled.rows() * size + pooled.indices, keys)
    return pooled.with_values(torch.zeros_like(pooled.values).scatter_reduce_(0, places, patches.values, "amax"))


class ConceptCounts:
    """What concept scores are made of, while images stream by.

    Held: the image scores, 8 bytes for every image and latent that is active in it, and the patches of every latent by
    activation and concept, 8 * S * 32 * (V + 1) bytes. All of it is exact, so merging does not depend on the order.

    Args:
        names: (group, concept), V of them.
        latents: S.
        tokens_per_image: T, CLS first.
        device: of the latents that will come.
    """

    def __init__(
        self,
        names: Sequence[tuple[str, str]],
        latents: int,
        tokens_per_image: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.names, self.latents, self.tokens_per_image = tuple(names), latents, tokens_per_image
        v = len(self.names)
        self.scores = [pk.SparseLatents.from_dense(torch.zeros(0, latents))]
        self.images = [torch.zeros(0, dtype=torch.int64)]
        self.present = [torch.zeros(0, v, dtype=torch.bool)]
        # the last column counts all patches
        self.cells = torch.zeros(2 * latents * len(THRESHOLDS), v + 1, dtype=torch.int32, device=device)
        self.patches = torch.zeros(2, v, dtype=torch.int64, device=device)

    def update(self, latents: pk.SparseLatents, images: Tensor, present: Tensor, masks: Tensor | None) -> None:
        """Take in a batch of whole images.

        latents: [B * T, S]. images: int64 [B], their positions in the dataset; even ones choose, odd ones judge.
        present: bool [B, V]. masks: bool [B, V, P], patches in raster order, or None where nobody knows them.
        """
        self.scores.append(patch_maxima(latents, self.tokens_per_image).to("cpu"))
        self.images.append(images.cpu())
        self.present.append(present.cpu())
        if masks is not None:
            self._count_patches(latents, images.to(latents.device) % 2, masks.to(latents.device))

    def merge(self, other: ConceptCounts) -> None:
        self.scores += other.scores
        self.images += other.images
        self.present += other.present
        self.cells = self.cells + other.cells
        self.patches = self.patches + other.patches

    def state_dict(self) -> dict[str, Tensor]:
        self._join()
        scores = self.scores[0]
        return {
            "values": scores.values,
            "indices": scores.indices,
            "indptr": scores.indptr,
            "images": self.images[0],
            "present": self.present[0],
            "cells": self.cells,
            "patches": self.patches,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        shape = (len(state["images"]), self.latents)
        self.scores = [pk.SparseLatents(state["values"], state["indices"], state["indptr"], shape)]
        self.images, self.present = [state["images"]], [state["present"]]
        self.cells, self.patches = (state[name].to(self.cells.device) for name in ("cells", "patches"))

    def finalize(self) -> ConceptScores:
        self._join()
        half = self.images[0] % 2
        on, judged = ((half == side).nonzero().squeeze(1) for side in (_CHOSEN, _JUDGED))
        present = self.present[0]
        shown = torch.stack([present[on].sum(0), present[judged].sum(0)])
        defined = (shown > 0).all(0)
        chosen_on, judged_on = (
            average_precision(self.scores[0].select_rows(rows), present[rows]) for rows in (on, judged)
        )
        latent = torch.where(defined, chosen_on.nan_to_num(-1).argmax(0), -1)
        fired = torch.bincount(self.scores[0].select_rows(on).indices, minlength=self.latents) > 0
        iou, threshold, random_iou = self._masks(latent, fired)
        return ConceptScores(
            names=self.names,
            images=(len(on), len(judged)),
            base_rate=_where(defined, shown[_JUDGED].double() / max(1, len(judged))),
            latent=latent,
            precision=_where(defined, _of(judged_on, latent)),
            chosen_precision=_where(defined, _of(chosen_on, latent)),
            iou=iou,
            threshold=threshold,
            random_precision=_where(defined, judged_on[fired].mean(0)),
            random_iou=random_iou,
        )

    def _count_patches(self, latents: pk.SparseLatents, half: Tensor, masks: Tensor) -> None:
        """half: int64 [B]; masks: bool [B, V, P]."""
        images, concepts, patches = masks.shape
        for side in (_CHOSEN, _JUDGED):
            self.patches[side] += masks[half == side].sum((0, 2))
        ones = masks.new_ones(images, patches, 1)
        rows = torch.cat([masks.transpose(1, 2), ones], 2).to(torch.int32)
        rows = torch.nn.functional.pad(rows, (0, 0, 1, 0)).flatten(0, 1)  # [B * T, V + 1], CLS counts nowhere
        token = latents.rows()
        level = torch.bucketize(latents.values, torch.tensor(THRESHOLDS, device=latents.device)) - 1
        cell = (half[token // self.tokens_per_image] * self.latents + latents.indices) * len(THRESHOLDS) + level
        most = max(1, (_BUDGET_MB << 20) // (4 * (concepts + 1)))
        for start in range(0, latents.nnz, most):
            part = slice(start, start + most)
            self.cells.index_add_(0, cell[part], rows[token[part]])

    def _masks(self, latent: Tensor, fired: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """iou, threshold and random_iou of :class:`ConceptScores`, float64 [V] each."""
        found = torch.full((3, len(latent)), torch.nan, dtype=torch.float64)
        cells = self.cells.view(2, self.latents, len(THRESHOLDS), -1)
        patches, fired = self.patches.cpu(), fired.to(cells.device)
        active = [_above(cells[side, :, :, -1]) for side in (_CHOSEN, _JUDGED)]
        for v in range(len(latent)):
            if latent[v] < 0 or not patches[:, v].all():
                continue
            chosen, judged = (
                _iou(_above(cells[side, :, :, v]), active[side], int(patches[side, v])) for side in (_CHOSEN, _JUDGED)
            )
            best = chosen.argmax(1, keepdim=True)
            judged = judged.gather(1, best).squeeze(1)
            found[0, v] = judged[int(latent[v])]
            found[1, v] = THRESHOLDS[int(best[int(latent[v])])]
            found[2, v] = judged[fired].mean()
        return found[0], found[1], found[2]

    def _join(self) -> None:
        """One piece of each; nothing below depends on the order of the images."""
        self.scores = [pk.SparseLatents.cat(self.scores)]
        self.images, self.present = [torch.cat(self.images)], [torch.cat(self.present)]


def _above(cells: Tensor) -> Tensor:
    """Patches per activation level [S, K] -> patches above each threshold, int64 [S, K]."""
    return cells.long().flip(1).cumsum(1).flip(1)


def _iou(inside: Tensor, active: Tensor, patches: int) -> Tensor:
    """Intersection over union, float64 [S, K], of masks with `inside` of their `active` patches among `patches`."""
    return inside.double() / (active + patches - inside)


def _of(table: Tensor, latent: Tensor) -> Tensor:
    """table[latent[v], v], float64 [V]."""
    return table.gather(0, latent.clamp_min(0)[None]).squeeze(0)


def _where(defined: Tensor, values: Tensor) -> Tensor:
    return torch.where(defined, values.double(), torch.nan)
