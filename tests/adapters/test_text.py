"""The text tower with learned context: chunks, cut prompts, names that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from patchsae.adapters import AdaptedCLIP, create
from patchsae.adapters.coop import CoOpConfig
from patchsae.adapters.maple import MaPLeConfig
from patchsae.adapters.text import TextTower, class_features, class_prompts
from patchsae.models import prompts
from tests.adapters.towers import NAMES, make_adapter, make_clip
from tests.small_clips import VARIANTS, pixels

CLASSES = prompts.IMAGENET_CLASSNAMES[:23]
CONFIGS = {"coop": CoOpConfig(3), "maple": MaPLeConfig(2, 3)}


def gradients(adapted: AdaptedCLIP) -> dict[str, torch.Tensor]:
    for parameter in adapted.trainable().values():
        parameter.grad = None
    torch.nn.functional.cross_entropy(adapted.logits(pixels(3)), torch.tensor([0, 11, 22])).backward()
    return {name: parameter.grad for name, parameter in adapted.trainable().items() if parameter.grad is not None}


@pytest.mark.parametrize("kind", CONFIGS)
def test_chunks_have_the_features_and_gradients_of_the_whole(kind: str) -> None:
    adapted = make_adapter(kind, make_clip("plain"), CONFIGS[kind], CLASSES)
    whole, expected = adapted.text_classifier().detach(), gradients(adapted)
    tower, length = (
        TextTower(adapted.clip),
        class_prompts(adapted.clip, TextTower(adapted.clip), CLASSES, "", 3).shape[1],
    )
    for budget in (0.1, 0.5, 1e-9):
        adapted.text_budget_mb = budget
        assert tower.prompts_within(budget, length) < len(CLASSES)
        torch.testing.assert_close(adapted.text_classifier(), whole, rtol=0, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(adapted.text_classifier(), whole, rtol=0, atol=1e-6)
        found = gradients(adapted)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_the_budget_bounds_what_a_forward_pass_keeps() -> None:
    adapted = make_adapter("coop", make_clip("plain"), CoOpConfig(3), CLASSES * 4)

    def kept(budget: float) -> int:
        adapted.text_budget_mb = budget
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in adapted.clip.model.parameters()}
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            result = adapted.text_classifier()
        assert result.requires_grad
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    one_pass = kept(1e6)
    tower = TextTower(adapted.clip)
    length = class_prompts(adapted.clip, tower, CLASSES, "", 3).shape[1]
    estimate = len(CLASSES) * 4 / tower.prompts_within(1.0, length)  # MiB
    assert one_pass / 2**20 <= 1.1 * estimate  # the estimate errs on the side of memory
    assert kept(0.5) < one_pass / 20


@pytest.mark.parametrize("shape", ["plain", "quick_gelu", "custom_text"])
@torch.no_grad()
def test_padding_that_nobody_sees_is_cut(shape: str) -> None:
    clip = make_clip(shape)
    tower = TextTower(clip)
    ids = class_prompts(clip, tower, NAMES, "of a", 2)
    assert ids.shape[1] == 2 + clip.tokenizer(["of a tabby cat."])[0].argmax() + 1
    full = torch.nn.functional.pad(ids, (0, tower.context_length - ids.shape[1]))
    context = [torch.randn(2, tower.width) for _ in range(2)]
    whole = class_features(tower, full, context, 1024)
    torch.testing.assert_close(class_features(tower, ids, context, 1024), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["coca", "coca_token"])
def test_padding_that_a_class_token_sees_stays(variant: str) -> None:
    clip = make_clip(variant=variant)
    tower = TextTower(clip)
    assert class_prompts(clip, tower, NAMES, "of a", 2).shape[1] == tower.context_length


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_context_that_is_words_gives_clips_own_classifier(variant: str) -> None:
    clip = make_clip(variant=variant)
    words = "an old photo of the"
    coop = create("coop", clip, ["tabby cat", "dog"], CoOpConfig(5))
    coop.trainable()["ctx"].copy_(TextTower(clip).embedding_of(clip.tokenizer([words])[0, 1:6]))
    expected = clip.text_classifier(["tabby cat", "dog"], [words + " {}."])
    torch.testing.assert_close(coop.text_classifier(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["argmax", "eos", "first", "last"])
@torch.no_grad()
def test_text_is_pooled_as_the_model_pools_it(pool: str) -> None:
    clip = make_clip("plain")
    before = clip.model.text_pool_type, clip.model.text_eos_id
    clip.model.text_pool_type, clip.model.text_eos_id = pool, 49407
    try:
        coop = create("coop", clip, ["tabby cat", "dog"], CoOpConfig(0))
        expected = clip.text_classifier(["tabby cat", "dog"], ["{}."])
        torch.testing.assert_close(coop.text_classifier(), expected, rtol=0, atol=1e-6)
    finally:
        clip.model.text_pool_type, clip.model.text_eos_id = before


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_name_that_does_not_fit_is_named(kind: str) -> None:
    clip = make_clip("custom_text")  # 20 tokens: start, end, full stop, and 3 of context or 2 and "of a"
    room = 14 if kind == "coop" else 13
    fits, too_long = " ".join(["dog"] * room), " ".join(["dog"] * (room + 1))
    with torch.no_grad():
        assert create(kind, clip, ["cat", fits], CONFIGS[kind]).text_classifier().isfinite().all()
    with pytest.raises(ValueError, match=r"classnames\[1\] is 'dog dog .*20 tokens.*shorten the name"):
        create(kind, clip, ["cat", too_long], CONFIGS[kind]).text_classifier()
    with pytest.raises(ValueError, match=r"classnames\[0\] is 'cow cow .{40,52}\.\.\.': its prompt"):
        create(kind, clip, [" ".join(["cow"] * 300)], CONFIGS[kind]).text_classifier()


def test_a_tokenizer_without_a_start_token_is_refused() -> None:
    clip = make_clip("plain")
    original = clip.tokenizer
    clip.__dict__["tokenizer"] = lambda texts, **settings: original(texts, **settings)[:, 1:]
    with pytest.raises(ValueError, match="start token"):
        class_prompts(clip, TextTower(clip), NAMES, "", 2)


def test_underscores_are_spaces() -> None:
    clip = make_clip("plain")
    for kind, config in CONFIGS.items():
        weights = make_adapter(kind, clip, config, ["steam_engine", "steam engine"]).text_classifier()
        assert torch.equal(weights[0], weights[1])
