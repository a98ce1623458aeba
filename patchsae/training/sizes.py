"""What a training takes in memory and on disk, counted from its configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patchsae import words
from patchsae.disk.claims import available_memory
from patchsae.training.config import TrainConfig

BUDGET = 256 * 2**20
"""Bytes that dense pre-activations, or the non-zeros of a chunk of tokens, may take at any time (`pk.sae_step`)."""
TOWER_COPIES = 12
"""Matrices [tokens, D] of float32 that a block of the tower holds at its peak, most of them the two of its MLP."""
TOKEN_COPIES = 4
"""The same for a step: the tokens, without b_dec, reconstructed, and the gradient by the reconstruction."""
_EXTRA = {"jumprelu": 1, "gated": 2}  # trained vectors [S] beside the encoder's bias


@dataclass(frozen=True)
class Sizes:
    """Bytes that one autoencoder takes in training."""

    parameters: int
    moments: int
    """Adam's two."""
    working: int
    """At most, while a step runs: gradients, packed encoder weights, one chunk, the tokens of a micro-batch."""

    @property
    def state(self) -> int:
        """What stays between two steps, and what a checkpoint holds."""
        return self.parameters + self.moments


def training_sizes(config: TrainConfig, width: int, tokens_per_image: int) -> Sizes:
    """The sizes for a residual stream of `width` D with `tokens_per_image` T, in one process."""
    latents = config.expansion * width
    numbers = 2 * latents * width + (1 + _EXTRA.get(config.variant, 0)) * latents + width
    tokens = -(-config.batch_size // config.accumulate) * trained_tokens(config, tokens_per_image)
    packed = 2 * latents * width
    # beside the sum of the gradients, those of the chunk or micro-batch that joins it
    released = config.variant == "relu" and config.loss == "released" and config.dead_term in ("ghost", "none")
    gradients = 4 * numbers * (1 if released and config.accumulate == 1 else 2)
    working = gradients + packed + BUDGET + 4 * TOKEN_COPIES * tokens * width
    return Sizes(4 * numbers, 8 * numbers, working)


def tower_bytes(batch_size: int, width: int, tokens_per_image: int) -> int:
    """What a pass of the tower takes beside its weights, and the tokens that it leaves, in float32."""
    return 4 * (TOWER_COPIES + 1) * batch_size * tokens_per_image * width


def window_bytes(config: TrainConfig, width: int, tokens_per_image: int) -> int:
    """The tokens that are held to be mixed, in bfloat16."""
    tokens = config.batch_size * trained_tokens(config, tokens_per_image)
    return 2 * config.shuffle * tokens * width


def trained_tokens(config: TrainConfig, tokens_per_image: int) -> int:
    """Tokens of an image that are trained on."""
    return 1 if config.cls_only else config.tokens_per_image or tokens_per_image


def free_memory(device: str) -> int:
    """Bytes that a device ("cpu", "cuda:0") can still give away."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def require_room(config: TrainConfig, width: int, device: str, shards: int = 1) -> None:
    """Raise ValueError, before anything is allocated, where the weights and moments of a training do not fit a device.

    width: D. shards: processes that share the latents.
    """
    needed, free = training_sizes(config, width, 1).state // shards, free_memory(device)
    if needed > free:
        raise ValueError(
            f"expansion is {config.expansion:,}: {config.expansion * width:,} latents of {width:,} dimensions take "
            f"{words.size(needed)} of memory with Adam's moments; {words.size(free)} are available on {device}"
        )


def cut(sizes: Sequence[int], memory: int) -> list[list[int]]:
    """Positions of `sizes` in groups whose sums fit into `memory`, in their order, as few as that order allows.

    A size that does not fit alone has a group of its own.
    """
    groups: list[list[int]] = []
    room = -1
    for position, size in enumerate(sizes):
        if size > room:
            groups.append([])
            room = memory
        groups[-1].append(position)
        room -= size
    return groups
