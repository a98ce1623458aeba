"""LoRA against the CLIP whose weights were changed by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from patchsae.adapters import create
from patchsae.adapters.lora import LoRAConfig
from tests.adapters.towers import NAMES, float64, make_adapter, make_clip, make_float64
from tests.small_clips import VARIANTS, pixels

ALL = ("q", "k", "v", "o", "fc", "proj")
TARGETS = [*((target,) for target in ALL), ALL, ("v", "q")]


@pytest.mark.parametrize("layer", [0, -2, -1])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_before_training_it_is_clip_bit_for_bit(variant: str, layer: int) -> None:
    clip = make_clip(variant=variant, layer=layer)
    adapted = create("lora", clip, NAMES, LoRAConfig(3, 2.0, ALL))
    images = pixels(2, clip.image_size)
    assert torch.equal(adapted.residual(images), clip.residual(images))
    assert torch.equal(adapted.embed(adapted.residual(images)), clip.embed(clip.residual(images)))


@pytest.mark.parametrize("variant", ["gelu", "custom_block", "average_pool"])
@pytest.mark.parametrize("targets", TARGETS, ids="".join)
@torch.no_grad()
def test_it_is_the_clip_with_the_updates_added_to_its_weights(targets: tuple[str, ...], variant: str) -> None:
    clip = make_clip(variant=variant)
    adapted = make_adapter("lora", clip, LoRAConfig(2, 3.0, targets))
    merged = copy.copy(clip)
    merged.model = copy.deepcopy(clip.model)
    learned = adapted.trainable()
    for i, block in enumerate(merged.model.visual.transformer.resblocks):
        places = dict(zip("qkv", block.attn.in_proj_weight.data.split(clip.width), strict=True))
        places |= {"o": block.attn.out_proj.weight, "fc": block.mlp.c_fc.weight, "proj": block.mlp.c_proj.weight}
        for target in targets:
            update = learned[f"blocks.{i}.{target}.B"] @ learned[f"blocks.{i}.{target}.A"]
            places[target] += 3.0 / 2 * update
    images = pixels(2, clip.image_size)
    torch.testing.assert_close(adapted.residual(images), merged.residual(images), rtol=0, atol=1e-5)
    expected = merged.embed(merged.residual(images))
    torch.testing.assert_close(adapted.embed(adapted.residual(images)), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, clip.embed(clip.residual(images)), atol=1e-3)


def test_weights_are_its_own_again_after_a_pass_that_fails() -> None:
    adapted = make_adapter("lora", make_clip("plain"), LoRAConfig(2, 1.0, ALL))
    block = adapted.clip.model.visual.transformer.resblocks[1]
    before = dict(block.named_parameters())

    def fail(*_: object) -> None:
        raise RuntimeError("stop here")

    hook = block.mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        adapted.residual(pixels(1))
    hook.remove()
    assert all(parameter is before[name] for name, parameter in block.named_parameters())


def test_gradients_are_those_of_finite_differences() -> None:
    adapted = float64(make_adapter("lora", make_float64("more_vision", -1), LoRAConfig(1, 1.0, ALL)))
    images = pixels(1).double()

    def first(*_: torch.Tensor) -> torch.Tensor:
        return adapted.embed(adapted.residual(images))[:, 0]

    assert torch.autograd.gradcheck(first, list(adapted.trainable().values()), fast_mode=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoRAConfig(targets=("q", "w")), "targets=.*expected some of q, k, v, o, fc, proj"),
        (LoRAConfig(targets=()), "targets="),
        (LoRAConfig(targets=("q", "q")), "each once"),
        (LoRAConfig(rank=0), r"rank=0; expected 1\.\.32"),
        (LoRAConfig(rank=33), "rank=33"),
        (LoRAConfig(alpha=0), "alpha=0; expected a positive number"),
        (LoRAConfig(alpha=float("inf")), "alpha=inf"),
    ],
)
def test_settings_that_do_not_fit_are_named(config: LoRAConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("lora", make_clip("plain"), NAMES, config)
