"""Where in an image latents are active: activation grids, and the pictures they are drawn over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import patchsae_kernels as pk
from patchsae import progress
from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import AnyCLIP, preprocess_settings
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Tile
from patchsae.report import images as report_images

BATCH = 16
CLS_ALONE = "on CLS alone"


@dataclass(frozen=True, eq=False)
class Activation:
    """One latent in one image."""

    image: Image.Image
    """What the model saw: the preprocessed image turned back into RGB."""
    grid: np.ndarray
    """float32 [h, w]: activation at every patch (the CLS token left out)."""
    cls: float
    """Activation at the CLS token."""

    @property
    def on_cls_alone(self) -> bool:
        """Whether it is active here, and on no patch."""
        return self.cls > 0 and not self.grid.any()

    def overlay(self, vmax: float, size: int = 128) -> Image.Image:
        """The image with the grid over it as light; ``vmax`` is the activation drawn at full strength."""
        return report_images.overlay(self.image, self.grid, vmax, size)


@torch.no_grad()
def activations(
    clip: AnyCLIP, sae: SparseAutoencoder, dataset: ImageDataset, wanted: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], Activation]:
    """Look at latents in images again: (latent, dataset position) -> where it is active there.

    Every image is decoded and goes through the tower once, however many latents are wanted of it.
    """
    latents_of: dict[int, set[int]] = {}
    for latent, image in wanted:
        latents_of.setdefault(image, set()).add(latent)
    order = sorted(latents_of)
    found = {}
    with progress.track(len(order), "pictures", after=progress.PATIENCE) as bar:
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            pixels = torch.stack([clip.preprocess(dataset.sample(image).image) for image in some])
            encoded = encode_images(clip, sae, pixels)
            for place, image in enumerate(some):
                picture = picture_of(clip, pixels[place])
                for latent in latents_of[image]:
                    found[latent, image] = activation(clip, encoded[place], latent, picture)
            bar.advance(len(some))
    return found


@torch.no_grad()
def encode_images(clip: AnyCLIP, sae: SparseAutoencoder, pixels: Tensor) -> list[pk.SparseLatents]:
    """Latents [T, S] of every image of ``pixels`` [B, 3, H, W]; image tokens only."""
    residual = clip.residual(pixels)[:, : clip.image_tokens]
    return sae.encode(residual).reshape_tokens(len(pixels), clip.image_tokens)


def activation(clip: AnyCLIP, latents: pk.SparseLatents, latent: int, picture: Image.Image) -> Activation:
    """One latent out of the latents [T, S] of an image."""
    values = token_values(latents, latent)
    return Activation(picture, values[1:].reshape(clip.grid).numpy(), float(values[0]))


def token_values(latents: pk.SparseLatents, latent: int) -> Tensor:
    """float32 [N], on the CPU: the activation of one latent at every token."""
    only = latents.where(latents.indices == latent)
    values = torch.zeros(latents.shape[0])
    values[only.rows().cpu()] = only.values.float().cpu()
    return values


def picture_of(clip: AnyCLIP, pixels: Tensor) -> Image.Image:
    """Preprocessed pixels, float [3, H, W], as the picture that the model saw: cropped, normalisation undone."""
    config = preprocess_settings(clip)
    mean, std = (torch.tensor(config[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    scaled = (pixels.float().cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(scaled.round().to(torch.uint8).permute(1, 2, 0).numpy())


@dataclass(frozen=True, eq=False)
class Seen:
    """A latent in an image that has a name."""

    name: str
    where: Activation


def tiles_of(seen: Sequence[Seen]) -> list[Tile]:
    """Images of one latent with heatmaps for a report, drawn on one scale."""
    vmax = scale_of(seen)
    return [Tile(one.where.image, caption_of(one), one.where.overlay(vmax)) for one in seen]


def scale_of(seen: Sequence[Seen]) -> float:
    """The activation drawn at full strength in all of these images: the largest on any patch."""
    return max((float(one.where.grid.max()) for one in seen), default=0.0)


def caption_of(seen: Seen) -> str:
    """The image's name; a heatmap without light says why."""
    return f"{seen.name} ({CLS_ALONE})" if seen.where.on_cls_alone else seen.name


def reference_images(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    latents: Sequence[int],
    references: Tensor,
) -> dict[int, list[Seen]]:
    """Look at the reference images of latents again: latent -> the images, best first.

    references: int64 [len(latents), n] dataset positions, best first, -1 where there is none.
    """
    rows = {latent: [i for i in row.tolist() if i >= 0] for latent, row in zip(latents, references, strict=True)}
    found = activations(clip, sae, dataset, ((latent, image) for latent in rows for image in rows[latent]))
    return {
        latent: [Seen(name_of(dataset, image), found[latent, image]) for image in images]
        for latent, images in rows.items()
    }


def name_of(dataset: ImageDataset, image: int) -> str:
    """What to call an image in a display: its class where it has one, else its id."""
    label = int(dataset.labels[image])
    return dataset.classnames[label] if dataset.classnames is not None and label >= 0 else dataset.ids(image)
