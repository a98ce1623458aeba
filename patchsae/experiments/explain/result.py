"""The top latents of an image, and what is known of latents from images read before."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.data import ImageDataset
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.pictures import Activation


@dataclass(frozen=True, eq=False)
class Explained:
    """The top latents of one image, best first."""

    name: str
    latents: tuple[int, ...]
    values: tuple[float, ...]
    """Mean activation over the image's tokens, or the activation at the chosen patch."""
    activations: tuple[Activation, ...]
    """Where each latent is active in the image."""
    noisy: int
    """Active latents that were left out, as `ExplainOptions.noisy_above` asks."""


@dataclass(frozen=True, eq=False)
class References:
    """What an extract stage knows of the latents, and the images that its positions refer to."""

    extraction: Extraction
    dataset: ImageDataset
