"""Whether a SAE does on images what its file promises: error of reconstruction, sparsity, dead latents.

A SAE that is read as something else than it was trained as seldom fails; it reconstructs badly, or hundreds of latents
are active where tens should be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.data import Batch, ImageDataset, batches, shuffled_order
from patchsae.experiments.evaluate.quality import TokenSums
from patchsae.experiments.options import StreamOptions
from patchsae.experiments.stream.fold import fold
from patchsae.models.checkpoints import understood
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

FACTOR = 2.0  # how many times the promised L0, or as small a part of it, is another SAE than was promised
MOST_TOKENS = 8192  # to calibrate on


@dataclass(frozen=True)
class Fidelity:
    """What was measured."""

    images: int
    tokens: int
    fvu: float
    """Fraction of variance unexplained: sum |x - x^|^2 / sum |x - mean|^2."""
    l0: float
    """Mean number of active latents of a token."""
    dead: float
    """Share of the latents that no token activates."""

    def complaints(self, config: SAEConfig) -> list[str]:
        """What is not as the file promises, a sentence each."""
        found = []
        if not self.fvu < 1:
            found.append(f"FVU is {self.fvu:.4g}: the mean token is a better reconstruction")
        if config.k is not None and self.l0 > config.k:
            found.append(f"L0 is {self.l0:.4g}; the file promises at most k = {config.k}")
        promised = config.metadata.get("l0")
        if isinstance(promised, int | float) and not promised / FACTOR <= self.l0 <= promised * FACTOR:
            found.append(f"L0 is {self.l0:.4g}; the file promises about {promised:.4g}")
        return found


def run(
    clip: SplitCLIP, sae: SparseAutoencoder, dataset: ImageDataset, options: StreamOptions | None = None
) -> Fidelity:
    """Measure a SAE on the tokens of images that it was trained on: all, patches or CLS.

    Raises ValueError where it reads no tokens of this tower's block, or the dataset is empty.
    """
    require_tokens(clip, sae.config)
    if len(dataset) == 0:
        raise ValueError(f"dataset {dataset.name!r} holds no images; expected at least one")
    counts = FidelityCounts(sae.config.d_in, sae.config.d_sae, clip.device)

    @torch.no_grad()
    def update(batch: Batch) -> None:
        tokens = chosen_tokens(clip.residual(batch.pixels).float(), sae.config)
        counts.update(tokens, sae)

    folded = fold(dataset, clip.preprocess, update, {"counts": counts}, options or StreamOptions(), label="sae check")
    folded.require_images(dataset)
    return counts.finalize(folded.used)


@torch.no_grad()
def some_tokens(clip: SplitCLIP, dataset: ImageDataset, config: SAEConfig) -> Tensor:
    """Up to 8,192 tokens of a kind that a SAE was trained on, ``[N, D]``, to decide what its file leaves open."""
    require_tokens(clip, config)
    found: list[Tensor] = []
    order = shuffled_order(len(dataset), 0, 0, dataset.read_groups)
    for batch in batches(dataset, clip.preprocess, 16, order):
        found.append(chosen_tokens(clip.residual(batch.pixels).float(), config))
        if sum(map(len, found)) >= MOST_TOKENS:
            break
    return torch.cat(found)[:MOST_TOKENS]


def require_tokens(clip: SplitCLIP, config: SAEConfig) -> None:
    """Raise ValueError unless a SAE reads tokens of this tower at this block."""
    understood.require_of(config, clip, cls=True)


def chosen_tokens(residual: Tensor, config: SAEConfig) -> Tensor:
    """Of tokens ``[B, T, D]``, CLS first, those that a SAE was trained on, ``[N, D]``."""
    kind = config.metadata.get("tokens", "all")
    chosen = {"patches": residual[:, 1:], "cls": residual[:, :1]}.get(str(kind), residual)
    return chosen.flatten(0, 1)


class FidelityCounts:
    """Sums of `Fidelity`, an accumulator of `fold`. Args: ``width`` D, ``latents`` S."""

    def __init__(self, width: int, latents: int, device: torch.device | str = "cpu") -> None:
        self.sums = TokenSums(width, device)
        self.fired = torch.zeros(latents, dtype=torch.int64, device=device)

    def update(self, tokens: Tensor, sae: SparseAutoencoder) -> None:
        """Take in tokens, float32 ``[N, D]``."""
        z = sae.encode(tokens)
        l1 = torch.segment_reduce(z.values.double(), "sum", offsets=z.indptr, initial=0)
        self.sums.update(tokens, sae.decode(z), l1, z.counts())
        self.fired += torch.bincount(z.indices, minlength=len(self.fired))

    def merge(self, other: FidelityCounts) -> None:
        self.sums.merge(other.sums)
        self.fired = self.fired + other.fired

    def state_dict(self) -> dict[str, Tensor]:
        return {"fired": self.fired, **self.sums.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.fired = state["fired"].to(self.fired.device)
        self.sums.load_state_dict({name: value for name, value in state.items() if name != "fired"})

    def finalize(self, images: int) -> Fidelity:
        quality = self.sums.finalize()
        dead = float((self.fired == 0).double().mean())
        return Fidelity(images, quality.tokens, quality.nmse_centred, quality.l0, dead)
