"""What several experiments can be told. Imports no torch, so that the command line can show it at once.

A verb's own options are in its folder, and flat: a dataclass that inherits those it shares with others, since options,
presets and the settings in a run have names without a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patchsae.errors import require


class Options:
    """What a verb is told: each class that it inherits checks its own values, and passes on to the next."""

    def __post_init__(self) -> None:
        """The end of the line."""


@dataclass(frozen=True)
class StreamOptions(Options):
    """How images stream by."""

    batch_size: int = 32
    """Images that go through the tower together."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    on_bad_image: Literal["stop", "skip"] | None = None
    """`stop` names the first image that cannot be decoded; `skip` leaves such images out, counts and reports them. Left
    out: as the SAE's training did with these images, else `stop`."""
    save_minutes: float = 1.0
    """Minutes after which the state is saved, so that a killed run loses no more than that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 1, "batch_size", self.batch_size, "an integer of at least 1")
        require(self.workers >= 0, "workers", self.workers, "an integer of at least 0")
        require(self.on_bad_image in ("stop", "skip", None), "on_bad_image", self.on_bad_image, "stop or skip")
        require(self.save_minutes >= 0, "save_minutes", self.save_minutes, "a number of at least 0")


@dataclass(frozen=True)
class DisplayOptions(Options):
    """What of the latents a report shows. Tables and tensors always hold all of them."""

    noisy_above: float = 0.1
    """Latents whose mean activation over the dataset exceeds this are left out of displays, which say how many; inf
    leaves none out."""
    show_latents: int = 12
    """Latents in the report's gallery."""
    show_images: int = 5
    """Reference images shown of every latent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noisy_above >= 0, "noisy_above", self.noisy_above, "a number of at least 0")
        require(self.show_latents >= 0, "show_latents", self.show_latents, "an integer of at least 0")
        require(self.show_images >= 1, "show_images", self.show_images, "an integer of at least 1")


@dataclass(frozen=True)
class PromptOptions(Options):
    """How class names become a zero-shot classifier. Learned prompts of an adapted model take their place."""

    templates: tuple[str, ...] = ()
    """Prompts with "{}" for the class name, or names: "imagenet" for OpenAI's 80, a dataset ("oxfordpets", "dtd", ...)
    for the prompt of its adaptation experiments. Empty means "imagenet"."""
    renormalise: bool = True
    """Whether the mean of a class's prompt embeddings is scaled back to unit norm (open_clip does, the released code
    does not)."""


@dataclass(frozen=True)
class GroupOptions(Options):
    """Whether base and novel classes are told apart."""

    groups: Literal["none", "base-novel"] = "none"
    """`base-novel`: the first half of the classes (rounded up) and the rest are reported apart, and an image is
    classified among the classes of its own half, as base-to-novel accuracies are published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.groups in ("none", "base-novel"), "groups", self.groups, "none or base-novel")
