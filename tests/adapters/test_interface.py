"""What holds for an adapter of any kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from patchsae.adapters import KINDS, AdaptedCLIP, adapter_class, create
from patchsae.adapters.coop import CoOpConfig
from patchsae.adapters.lora import LoRAConfig
from patchsae.adapters.maple import MaPLeConfig
from patchsae.adapters.vpt import VPTConfig
from patchsae.disk.hashing import fingerprint
from tests.adapters.towers import NAMES, make_adapter, make_clip
from tests.small_clips import pixels

CONFIGS: dict[str, Any] = {
    "maple": MaPLeConfig(2, 3),
    "coop": CoOpConfig(5),
    "vpt": VPTConfig(3, 2),
    "linear": None,
    "lora": LoRAConfig(2, 1.0, ("q", "v", "o", "fc", "proj")),
}
LABELS = torch.tensor([0, 2])


def make(kind: str, shape: str = "plain", layer: int = -2, dtype: torch.dtype = torch.float32) -> AdaptedCLIP:
    return make_adapter(kind, make_clip(shape, layer, dtype=dtype), CONFIGS[kind])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_it_looks_like_its_clip(kind: str) -> None:
    adapted = make(kind)
    sizes = ["layer", "layers", "width", "grid", "image_size", "image_tokens", "embed_dim"]
    for name in ["name", *sizes, "dtype", "device", "logit_scale", "preprocess", "tokenizer"]:
        assert getattr(adapted, name) == getattr(adapted.clip, name), name
    assert (adapted.kind, adapted.classnames) == (kind, tuple(NAMES))
    assert adapted.metadata.items() >= {**adapted.clip.metadata, "adapter": kind, "classes": 3}.items()
    assert all(isinstance(value, (str, int, float)) for value in adapted.metadata.values())


@pytest.mark.parametrize("shape", ["plain", "more_vision"])
@torch.no_grad()
def test_the_cut_does_not_change_the_scores(kind: str, shape: str) -> None:
    results = []
    for layer in range(-4, 0):
        adapted = make(kind, shape, layer)
        residual = adapted.residual(pixels(2))
        assert residual.shape == (2, adapted.image_tokens + adapted.prompt_tokens, adapted.width)
        results.append(adapted.embed(residual))
        scores = adapted.logit_scale * results[-1] @ adapted.text_classifier().T
        torch.testing.assert_close(adapted.logits(pixels(2)), scores)
        assert torch.equal(adapted.logits(pixels(2), adapted.text_classifier()), adapted.logits(pixels(2)))
    for result in results:
        torch.testing.assert_close(result.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)


def test_training_reaches_what_is_learned_and_leaves_clip_alone(kind: str) -> None:
    adapted = make(kind)
    before = {name: value.clone() for name, value in adapted.clip.model.state_dict().items()}
    optimiser = torch.optim.SGD(adapted.trainable().values(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(adapted.logits(pixels(2)), LABELS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.trainable().values())
    assert all(torch.equal(value, before[name]) for name, value in adapted.clip.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in adapted.clip.model.parameters())


def test_gradients_flow_through_the_residual_stream(kind: str) -> None:
    adapted = make(kind)
    residual = adapted.residual(pixels(2)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(adapted.embed(residual)[:, 0].sum(), residual)
    assert gradient[:, : adapted.image_tokens].abs().amax(dim=2).min() > 0


@torch.no_grad()
def test_image_tokens_of_an_image_do_not_depend_on_its_batch(kind: str) -> None:
    adapted, images = make(kind), pixels(3)
    together, alone = adapted.residual(images), adapted.residual(images[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
    assert adapted.residual(images[:0]).shape == (0, adapted.image_tokens + adapted.prompt_tokens, adapted.width)
    assert adapted.embed(adapted.residual(images[:0])).shape == (0, adapted.embed_dim)


def test_the_fingerprint_depends_on_every_tensor_and_every_name(kind: str) -> None:
    adapted = make(kind)
    seen = [adapted.fingerprint, make_adapter(kind, make_clip("plain", seed=1), CONFIGS[kind]).fingerprint]
    if kind != "linear":
        seen += [adapted.for_classes(names).fingerprint for names in (NAMES[::-1], NAMES[:2], [*NAMES[:2], "cow"])]
    for parameter in adapted.trainable().values():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        seen.append(adapted.fingerprint)
    assert len(set(seen)) == len(seen)
    assert make(kind).fingerprint == seen[0]


def test_settings_are_part_of_the_fingerprint() -> None:
    clip = make_clip("plain")
    lora = [create("lora", clip, NAMES, LoRAConfig(2, alpha)).fingerprint for alpha in (1.0, 2.0)]
    vpt = [create("vpt", clip, NAMES, VPTConfig(2, 2, (t,))).fingerprint for t in ("a {}.", "the {}.")]
    assert len({*lora, *vpt}) == 4


def test_other_classes_share_what_is_learned(kind: str) -> None:
    adapted = make(kind)
    if kind == "linear":
        with pytest.raises(ValueError, match="knows the 3 classes that it was trained on"):
            adapted.for_classes(["cow"])
        with pytest.raises(ValueError, match="knows the 3 classes"):
            adapted.text_classifier(["cow"])
        assert torch.equal(adapted.for_classes(NAMES).text_classifier(NAMES), adapted.text_classifier())
        return
    other = adapted.for_classes(["cow", *NAMES, "cow"])
    mine = other.trainable()
    assert all(mine[name] is parameter for name, parameter in adapted.trainable().items())
    weights = other.text_classifier()
    assert weights.shape == (5, adapted.embed_dim)
    assert torch.equal(weights[0], weights[4])  # a name that occurs twice has two rows
    torch.testing.assert_close(weights[1:4], adapted.text_classifier(), rtol=0, atol=1e-6)
    torch.testing.assert_close(adapted.text_classifier(["cow", *NAMES, "cow"]), weights)
    assert other.classnames == ("cow", *NAMES, "cow")
    assert adapted.classnames == tuple(NAMES)


def test_without_learned_text_the_classifier_is_clips(kind: str) -> None:
    adapted = make(kind)
    theirs = adapted.clip.text_classifier(["cow", "pig"], ["a {}.", "the {}."], renormalise=False)
    if kind in ("vpt", "lora"):
        assert torch.equal(adapted.text_classifier(["cow", "pig"], ["a {}.", "the {}."], renormalise=False), theirs)
        assert not adapted.text_classifier().requires_grad
    elif kind != "linear":
        ours = adapted.text_classifier(["cow", "pig"], ["a {}.", "the {}."], renormalise=False)
        assert torch.equal(ours, adapted.text_classifier(["cow", "pig"]))
        assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float32(kind: str, dtype: torch.dtype) -> None:
    adapted, exact = make(kind, dtype=dtype), make(kind)
    images = pixels(2)
    embedding = adapted.embed(adapted.residual(images))
    assert embedding.dtype == adapted.residual(images).dtype == dtype
    assert all(parameter.dtype == torch.float32 for parameter in adapted.trainable().values())
    torch.testing.assert_close(embedding.float(), exact.embed(exact.residual(images)), rtol=0, atol=0.08)
    torch.testing.assert_close(adapted.text_classifier().float(), exact.text_classifier(), rtol=0, atol=0.08)
    scores = adapted.logits(images)
    assert scores.dtype == torch.float32
    nn.functional.cross_entropy(scores, LABELS).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapted.trainable().values())


def test_autocast_stays_near_float32(kind: str) -> None:
    adapted, images = make(kind), pixels(2)
    with torch.no_grad():
        expected = make(kind).logits(images)
    with torch.autocast("cpu", torch.bfloat16):
        scores = adapted.logits(images)
        loss = nn.functional.cross_entropy(scores, LABELS)
    loss.backward()
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores / adapted.logit_scale, expected / adapted.logit_scale, rtol=0, atol=0.08)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapted.trainable().values())


def test_a_fixed_classifier_is_exact_whoever_asks_first() -> None:
    first, second = make("vpt"), make("vpt")
    with torch.autocast("cpu", torch.bfloat16):
        first.logits(pixels(1))
    assert torch.equal(first.text_classifier(), second.text_classifier())
    assert torch.equal(first.text_classifier(), first.clip.text_classifier(NAMES, first.templates))


@pytest.mark.parametrize("shape", ["plain", "custom_text"])
@torch.no_grad()
def test_towers_that_take_the_batch_second_give_the_same(kind: str, shape: str) -> None:
    adapted = make(kind, shape, 1)
    clip = copy.copy(adapted.clip)
    clip.model = copy.deepcopy(clip.model)
    for transformer in (clip.model.visual.transformer, getattr(clip.model, "text", clip.model).transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    other = adapter_class(kind)(clip, NAMES, adapted.config, adapted.trainable())
    images = pixels(2)
    torch.testing.assert_close(other.residual(images), adapted.residual(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(other.logits(images), adapted.logits(images), rtol=0, atol=1e-3)


def test_the_seed_alone_decides(kind: str) -> None:
    clip = make_clip("plain")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (create(kind, clip, NAMES, CONFIGS[kind], seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.fingerprint == again.fingerprint
    assert (first.fingerprint != other.fingerprint) == (kind != "linear")


@pytest.mark.parametrize("names", [[], "dog", ["dog", " "]])
def test_classes_without_a_name_are_refused(kind: str, names: list[str]) -> None:
    with pytest.raises(ValueError, match="classnames"):
        create(kind, make_clip("plain"), names, CONFIGS[kind])
    if kind != "linear":
        with pytest.raises(ValueError, match="classnames"):
            make(kind).text_classifier(names)


def test_wrong_shapes_are_named(kind: str) -> None:
    adapted = make(kind)
    with pytest.raises(ValueError, match=r"pixels has shape \(1, 3, 16, 16\)"):
        adapted.residual(pixels(1, (16, 16)))
    with pytest.raises(ValueError, match=r"residual has shape \(1, 17, 16\); expected .*32"):
        adapted.embed(torch.zeros(1, 17, 16))
    if adapted.prompt_tokens:
        with pytest.raises(ValueError, match=r"residual has shape .*17 image tokens and the \d prompt tokens"):
            adapted.embed(adapted.residual(pixels(1))[:, :17])


def test_tensors_that_do_not_fit_are_named(kind: str) -> None:
    adapted, build = make(kind), adapter_class(kind)
    name, tensor = next(iter(adapted.trainable().items()))
    rest = {key: value for key, value in adapted.trainable().items() if key != name}
    with pytest.raises(ValueError, match=rf"{kind} adapter lacks the tensors \['{name}'\]"):
        build(adapted.clip, NAMES, adapted.config, rest)
    with pytest.raises(ValueError, match=rf"{kind} adapter: {name} has shape"):
        build(adapted.clip, NAMES, adapted.config, {**adapted.trainable(), name: torch.zeros(1, *tensor.shape)})


def test_unknown_kinds_and_strange_settings_are_named() -> None:
    clip = make_clip("plain")
    with pytest.raises(ValueError, match="kind='prefix'; expected one of maple, coop, vpt, linear, lora"):
        create("prefix", clip, NAMES)
    with pytest.raises(ValueError, match="config is a VPTConfig; kind='maple' takes a MaPLeConfig"):
        create("maple", clip, NAMES, VPTConfig())


def test_defaults_are_made_to_fit(kind: str) -> None:
    adapted = create(kind, make_clip("plain"), NAMES)
    assert getattr(adapted.config, "depth", 4) == 4
    assert len(fingerprint(adapted.trainable())) == 16
