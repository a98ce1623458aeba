"""MaPLe against the published forward pass, against CLIP, and in its prompts' places."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import patchsae
from patchsae.adapters.maple import MaPLe, MaPLeConfig, load_maple
from tests.adapters.published import Published
from tests.adapters.towers import NAMES, float64, make_adapter, make_clip, make_float64
from tests.small_clips import VARIANTS, pixels

# shape of the towers, hooked block, n_ctx, depth
CASES = [
    ("plain", -2, 2, 3),
    ("plain", 0, 2, 4),
    ("plain", -1, 1, 2),
    ("quick_gelu", -2, 2, 3),
    ("quick_gelu", 0, 5, 2),
    ("more_text", 0, 3, 4),
    ("more_text", 1, 2, 1),
    ("more_vision", 1, 4, 5),
    ("more_vision", -2, 2, 1),
    ("custom_text", 2, 6, 4),
    ("narrow_image", 1, 2, 4),
]


def maple(shape: str, layer: int, n_ctx: int, depth: int, names: list[str] | None = None) -> MaPLe:
    adapted = make_adapter("maple", make_clip(shape, layer), MaPLeConfig(n_ctx, depth), names)
    assert isinstance(adapted, MaPLe)
    return adapted


@pytest.mark.parametrize(("shape", "layer", "n_ctx", "depth"), CASES)
@torch.no_grad()
def test_images_and_classes_are_those_of_the_published_forward_pass(
    shape: str, layer: int, n_ctx: int, depth: int
) -> None:
    adapted = maple(shape, layer, n_ctx, depth)
    published = Published(adapted.clip.model, adapted.trainable())
    images = pixels(2, adapted.image_size)
    residual = adapted.residual(images)
    tokens = torch.stack([published.image(image, after=adapted.layer + 1) for image in images])
    torch.testing.assert_close(residual, tokens, rtol=0, atol=1e-5)
    embeddings = torch.stack([published.image(image) for image in images])
    torch.testing.assert_close(adapted.embed(residual), embeddings, rtol=0, atol=1e-5)
    classes = torch.stack([published.text(name, adapted.tokenizer) for name in NAMES])
    torch.testing.assert_close(adapted.text_classifier(), classes, rtol=0, atol=1e-5)
    expected = adapted.logit_scale * embeddings @ classes.T
    torch.testing.assert_close(adapted.logits(images), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_without_context_it_is_clip(variant: str) -> None:
    clip = make_clip(variant=variant, layer=-2)
    adapted = make_adapter("maple", clip, MaPLeConfig(n_ctx=0, depth=2), ["tabby cat", "dog"])
    images = pixels(2, clip.image_size)
    residual = adapted.residual(images)
    assert residual.shape == (2, clip.image_tokens, clip.width)
    torch.testing.assert_close(residual, clip.residual(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(adapted.embed(residual), clip.embed(clip.residual(images)), rtol=0, atol=1e-6)
    expected = clip.text_classifier(["tabby cat", "dog"], ["a photo of a {}."])
    torch.testing.assert_close(adapted.text_classifier(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_tower_takes_prompts_and_only_image_tokens_leave_it(variant: str) -> None:
    results = []
    for layer in range(-4, 0):
        adapted = make_adapter("maple", make_clip(variant=variant, layer=layer), MaPLeConfig(2, 3))
        residual = adapted.residual(pixels(2, adapted.image_size))
        assert residual.shape == (2, adapted.image_tokens + 2, adapted.width)
        results.append(adapted.embed(residual))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)
    # What leaves the last block at the prompts' places is not pooled.
    changed = residual.clone()
    changed[:, adapted.image_tokens :] += 1
    assert torch.equal(adapted.embed(changed), adapted.embed(residual))


@torch.no_grad()
def test_the_text_starts_as_the_words_it_replaces() -> None:
    clip = make_clip("plain")
    adapted = load_maple(clip, None, NAMES, n_ctx=4, depth=1)
    expected = clip.text_classifier(["tabby cat", "dog", "steam engine"], ["a photo of a {}."])
    torch.testing.assert_close(adapted.text_classifier(), expected, rtol=0, atol=1e-6)
    ids = clip.tokenizer(["a photo of a"])[0]
    for n_ctx in (1, 2, 3):
        context = load_maple(clip, None, NAMES, n_ctx=n_ctx, depth=2).trainable()["ctx"]
        assert torch.equal(context, clip.model.token_embedding.weight[ids[1 : 1 + n_ctx]])


@torch.no_grad()
def test_image_tokens_come_first() -> None:
    shallow, clip = maple("plain", 0, 3, 1), make_clip("plain", 0)
    images = pixels(2)
    # In front of the first block nothing has mixed: CLIP's own image tokens, then the prompts.
    seen: list[torch.Tensor] = []
    hook = clip.model.visual.transformer.resblocks[0].register_forward_hook(lambda *a: seen.append(a[1][0]))
    clip.residual(images)
    shallow.residual(images)
    hook.remove()
    assert torch.equal(seen[1][:, : clip.image_tokens], seen[0])
    assert seen[1].shape[1] == clip.image_tokens + 3 == shallow.image_tokens + shallow.prompt_tokens
    assert torch.equal(seen[1][0, clip.image_tokens :], seen[1][1, clip.image_tokens :])


@torch.no_grad()
def test_prompts_of_later_blocks_are_replaced_inside_embed() -> None:
    deep, shallow = maple("plain", 0, 2, 3), maple("plain", 0, 2, 1)
    residual = deep.residual(pixels(2))
    changed = residual.clone()
    changed[:, deep.image_tokens :] += 1
    assert torch.equal(deep.embed(changed), deep.embed(residual))  # block 1 has prompts of its own
    assert not torch.equal(shallow.embed(changed), shallow.embed(residual))
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(deep.embed(residual)[:, 0].sum(), deep.trainable()["ctx"], allow_unused=True)
    assert gradient is None


def test_gradients_are_those_of_finite_differences() -> None:
    clip = make_float64("more_vision", -1)  # CLS alone after the last block takes its softmax in float32
    adapted = float64(make_adapter("maple", clip, MaPLeConfig(1, 2), ["cat", "dog"]))
    images, parameters = pixels(1).double(), list(adapted.trainable().values())
    weights = torch.tensor([[0.3, -0.7]], dtype=torch.float64)

    def score(*_: torch.Tensor) -> torch.Tensor:
        embedding = adapted.embed(adapted.residual(images))
        return (weights * (embedding @ adapted.text_classifier().T)).sum()

    assert torch.autograd.gradcheck(score, parameters, fast_mode=True)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_gradients_do_not_depend_on_where_the_tower_is_cut(layer: int) -> None:
    gradients = []
    for cut in (layer, -1):
        adapted = maple("plain", cut, 2, 4)
        adapted.logits(pixels(2)).diagonal().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in adapted.trainable().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4)


def test_everything_learned_gets_a_gradient_and_nothing_else() -> None:
    adapted = maple("more_vision", 1, 2, 5)  # deeper than the text tower: those prompts serve the images
    torch.nn.functional.cross_entropy(adapted.logits(pixels(2)), torch.tensor([0, 2])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.trainable().values())
    assert all(p.grad is None for p in adapted.clip.model.parameters())


def test_it_costs_what_clip_costs_with_as_many_tokens() -> None:
    adapted = maple("plain", -2, 2, 4)
    clip, images = adapted.clip, pixels(4)
    tokens = adapted.image_tokens + adapted.prompt_tokens

    def flops(run: object) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return counter.get_total_flops()

    more = flops(lambda: adapted.residual(images)) / flops(lambda: clip.residual(images))
    # Attention's products grow with the square of the tokens, everything else in proportion to them.
    assert more <= 1.1 * (tokens / adapted.image_tokens) ** 2
    residual = adapted.residual(images)
    assert flops(lambda: adapted.embed(residual)) <= 1.1 * flops(lambda: clip.embed(residual))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_ctx": -1}, r"n_ctx=-1; expected 0\.\.74"),
        ({"n_ctx": 75}, r"n_ctx=75; expected 0\.\.74"),
        ({"depth": 0}, r"depth=0; expected 1\.\.4"),
        ({"depth": 5}, r"depth=5; expected 1\.\.4.*no more blocks"),
        ({"n_ctx": 2.0}, r"n_ctx=2\.0"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_maple(make_clip("plain"), None, NAMES, **changes)


def test_a_new_one_has_the_published_settings_as_far_as_the_towers_go() -> None:
    adapted = patchsae.load_maple(make_clip("plain"), None, NAMES)
    assert adapted.config == MaPLeConfig(n_ctx=2, depth=4)
    assert MaPLeConfig() == MaPLeConfig(n_ctx=2, depth=9)
    assert load_maple(make_clip("more_text"), None, NAMES).config.depth == 4
    later = [v for name, v in adapted.trainable().items() if name.startswith("compound_prompt_projections")]
    assert torch.equal(later[1], later[3])  # the published projections start as copies of one
    assert not torch.equal(later[1], adapted.trainable()["proj.weight"])
