"""Per pair of images: the top latents of each, how far the activations moved, and whether each was classified well."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.stream.top_table import TopTable


class Pairs(NamedTuple):
    """M pairs of images; index 0 of dimension 1 is side A, 1 is side B."""

    positions: Tensor
    """int64 [M, 2]: positions in the datasets of the sides."""
    labels: Tensor
    """int64 [M]: label of both, -1 for none."""
    top: Tensor
    """int64 [M, 2, top]: latents by mean activation over the image's tokens, best first; -1 where fewer are active."""
    shift: Tensor
    """float64 [M]: sum |b - a| / sum (a + b) over all latents, a and b the mean activations; 0 is the same, 1
    disjoint."""
    correct: Tensor
    """bool [M, 2]: classified correctly; False where there is no label."""


class PairTable:
    """Collects :class:`Pairs`, about 200 bytes a pair.

    Parameters: ``top`` latents kept per image.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        nothing = torch.zeros(0, 2, dtype=torch.int64)
        self.parts = [
            Pairs(
                nothing,
                nothing[:, 0],
                nothing.new_zeros(0, 2, top),
                nothing[:, 0].to(torch.float64),
                nothing.to(torch.bool),
            )
        ]

    def update(
        self,
        means: tuple[pk.SparseLatents, pk.SparseLatents],
        index: tuple[Tensor, Tensor],
        labels: Tensor,
        correct: tuple[Tensor, Tensor],
    ) -> None:
        """Take in B pairs: mean activations [B, S], dataset positions int64 [B], labels int64 [B], correct bool [B]."""
        tops = torch.stack([top_latents(side, self.top) for side in means], dim=1)
        part = Pairs(torch.stack(index, dim=1), labels, tops, shift(*means), torch.stack(correct, dim=1))
        self.parts.append(Pairs(*(tensor.cpu() for tensor in part)))

    def merge(self, other: PairTable) -> None:
        self.parts.extend(other.parts)

    def state_dict(self) -> dict[str, Tensor]:
        return self._joined()._asdict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.parts = [Pairs(**state)]

    def finalize(self) -> Pairs:
        """All pairs, ordered by their positions in the datasets."""
        joined = self._joined()
        order = joined.positions[:, 1].argsort(stable=True)
        order = order[joined.positions[order, 0].argsort(stable=True)]
        return Pairs(*(tensor[order] for tensor in joined))

    def _joined(self) -> Pairs:
        joined = Pairs(*(torch.cat(column) for column in zip(*self.parts, strict=True)))
        self.parts = [joined]
        return joined


def top_latents(means: pk.SparseLatents, n: int) -> Tensor:
    """int64 [B, n]: latents of every row of [B, S] by value, ties to the lower latent; -1 where fewer are active."""
    table = TopTable(means.shape[0], n, means.device)
    table.insert(means.rows(), means.values, means.indices.to(torch.int64))
    return table.positions()


def shift(first: pk.SparseLatents, second: pk.SparseLatents) -> Tensor:
    """float64 [B]: sum |b - a| / sum (a + b) of every row of two [B, S]; 0 where nothing is active in either."""
    latents = first.shape[1]
    keys = torch.cat([side.rows() * latents + side.indices for side in (first, second)])
    signed = torch.cat([first.values.double(), -second.values.double()])
    entries, place = keys.unique(return_inverse=True)
    moved = signed.new_zeros(len(entries)).index_add_(0, place, signed).abs()
    zeros = signed.new_zeros(first.shape[0])
    total = zeros.index_add(0, keys // latents, signed.abs())
    return zeros.index_add(0, entries // latents, moved) / total.masked_fill(total == 0, 1)


class Overlap(NamedTuple):
    """Which of two lists of latents are in both; bool [M, top] each, False for the fillers (-1)."""

    shared: Tensor
    """Entries of the first list that are in the second too."""
    only_first: Tensor
    only_second: Tensor


def overlap(first: Tensor, second: Tensor) -> Overlap:
    """Compare two lists of latents, int64 [M, top], row by row; -1 is a filler."""
    same = first[:, :, None] == second[:, None, :]
    in_second, in_first = same.any(dim=2), same.any(dim=1)
    return Overlap((first >= 0) & in_second, (first >= 0) & ~in_second, (second >= 0) & ~in_first)


def listed(latents: Tensor, chosen: Tensor) -> list[str]:
    """The chosen latents of every row, separated by spaces: int64 and bool [M, top] -> M texts."""
    return [
        " ".join(str(latent) for latent, keep in zip(row, mask, strict=True) if keep)
        for row, mask in zip(latents.tolist(), chosen.tolist(), strict=True)
    ]
