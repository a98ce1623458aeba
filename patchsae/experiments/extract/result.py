"""What one pass over a dataset says about every latent, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from patchsae.disk.claims import whole_number
from patchsae.disk.runs import Stage
from patchsae.experiments.extract.label_spread import label_entropy, label_std, majority_label
from patchsae.experiments.stored import require_range, require_shapes
from patchsae.experiments.stream.accumulators import TopImagesResult, TopPatchesResult

_SHAPES = {
    "sums": "float64 S",
    "counts": "int64 S",
    "image_counts": "int64 S",
    "class_counts": "int64 C S",
    "class_images": "int64 C",
    "top_images.values": "float32 S n",
    "top_images.images": "int64 S n",
    "top_labels": "int64 S n",
    "top_patches.values": "float32 S m",
    "top_patches.images": "int64 S m",
    "top_patches.tokens": "int64 S m",
}


@dataclass(frozen=True, eq=False)
class Extraction:
    """Statistics of S latents over the images of one dataset. All tensors are on the CPU."""

    images: int
    """Images seen (bad ones not counted)."""
    tokens_per_image: int
    """T, CLS included."""
    threshold: float
    """tau: a token counts for a latent when its activation is larger."""
    classnames: tuple[str, ...] | None
    """Name of every label, or None for images without labels. Names may repeat; labels do not."""
    sums: Tensor
    """float64 [S]: sum of the activations over all tokens."""
    counts: Tensor
    """int64 [S]: tokens above tau; a_D of the paper."""
    image_counts: Tensor
    """int64 [S]: images in which the latent is active at all."""
    class_counts: Tensor | None
    """int64 [C, S]: tokens above tau in the images of a class; a_c of the paper."""
    class_images: Tensor | None
    """int64 [C]: images seen of every class."""
    top_images: TopImagesResult
    """Reference images, best first."""
    top_patches: TopPatchesResult
    """Tokens with the largest activations, best first."""
    top_labels: Tensor
    """int64 [S, n]: labels of the reference images, -1 where there is none."""
    made_from: dict[str, Any]
    """CLIP, autoencoder and images that were read, as :func:`patchsae.experiments.provenance.describe_sources` has
    it; an empty one fits nothing."""

    @property
    def latents(self) -> int:
        """S."""
        return self.sums.numel()

    @cached_property
    def never_fired(self) -> Tensor:
        """bool [S]: not active on any token; every other figure of such a latent is 0 and means nothing."""
        return self.image_counts == 0

    @cached_property
    def frequency(self) -> Tensor:
        """float64 [S]: share of the images whose token mean is above 0."""
        return self.image_counts.to(torch.float64) / self.images

    @cached_property
    def mean_activation(self) -> Tensor:
        """float64 [S]: sum of the image means over the number of images in which the latent is active."""
        return self.sums / self.tokens_per_image / self.image_counts.clamp_min(1)

    @cached_property
    def entropy(self) -> tuple[Tensor, Tensor]:
        """Label entropy of the reference images in nats, float64 [S], and where it is defined, bool [S]."""
        return label_entropy(self.top_images.values, self.top_labels)

    @cached_property
    def label_std(self) -> Tensor:
        """float64 [S]: standard deviation of the reference images' label indices."""
        return label_std(self.top_labels)

    @cached_property
    def majority_label(self) -> Tensor:
        """int64 [S]: the label that carries most of the reference activations, -1 without labels."""
        return majority_label(self.top_images.values, self.top_labels)

    def noisy(self, above: float) -> Tensor:
        """bool [S]: latents whose mean activation exceeds ``above``."""
        return self.mean_activation > above

    def require_consistent(self) -> None:
        """Raise ValueError where the parts contradict one another: sizes, positions of images and tokens, labels."""
        top, patches, classes = self.top_images, self.top_patches, len(self.classnames or ())
        images = whole_number("the extraction", "images", self.images, 2**62)
        tokens = whole_number("the extraction", "tokens_per_image", self.tokens_per_image, 2**31, least=1)
        tensors = {name: getattr(self, name) for name in _SHAPES if "." not in name}
        tensors |= {f"top_images.{name}": value for name, value in top._asdict().items()}
        tensors |= {f"top_patches.{name}": value for name, value in patches._asdict().items()}
        require_shapes(tensors, _SHAPES, C=classes)
        at_most = {"top_patches.tokens": tokens - 1, "top_labels": classes - 1}
        for name, most in at_most.items():
            require_range(name, tensors[name], -1, most)
        require_range("image_counts", self.image_counts, 0, images)
        positions = self.made_from.get("dataset", {}).get("images", 2**62)  # bad images counted
        for name in ("top_images.images", "top_patches.images"):
            require_range(name, tensors[name], -1, positions - 1)

    def save(self, stage: Stage) -> None:
        """Write ``latents``, ``top`` and (with labels) ``class_counts`` as safetensors, and ``summary.json``."""
        stage.save_tensors("latents", {name: getattr(self, name) for name in ("sums", "counts", "image_counts")})
        stage.save_tensors(
            "top",
            {
                "image_values": self.top_images.values,
                "images": self.top_images.images,
                "image_labels": self.top_labels,
                "patch_values": self.top_patches.values,
                "patch_images": self.top_patches.images,
                "patch_tokens": self.top_patches.tokens,
            },
        )
        if self.class_counts is not None and self.class_images is not None:
            stage.save_tensors("class_counts", {"counts": self.class_counts, "images": self.class_images})
        stage.save_json(
            "summary",
            {
                "images": self.images,
                "tokens_per_image": self.tokens_per_image,
                "threshold": self.threshold,
                "classnames": None if self.classnames is None else list(self.classnames),
                "never_fired": int(self.never_fired.sum()),
                "made_from": self.made_from,
            },
        )

    @staticmethod
    def load(stage: Stage) -> Extraction:
        """Read what :meth:`save` wrote to the stage."""
        with stage.understanding():
            summary, latents, top = stage.load_json("summary"), stage.load_tensors("latents"), stage.load_tensors("top")
            classnames = summary["classnames"]
            classes = stage.load_tensors("class_counts") if classnames is not None else {}
            found = Extraction(
                images=summary["images"],
                tokens_per_image=summary["tokens_per_image"],
                threshold=summary["threshold"],
                classnames=None if classnames is None else tuple(classnames),
                sums=latents["sums"],
                counts=latents["counts"],
                image_counts=latents["image_counts"],
                class_counts=classes.get("counts"),
                class_images=classes.get("images"),
                top_images=TopImagesResult(top["image_values"], top["images"]),
                top_patches=TopPatchesResult(top["patch_values"], top["patch_images"], top["patch_tokens"]),
                top_labels=top["image_labels"],
                made_from=summary.get("made_from", {}),
            )
            found.require_consistent()
            return found
