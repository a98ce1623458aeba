"""VPT-deep against the published forward pass with prompts of its own, and against CLIP."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchsae.adapters import create
from patchsae.adapters.vpt import VPTConfig
from tests.adapters.published import Published
from tests.adapters.towers import NAMES, float64, make_adapter, make_clip, make_float64
from tests.small_clips import VARIANTS, pixels


class _Prompted(Published):
    """Prompts that are given, not projected."""

    def __init__(self, model: torch.nn.Module, prompts: dict[str, Tensor]) -> None:
        super().__init__(model, {"ctx": prompts["prompts.0"]})
        self.own = prompts
        self.later = len(prompts) - 1
        for i in range(self.later):
            self.prompts[f"compound_prompts_text.{i}"] = prompts[f"prompts.{i + 1}"]

    def project(self, name: str, context: Tensor) -> Tensor:
        return context


@pytest.mark.parametrize(("shape", "layer", "n_ctx", "depth"), [("plain", 1, 4, 4), ("narrow_image", 0, 1, 2)])
@torch.no_grad()
def test_images_are_those_of_the_published_forward_pass(shape: str, layer: int, n_ctx: int, depth: int) -> None:
    adapted = make_adapter("vpt", make_clip(shape, layer), VPTConfig(n_ctx, depth))
    published = _Prompted(adapted.clip.model, dict(adapted.trainable()))
    images = pixels(2, adapted.image_size)
    residual = adapted.residual(images)
    tokens = torch.stack([published.image(image, after=layer + 1) for image in images])
    torch.testing.assert_close(residual, tokens, rtol=0, atol=1e-5)
    expected = torch.stack([published.image(image) for image in images])
    torch.testing.assert_close(adapted.embed(residual), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_without_prompts_it_is_clip(variant: str) -> None:
    clip = make_clip(variant=variant)
    adapted = create("vpt", clip, NAMES, VPTConfig(0, 1))
    images = pixels(2, clip.image_size)
    assert torch.equal(adapted.residual(images), clip.residual(images))
    assert torch.equal(adapted.embed(adapted.residual(images)), clip.embed(clip.residual(images)))


def test_the_classes_take_the_templates_of_the_settings() -> None:
    clip = make_clip("plain")
    adapted = create("vpt", clip, NAMES, VPTConfig(2, 2, ("a {}.", "the {}.")))
    assert torch.equal(adapted.text_classifier(), clip.text_classifier(NAMES, ["a {}.", "the {}."]))
    with pytest.raises(ValueError, match="template 'a dog'"):
        create("vpt", clip, NAMES, VPTConfig(2, 2, ("a dog",)))


def test_gradients_are_those_of_finite_differences() -> None:
    adapted = float64(make_adapter("vpt", make_float64("more_vision", -1), VPTConfig(2, 3)))
    images = pixels(1).double()

    def first(*_: Tensor) -> Tensor:
        return adapted.embed(adapted.residual(images))[:, 0]

    assert torch.autograd.gradcheck(first, list(adapted.trainable().values()), fast_mode=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VPTConfig(2, 5), r"depth=5; expected 1\.\.4.*that many blocks"),
        (VPTConfig(2, 0), "depth=0"),
        (VPTConfig(-1, 2), "n_ctx=-1"),
    ],
)
def test_settings_that_do_not_fit_are_named(config: VPTConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("vpt", make_clip("plain"), NAMES, config)
