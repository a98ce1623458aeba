"""From a process's images of every batch to the tokens of every step: whole images, or mixed over a window of batches.

Every slot (position within a batch) is a lane. The tokens that pass through a lane in a window of W batches are
permuted, by a permutation that seed, window and slot alone decide, and cut into W pieces, one for each batch. So a step
sees W times as many images, every token comes exactly once, the result does not depend on how many processes share the
slots, and nothing random has to be kept: a run that goes on makes its window again and leaves out what it has used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patchsae.activations.plan import BatchPlan
from patchsae.activations.source import TokenBatch

if TYPE_CHECKING:
    from patchsae.training.config import TrainConfig

_LANE, _SUBSET = 0x6C616E65, 0x73756273  # keep the draws for different purposes apart


@dataclass(frozen=True, eq=False)
class Share:
    """A process's images of one batch."""

    tokens: Tensor
    """[b, T, D] of the images that could be decoded."""
    slots: list[int]
    """[b], ascending: their positions in the batch."""
    ids: list[str]
    """[b]."""


def token_batches(
    shares: Callable[[int], Iterator[Share]],
    plan: BatchPlan,
    start: int,
    config: TrainConfig,
    *,
    tokens: int | None,
) -> Iterator[TokenBatch]:
    """The batches of tokens from place `start` on.

    Args:
        shares: step -> the shares of that step and all later ones.
        config: seed, shuffle (W; 0 mixes nothing), tokens_per_image.
        tokens: T where a share has whole images, CLS first; None where it has a selection of their tokens.
    """
    step = plan.step_at(start)
    if step == plan.steps:
        return
    window, count = max(config.shuffle, 1), config.tokens_per_image
    first = step - step % window
    found = _selections(shares(first), plan, first, config.seed, count)
    if config.shuffle:
        found = map(_rounded, found)
    whole = tokens is not None and count is None and config.shuffle == 0
    for begin in range(first, plan.steps, window):
        members = list(islice(found, window))
        batches = _mixed(members, plan.slots, config.seed, begin) if config.shuffle else map(_unmixed, members)
        for number, (mixed, ids) in enumerate(batches, begin):
            if number >= step and (len(mixed) or plan.processes > 1):
                shaped = (mixed if whole else mixed.flatten(0, -2)).float()
                yield TokenBatch(shaped, ids, len(members[number - begin].ids), plan.begin(number + 1))


def chosen_tokens(tokens: int, count: int, seed: int, place: int) -> np.ndarray:
    """`count` of the positions 0 .. tokens - 1, ascending, int64: decided by the seed and the image's place alone."""
    return np.sort(np.random.default_rng([seed, _SUBSET, place]).permutation(tokens)[:count])


def take_tokens(tokens: Tensor, places: Sequence[int], count: int, seed: int) -> Tensor:
    """[b, T, D] -> [b, count, D]: of the image at each of `places` [b] the `chosen_tokens`."""
    if not 1 <= count <= tokens.shape[1]:
        raise ValueError(f"tokens_per_image is {count}; expected 1 .. {tokens.shape[1]}, the tokens of an image")
    if len(tokens) == 0:
        return tokens[:, :count]
    chosen = np.stack([chosen_tokens(tokens.shape[1], count, seed, place) for place in places])
    image = torch.arange(len(tokens), device=tokens.device)[:, None]
    return tokens[image, torch.from_numpy(chosen).to(tokens.device)]


def _selections(shares: Iterator[Share], plan: BatchPlan, first: int, seed: int, count: int | None) -> Iterator[Share]:
    """The shares from step `first` on with `count` tokens of each image."""
    for step, share in enumerate(shares, first):
        if count is None:
            yield share
        else:
            places = [plan.begin(step) + slot for slot in share.slots]
            yield Share(take_tokens(share.tokens, places, count, seed), share.slots, share.ids)


def _rounded(share: Share) -> Share:
    """In bfloat16, as a window is W batches of memory."""
    return Share(share.tokens.to(torch.bfloat16), share.slots, share.ids)


def _unmixed(share: Share) -> tuple[Tensor, list[str]]:
    return share.tokens, share.ids


def _mixed(shares: list[Share], slots: range, seed: int, first: int) -> Iterator[tuple[Tensor, list[str]]]:
    """The tokens [N, D] of each batch of the window that begins with step `first`, and the images they may be from."""
    tokens = torch.cat([share.tokens.flatten(0, 1) for share in shares])
    ids = [id for share in shares for id in share.ids]
    length = shares[0].tokens.shape[1]
    images: dict[int, list[int]] = {slot: [] for slot in slots}
    for image, slot in enumerate(slot for share in shares for slot in share.slots):
        images[slot].append(image)
    lanes = [np.array_split(_permuted(images[slot], length, (seed, first, slot)), len(shares)) for slot in slots]
    for pieces in zip(*lanes, strict=True):
        rows = torch.from_numpy(np.concatenate(pieces)).to(tokens.device)
        yield tokens.index_select(0, rows), ids


def _permuted(images: list[int], length: int, key: tuple[int, int, int]) -> np.ndarray:
    """The rows of a lane's images in the tokens of the window, permuted: int64 [len(images) * length]."""
    rows = (np.asarray(images, np.int64)[:, None] * length + np.arange(length)).ravel()
    seed, first, slot = key
    return np.random.default_rng([seed, _LANE, first, slot]).permutation(rows)
