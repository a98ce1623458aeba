"""What every adapted CLIP can do: the interface of `SplitCLIP`, a few learned tensors, and the classes it knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from patchsae.adapters import vision
from patchsae.disk import hashing
from patchsae.disk.tensor_files import require_float32
from patchsae.models import prompts
from patchsae.models.clip import SplitCLIP
from patchsae.models.given import outside_inference_mode


class AdaptedCLIP:
    """A frozen CLIP with learned tensors beside it. Nothing of the CLIP is changed; both halves of the tower are
    differentiable in the learned tensors, which are float32 whatever the CLIP's dtype.

    Attributes:
        clip: the frozen CLIP.
        classnames: the classes of `logits`, in the order of their labels. A name that occurs twice gives two rows.
        kind: "maple", "coop", "vpt", "linear" or "lora".
        config: the frozen dataclass of that kind.
        name, layer, layers, width, grid, image_size, image_tokens, embed_dim, dtype, logit_scale, preprocess:
            those of the CLIP.
        prompt_tokens: P, how many tokens follow the T image tokens in `residual`; 0 where the tower is not prompted.
        text_budget_mb: bound on the activations that one pass of class prompts through the text tower keeps.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type]
    text_budget_mb = 1024

    @outside_inference_mode
    def __init__(self, clip: SplitCLIP, classnames: Sequence[str], config: Any, tensors: Mapping[str, Tensor]) -> None:
        """Put learned tensors beside a CLIP.

        Args:
            tensors: as `shapes` names them; parameters are shared, other tensors copied to float32.

        Raises:
            ValueError: no classes, a blank name, a setting that does not fit the CLIP, or a tensor that is missing,
                left over, of another shape, or of what is no real number that float32 has.
        """
        self.clip, self.classnames, self.config = clip, tuple(classnames), config
        prompts.check_prompts(classnames, self.templates)
        self.name, self.layer, self.layers = clip.name, clip.layer, clip.layers
        self.width, self.grid, self.image_size = clip.width, clip.grid, clip.image_size
        self.image_tokens, self.embed_dim = clip.image_tokens, clip.embed_dim
        self.dtype, self.logit_scale, self.preprocess = clip.dtype, clip.logit_scale, clip.preprocess
        check_shapes(tensors, self.shapes(clip, config, len(classnames)), f"the {self.kind} adapter")
        self._learned = {name: _parameter(name, tensors[name], clip.device) for name in sorted(tensors)}
        self._zero_shot: Tensor | None = None

    @classmethod
    def default_config(cls, clip: SplitCLIP) -> Any:
        """The published settings, with no more depth than this CLIP has."""
        return cls.config_class()

    @classmethod
    def shapes(cls, clip: SplitCLIP, config: Any, classes: int) -> dict[str, tuple[int, ...]]:
        """Shape of every learned tensor, by its name in a checkpoint.

        Raises:
            ValueError: a setting that does not fit the CLIP.
        """
        raise NotImplementedError

    @classmethod
    def initial(cls, clip: SplitCLIP, config: Any, classes: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The learned tensors before training, drawn on the CPU."""
        raise NotImplementedError

    @property
    def prompt_tokens(self) -> int:
        return 0

    @property
    def templates(self) -> tuple[str, ...]:
        """Texts with one ``{}`` that `text_classifier` fills where nothing of the text side is learned."""
        return (prompts.DEFAULT_TEMPLATE,)

    @property
    def device(self) -> torch.device:
        return self.clip.device

    @property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        return self.clip.tokenizer

    @property
    def metadata(self) -> dict[str, str | int | float]:
        """For records: the CLIP's own, the kind, its settings, and how many classes it knows."""
        settings = {
            f"adapter_{name}": " | ".join(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.config).items()
        }
        return {**self.clip.metadata, "adapter": self.kind, **settings, "classes": len(self.classnames)}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on the CLIP, the kind and its settings, every learned tensor and the class names.

        Computed anew on every call, for training changes the tensors.
        """
        settings = asdict(self.config)
        record = json.dumps([self.clip.fingerprint, self.kind, settings, self.classnames], sort_keys=True).encode()
        return hashing.fingerprint({**self._learned, "": torch.frombuffer(bytearray(record), dtype=torch.uint8)})

    def trainable(self) -> dict[str, nn.Parameter]:
        """The learned tensors by their names in a checkpoint; the parameters themselves."""
        return dict(self._learned)

    def for_classes(self, classnames: Sequence[str]) -> AdaptedCLIP:
        """The same adapter (it shares the learned tensors) for other classes.

        Raises:
            ValueError: the classes are part of what was learned (linear probe).
        """
        other = type(self)(self.clip, classnames, self.config, self._learned)
        other.text_budget_mb = self.text_budget_mb
        return other

    def residual(self, pixels: Tensor) -> Tensor:
        """Residual stream after block ``layer``: ``[B, 3, H, W]`` preprocessed -> ``[B, T + P, D]`` in ``dtype``.

        The T image tokens come first, the P prompt tokens after them.

        Raises:
            ValueError: the images are not of this model's size.
        """
        layered = self._vision_prompts()
        return vision.residual_stream(self.clip, pixels, layered) if layered else self.clip.residual(pixels)

    def embed(self, residual: Tensor) -> Tensor:
        """The rest of the tower: ``[B, T + P, D]`` -> unit-norm embedding ``[B, E]`` in ``dtype``.

        Prompts that belong to later blocks take their places inside. Only image tokens are pooled.

        Raises:
            ValueError: wrong number of dimensions, tokens or channels.
        """
        layered = self._vision_prompts()
        return vision.embedding(self.clip, residual, layered) if layered else self.clip.embed(residual)

    def text_classifier(
        self,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        renormalise: bool = True,
    ) -> Tensor:
        """Classifier ``[C, E]``; scores are ``logit_scale * embed(...) @ weights.T``.

        Args:
            classnames: None: the adapter's own.
            templates: None: the adapter's own. Learned prompts are the template: then this is ignored, and so is
                ``renormalise``, for each row is one unit-norm embedding.
            renormalise: as in `SplitCLIP.text_classifier`.
        """
        own = classnames is None and templates is None and renormalise
        if own and self._zero_shot is not None:
            return self._zero_shot
        names = self.classnames if classnames is None else classnames
        weights = self._of_templates(names, self.templates if templates is None else templates, renormalise)
        if own:
            self._zero_shot = weights  # nothing that is learned reaches it
        return weights

    @outside_inference_mode
    @torch.no_grad()
    def _of_templates(self, names: Sequence[str], templates: Sequence[str], renormalise: bool) -> Tensor:
        """The frozen classifier, in full precision whatever the first pass that asks for it runs in."""
        with torch.autocast(self.device.type, enabled=False):
            return self.clip.text_classifier(names, templates, renormalise)

    def logits(self, pixels: Tensor, classifier: Tensor | None = None) -> Tensor:
        """Scores ``[B, C]`` in float32: ``logit_scale * embed(residual(pixels)) @ classifier.T``.

        Gradients reach the learned tensors alone.

        Args:
            classifier: a `text_classifier` computed before. None computes it, which is what training needs and what
                an evaluation over many batches can spare itself.
        """
        embedding = self.embed(self.residual(pixels))
        weights = self.text_classifier() if classifier is None else classifier
        with torch.autocast(embedding.device.type, enabled=False):  # bfloat16 scores would be 0.5 apart
            return self.logit_scale * embedding.float() @ weights.float().T

    def _vision_prompts(self) -> list[Tensor]:
        """Prompts ``[P, D]`` in front of block 0, 1, ...; none: the vision tower is not prompted."""
        return []


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """ValueError unless ``tensors`` are exactly those of ``expected``; ``what`` begins the message."""
    if tensors.keys() != expected.keys():
        missing, extra = (
            [name[:80] for name in sorted(names)[:4]]
            for names in (expected.keys() - tensors.keys(), tensors.keys() - expected.keys())
        )
        raise ValueError(f"{what} lacks the tensors {missing} and has {extra} too many")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{what}: {name} has shape {tuple(tensors[name].shape)}; expected {shape}")


def check_range(argument: str, value: int, low: int, high: int, why: str) -> None:
    """ValueError unless ``low <= value <= high``."""
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{argument}={value!r}; expected {low}..{high}: {why}")


def _parameter(name: str, tensor: Tensor, device: torch.device) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(require_float32(name, tensor.detach()).to(device, torch.float32, copy=True).contiguous())
