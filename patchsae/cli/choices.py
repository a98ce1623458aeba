"""What every verb can be told about images and models. Imports no torch, so that help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Images:
    """Which images."""

    images: str | None = None
    """A folder of class folders, a folder of images, parquet files (a path or a quoted glob), a CoOp directory, a
    `save_to_disk` folder, or "shapes" (drawn by this package). Left out: those the SAE was trained on; where there is
    no SAE yet, "shapes"."""
    split: str | None = None
    """Split of the source, such as "train" or "test"; a slice such as "train[:80%]" or "[40000:]" takes a part."""
    limit: int | None = None
    """At most this many images, drawn evenly over the classes."""
    limit_seed: int = 0
    """Seed of that draw."""
    outside: bool = False
    """Also read images that are not below the folder of --images, where a list or a table in it names them so."""


@dataclass(frozen=True)
class _Clip:
    """Which CLIP, and at which of its blocks."""

    model: str | None = None
    """A model of open_clip ("ViT-B-16-quickgelu"), "tiny" (shipped with this package) or "local-dir:PATH". Left out:
    the one the SAE was trained on; where there is no SAE yet, "tiny"."""
    pretrained: str | None = None
    """A tag of open_clip ("openai"), a file of weights, or "random"."""
    layer: int | tuple[int, ...] | None = None
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ...; "auto" is CUDA where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the CLIP; the SAE works in float32."""


@dataclass(frozen=True)
class Model(_Clip):
    """Which CLIP."""

    layer: int | None = None
    """Block whose output is the residual stream, counted as Python counts. Left out: that of the SAE; where there is
    no SAE yet, -2, the last but one."""


@dataclass(frozen=True)
class Tower(_Clip):
    """Which CLIP, and after which of its blocks."""

    layer: tuple[int, ...] = ()
    """Blocks whose outputs are read, counted as Python counts: one pass of the tower gives all of them. Left out: -2,
    the last but one; with --cache, that of the cache."""

    @property
    def clip(self) -> Model:
        """The CLIP alone."""
        return Model(self.model, self.pretrained, None, self.device, self.dtype)

    def blocks(self, layers: int, default: int) -> list[int]:
        """The blocks of a tower with so many, 0-based, ascending, each once; `default` where none was named.

        Raises ValueError for one outside of it.
        """
        for layer in self.layer:
            if not -layers <= layer < layers:
                raise ValueError(f"layer is {layer}; the tower has {layers} blocks: expected {-layers}..{layers - 1}")
        return sorted({layer % layers for layer in self.layer or (default,)})


@dataclass(frozen=True)
class Left:
    """What the file of a SAE may leave open."""

    subtract_b_dec: bool | None = None
    """Whether the encoder sees x - b_dec, or x."""
    k: int | None = None
    """A token keeps its k largest latents."""
    threshold: float | None = None
    """A token keeps latents of at least this."""
    mean: float | None = None
    """The SAE was trained on (x - mean) / std. For a mean of each dimension: `load_sae(mean=)`, or --calibrate."""
    std: float | None = None
    """See --mean."""


@dataclass(frozen=True)
class LeftToImages(Left):
    """The same, where images may decide it."""

    calibrate: str | None = None
    """Images, as for --images, whose tokens decide what the file leaves open: the reading that reconstructs them best
    is taken, and the error and L0 of all readings are printed."""


@dataclass(frozen=True)
class FewImages:
    """Which images an adapter is trained and tested on."""

    images: str | None = None
    """A source with splits, as for every verb. Left out: the one that RUN/train was trained on, else "shapes"."""
    split: str = "train"
    """Split that the few images are drawn from."""
    test_split: str = "test"
    """Split to test on, also of the targets."""
    targets: tuple[str, ...] = ()
    """cross-dataset: other sources to test on, each with its own classes ("dtd", "pets:val", ...)."""
    test_limit: int | None = None
    """Test on at most this many images of every dataset, drawn evenly over the classes."""
    outside: bool = False
    """Also read images that are not below the folder of a dataset, where a list or a table in it names them so."""


@dataclass(frozen=True)
class Sides:
    """What the two sides of a comparison are, beside the images and the model that both begin with."""

    adapter: str | None = None
    """Adapter of the first model: a stage of `patchsae adapt`, an adapter file, or an official MaPLe checkpoint."""
    other_adapter: str | None = None
    """Adapter of the second model."""
    other_model: str | None = None
    """The second CLIP, "local-dir:PATH" for instance; left out: the first."""
    other_pretrained: str | None = None
    """Weights of the second CLIP: another checkpoint of the same architecture."""
    other_images: str | None = None
    """The second dataset; left out: the first."""
    other_split: str | None = None
    """Split of the second dataset."""
    test_images: str | None = None
    """Source of the images to classify; left out: that of --images."""
    test_split: str | None = None
    """Split of the images to classify; choose another than the one that is compared, which is the one that is ranked.
    Left out, with test_images too: none are."""
    test_limit: int | None = None
    """Classify at most this many images, drawn evenly over the classes."""
    labels: tuple[str, str] | None = None
    """What tables and pictures call the two sides; left out: CLIP and the kind of adapter, or A and B."""

    def require_two(self) -> None:
        """ValueError where nothing tells the sides apart, or images to classify are named beside a second dataset."""
        other_clip = self.other_model is not None or self.other_pretrained is not None
        other_images = self.other_images is not None or self.other_split is not None
        if not other_clip and not other_images and self.adapter == self.other_adapter:
            raise ValueError(
                "no second side: give --other-adapter, --other-model, --other-pretrained or --other-images"
            )
        if other_images and (self.test_images is not None or self.test_split is not None):
            raise ValueError(
                "--test-split and --test-images classify the same images with both models, --other-images and "
                "--other-split compare different ones: leave one of the two out"
            )
