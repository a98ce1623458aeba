"""What every experiment can be told. Imports no torch, so that the command line can show it at once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal

KS = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)
RANKINGS = ("class", "dataset", "random")
MAY_DIFFER = ("workers", "on_bad_image", "save_minutes")
"""Settings that do not decide a result, so that a resumed run may change them (`Stage.begin`)."""


@dataclass(frozen=True)
class StreamOptions:
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
        require(self.batch_size >= 1, "batch_size", self.batch_size, "an integer of at least 1")
        require(self.workers >= 0, "workers", self.workers, "an integer of at least 0")
        require(self.on_bad_image in ("stop", "skip", None), "on_bad_image", self.on_bad_image, "stop or skip")
        require(self.save_minutes >= 0, "save_minutes", self.save_minutes, "a number of at least 0")


@dataclass(frozen=True)
class DisplayOptions:
    """What of the latents a report shows. Tables and tensors always hold all of them."""

    noisy_above: float = 0.1
    """Latents whose mean activation over the dataset exceeds this are left out of displays, which say how many; inf
    leaves none out."""
    show_latents: int = 12
    """Latents in the report's gallery."""
    show_images: int = 5
    """Reference images shown of every latent."""

    def __post_init__(self) -> None:
        require(self.noisy_above >= 0, "noisy_above", self.noisy_above, "a number of at least 0")
        require(self.show_latents >= 0, "show_latents", self.show_latents, "an integer of at least 0")
        require(self.show_images >= 1, "show_images", self.show_images, "an integer of at least 1")


@dataclass(frozen=True)
class PromptOptions:
    """How class names become a zero-shot classifier. Learned prompts of an adapted model take their place."""

    templates: tuple[str, ...] = ()
    """Prompts with "{}" for the class name, or names: "imagenet" for OpenAI's 80, a dataset ("oxfordpets", "dtd", ...)
    for the prompt of its adaptation experiments. Empty means "imagenet"."""
    renormalise: bool = True
    """Whether the mean of a class's prompt embeddings is scaled back to unit norm (open_clip does, the released code
    does not)."""


@dataclass(frozen=True)
class ExtractOptions(StreamOptions, DisplayOptions):
    """`patchsae extract`: read the latents in one pass over a dataset."""

    threshold: float = 0.2
    """tau: a token counts for a latent when its activation is larger."""
    top: int = 10
    """Reference images and top patches kept of every latent."""

    def __post_init__(self) -> None:
        StreamOptions.__post_init__(self)
        DisplayOptions.__post_init__(self)
        require(self.threshold >= 0, "threshold", self.threshold, "a number of at least 0")
        require(self.top >= 1, "top", self.top, "an integer of at least 1")


@dataclass(frozen=True)
class EvaluateOptions(PromptOptions, StreamOptions):
    """`patchsae evaluate`: how good an autoencoder is on images."""

    batch_size: int = 128
    """Images that go through the tower together, and that the contrastive loss tells apart (released: 128)."""
    dense_above: float = 0.1
    """A latent that is active on more than this share of the tokens is dense."""
    seed: int = 0
    """Seed of the order of the images, which decides which images share a batch."""

    def __post_init__(self) -> None:
        StreamOptions.__post_init__(self)
        require(0 <= self.dense_above <= 1, "dense_above", self.dense_above, "a share from 0 to 1")
        require(self.seed >= 0, "seed", self.seed, "an integer of at least 0")


@dataclass(frozen=True)
class ClassesOptions:
    """`patchsae classes`: order the latents by class, by dataset and at random."""

    top: int = 10
    """Latents of every class in the table."""
    seed: int = 0
    """Seed of the random ordering."""
    common_top: int = 20
    """With `common_classes`: how far down a class's ranking a latent counts as found."""
    common_classes: int = 0
    """Latents found in more classes than this go to the end of every class ranking (the authors' later library: 500 of
    ImageNet's 1000); 0 leaves the rankings as they are."""

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "an integer of at least 1")
        require(self.seed >= 0, "seed", self.seed, "an integer of at least 0")
        require(self.common_top >= 1, "common_top", self.common_top, "an integer of at least 1")
        require(self.common_classes >= 0, "common_classes", self.common_classes, "an integer of at least 0")


@dataclass(frozen=True)
class SweepOptions:
    """Which masks a top-k sweep applies, and to what."""

    ks: tuple[int, ...] = KS
    """Numbers of latents; those above S are dropped and S is always added."""
    keep_prompt_tokens: bool = False
    """Leave a prompted model's prompt tokens as they are; otherwise they are replaced like the image's, as in the
    paper."""
    budget_mb: int = 512
    """Bound on the reconstructions held at a time, and once more on what embedding them takes beside them, in MB."""
    bias_offset: float = 0.0
    """Added to every element of every reconstruction. The released code adds 0.105131256516992, left over from one
    checkpoint."""

    def __post_init__(self) -> None:
        require(all(k >= 1 for k in self.ks), "ks", self.ks, "numbers of at least 1")
        require(self.budget_mb >= 1, "budget_mb", self.budget_mb, "an integer of at least 1")


@dataclass(frozen=True)
class MaskOptions(SweepOptions, PromptOptions, StreamOptions):
    """`patchsae mask`: classify with only the first k latents of a ranking kept, or with those ablated."""

    rankings: tuple[str, ...] = RANKINGS
    """Rankings to sweep, of those that `patchsae classes` made."""

    def __post_init__(self) -> None:
        StreamOptions.__post_init__(self)
        SweepOptions.__post_init__(self)
        require(len(self.rankings) >= 1, "rankings", self.rankings, "at least one name")


@dataclass(frozen=True)
class GroupOptions:
    """Whether base and novel classes are told apart."""

    groups: Literal["none", "base-novel"] = "none"
    """`base-novel`: the first half of the classes (rounded up) and the rest are reported apart, and an image is
    classified among the classes of its own half, as base-to-novel accuracies are published."""

    def __post_init__(self) -> None:
        require(self.groups in ("none", "base-novel"), "groups", self.groups, "none or base-novel")


@dataclass(frozen=True)
class CompareOptions(GroupOptions, PromptOptions, StreamOptions, DisplayOptions):
    """`patchsae compare`: two models, or two datasets, through one SAE."""

    threshold: float = 0.2
    """tau: a token counts for a latent when its activation is larger."""
    top: int = 10
    """Latents of an image or a class that are compared, and reference images kept of every latent."""
    high: int = 50
    """A latent is high in a class when it is among so many of the class's most frequent ones."""
    low: int = 100
    """A latent is low in a class when it is not among so many of the class's most frequent ones."""

    def __post_init__(self) -> None:
        GroupOptions.__post_init__(self)
        StreamOptions.__post_init__(self)
        DisplayOptions.__post_init__(self)
        require(self.threshold >= 0, "threshold", self.threshold, "a number of at least 0")
        require(self.top >= 1, "top", self.top, "an integer of at least 1")
        require(self.high >= 1, "high", self.high, "an integer of at least 1")
        require(self.low >= self.high, "low", self.low, f"an integer of at least high = {self.high}")


@dataclass(frozen=True)
class CrossOptions(GroupOptions, SweepOptions, PromptOptions, StreamOptions):
    """The masking half of `patchsae compare`: rankings of both sides applied in the models of both."""

    sweep: bool = True
    """Whether masks are swept; without, the models are classified as they are and reconstructed."""

    def __post_init__(self) -> None:
        GroupOptions.__post_init__(self)
        SweepOptions.__post_init__(self)
        StreamOptions.__post_init__(self)


@dataclass(frozen=True)
class CellOptions(CompareOptions):
    """A cell of `patchsae table`: a comparison that tells base and novel classes apart, unless told otherwise."""

    groups: Literal["none", "base-novel"] = "base-novel"
    """`base-novel`: the first half of the classes (rounded up) and the rest are reported apart, and an image is
    classified among the classes of its own half, as base-to-novel accuracies are published."""


def cross_options(compare: CompareOptions, sweep: SweepOptions, *, swept: bool = True) -> CrossOptions:
    """The settings of the masking half of a comparison: what both halves share comes from the first."""
    shared = {name: value for options in (compare, sweep) for name, value in asdict(options).items()}
    wanted = {field.name for field in fields(CrossOptions)} - {"sweep"}
    return CrossOptions(sweep=swept, **{name: shared[name] for name in wanted})


@dataclass(frozen=True)
class ExplainOptions(DisplayOptions):
    """`patchsae explain`: the top latents of images, or of one patch of each."""

    patch: tuple[int, int] | None = None
    """Row and column of a patch on the token grid, from 0 at the top left; None explains the whole image."""
    show_latents: int = 5
    """Latents explained of every image."""
    noisy_above: float = math.inf
    """Leave out latents whose mean activation over the dataset of the extraction exceeds this."""


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """ValueError that names a setting, what came and what was expected."""
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
