"""LatentStats: what one pass over the latents of some images tells about every latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LatentStats:
    """Statistics per latent over whole images.

    Attributes:
        sums: float64 ``[S]``, sum of the activations over all tokens.
        counts: int64 ``[S]``, tokens with an activation above the threshold.
        image_counts: int64 ``[S]``, images with any activation above 0.
        max_values: float32 ``[S]``, largest activation; 0 for a latent that never fired.
        max_position: int64 ``[S]``, where it was: image * tokens_per_image + token; -1 for a latent that never fired.
        class_counts: int64 ``[C, S]``, tokens above the threshold per class of the image, or None without labels.
        tokens_per_image: T.
        images: images seen.
    """

    sums: Tensor
    counts: Tensor
    image_counts: Tensor
    max_values: Tensor
    max_position: Tensor
    class_counts: Tensor | None
    tokens_per_image: int
    images: int

    @staticmethod
    def empty(
        latents: int, tokens_per_image: int, num_classes: int | None = None, device: torch.device | str = "cpu"
    ) -> LatentStats:
        """Of no images at all: the start of a fold."""
        integers = torch.zeros(latents, dtype=torch.int64, device=device)
        return LatentStats(
            sums=torch.zeros(latents, dtype=torch.float64, device=device),
            counts=integers,
            image_counts=integers.clone(),
            max_values=torch.zeros(latents, dtype=torch.float32, device=device),
            max_position=torch.full_like(integers, -1),
            class_counts=None if num_classes is None else integers.new_zeros(num_classes, latents),
            tokens_per_image=tokens_per_image,
            images=0,
        )

    @property
    def tokens(self) -> int:
        """Tokens seen."""
        return self.images * self.tokens_per_image

    @property
    def max_image(self) -> Tensor:
        """int64 ``[S]``, the image of the largest activation; -1 for a latent that never fired."""
        return self.max_position.div(self.tokens_per_image, rounding_mode="floor")

    @property
    def max_token(self) -> Tensor:
        """int64 ``[S]``, the token (0 is CLS) of the largest activation; -1 for a latent that never fired."""
        return torch.where(self.max_position < 0, -1, self.max_position % self.tokens_per_image)

    def merge(self, other: LatentStats) -> LatentStats:
        """Statistics of both sets of images. Counts and maxima are exact in any order, sums to float64 rounding."""
        if (self.sums.shape, self.tokens_per_image) != (other.sums.shape, other.tokens_per_image):
            raise ValueError(
                f"other has {other.sums.shape[0]} latents and {other.tokens_per_image} tokens an image; "
                f"expected {self.sums.shape[0]} and {self.tokens_per_image}"
            )
        if (self.class_counts is None) != (other.class_counts is None):
            raise ValueError("one of the two statistics has class counts and the other has not")
        later = (other.max_values > self.max_values) | (
            (other.max_values == self.max_values) & (other.max_position < self.max_position) & (other.max_position >= 0)
        )
        both = None
        if self.class_counts is not None and other.class_counts is not None:
            both = self.class_counts + other.class_counts
        return LatentStats(
            sums=self.sums + other.sums,
            counts=self.counts + other.counts,
            image_counts=self.image_counts + other.image_counts,
            max_values=torch.where(later, other.max_values, self.max_values),
            max_position=torch.where(later, other.max_position, self.max_position),
            class_counts=both,
            tokens_per_image=self.tokens_per_image,
            images=self.images + other.images,
        )
