"""From a process's images of every batch to the tokens of every step: whole images, or mixed over a window of batches.

Every slot (position within a batch) is a lane. The tokens that pass through a lane in a window of W batches are
permuted, by a permutation that seed, window and slot alone decide, and cut into W pieces, one for each batch. So a step
sees W times as many images, every token comes exactly once, the result does not depend on how many processes share the
slots, and nothing random has to be kept: a run that goes on makes its window again and leaves out what it has used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from patchsae.activations.plan import BatchPlan, StreamPlan
from patchsae.activations.source import TokenBatch

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
    wanted: StreamPlan,
    *,
    tokens: int | None,
) -> Iterator[TokenBatch]:
    """The batches of tokens from place `start` on.

    Args:
        shares: step -> the shares of that step and all later ones.
        wanted: seed, shuffle (W; 0 mixes nothing), tokens_per_image.
        tokens: T where a share has whole images, CLS first; None where it has a selection of their tokens.
    """
    step = plan.step_at(start)
    if step == plan.steps:
        return
    window, count = max(wanted.shuffle, 1), wanted.tokens_per_image
    first = step - step % window
    found = _selections(shares(first), plan, first, wanted.seed, count)
    whole = tokens is not None and count is None and wanted.shuffle == 0
    mixer = _Mixer(plan.slots, min(window, plan.steps - first), wanted.seed)
    for begin in range(first, plan.steps, window):
        members = islice(found, window)
        batches = mixer.mixed(members, begin) if wanted.shuffle else map(_unmixed, members)
        for number, (part, ids, images) in enumerate(batches, begin):
            if number >= step and (len(part) or plan.processes > 1):
                shaped = (part if whole else part.flatten(0, -2)).float()
                yield TokenBatch(shaped, ids, images, plan.begin(number + 1))


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


def _unmixed(share: Share) -> tuple[Tensor, list[str], int]:
    return share.tokens, share.ids, len(share.ids)


class _Mixer:
    """Holds the images of one window at a time, in bfloat16, each window in the memory of the one before.

    Args:
        slots: of this process.
        window: most batches in a window.
    """

    def __init__(self, slots: range, window: int, seed: int) -> None:
        self._slots, self._window, self._seed = slots, window, seed
        self._memory: Tensor | None = None

    def mixed(self, shares: Iterable[Share], first: int) -> Iterator[tuple[Tensor, list[str], int]]:
        """Of each batch of the window that begins with step `first`: tokens [N, D], the images that they may be from,
        and how many images it counts for.
        """
        lanes: dict[int, list[int]] = {slot: [] for slot in self._slots}
        ids: list[str] = []
        counts: list[int] = []
        for share in shares:
            memory = self._of_images_like(share.tokens)
            memory[len(ids) : len(ids) + len(share.ids)] = share.tokens
            for image, slot in enumerate(share.slots, len(ids)):
                lanes[slot].append(image)
            ids += share.ids
            counts.append(len(share.ids))
        length, tokens = memory.shape[1], memory.flatten(0, 1)
        lane_rows = [_permuted(images, length, (self._seed, first, slot)) for slot, images in lanes.items()]
        pieces = [np.array_split(rows, len(counts)) for rows in lane_rows]
        for number, count in enumerate(counts):
            rows = torch.from_numpy(np.concatenate([lane[number] for lane in pieces])).to(tokens.device)
            yield tokens.index_select(0, rows), ids, count

    def _of_images_like(self, tokens: Tensor) -> Tensor:
        """[window * slots, T, D]; made once."""
        if self._memory is None:
            images = self._window * len(self._slots)
            self._memory = tokens.new_empty(images, *tokens.shape[1:], dtype=torch.bfloat16)
        return self._memory


def _permuted(images: list[int], length: int, key: tuple[int, int, int]) -> np.ndarray:
    """The rows of a lane's images in the tokens of the window, permuted: int64 [len(images) * length]."""
    rows = (np.asarray(images, np.int64)[:, None] * length + np.arange(length)).ravel()
    seed, first, slot = key
    return np.random.default_rng([seed, _LANE, first, slot]).permutation(rows)
