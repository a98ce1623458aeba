from __future__ import annotations

import warnings

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae import progress
from patchsae.experiments.options import PromptOptions
from patchsae.experiments.zero_shot import zero_shot
from patchsae.models import prompts
from patchsae.models.clip import SplitCLIP, load_clip
from tests.small_clips import write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> SplitCLIP:
    return load_clip(f"local-dir:{write_clip(tmp_path_factory.mktemp('clip'))}", device="cpu")


def counting(texts: list[str]) -> torch.Tensor:
    """A stand-in text tower of known values: unit vectors that depend on the text alone."""
    rows = [[float(len(text)), float(text.count("a")), 1.0] for text in texts]
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def test_imagenet_has_openais_80_templates_and_1000_names_two_of_them_twice() -> None:
    assert len(prompts.IMAGENET_TEMPLATES) == 80
    assert all(template.count("{}") == 1 for template in prompts.IMAGENET_TEMPLATES)
    assert "itap of a {}." in prompts.IMAGENET_TEMPLATES
    names = prompts.IMAGENET_CLASSNAMES
    assert len(names) == 1000
    assert sorted({name for name in names if names.count(name) > 1}) == ["missile", "sunglasses"]


@pytest.mark.parametrize(
    ("dataset", "template"),
    [
        ("OxfordPets", "a photo of a {}, a type of pet."),
        ("oxford_flowers", "a photo of a {}, a type of flower."),
        ("fgvc-aircraft", "a photo of a {}, a type of aircraft."),
        ("Food101", "a photo of {}, a type of food."),
        ("DTD", "{} texture."),
        ("DescribableTextures", "{} texture."),
        ("EuroSAT", "a centered satellite photo of {}."),
        ("UCF101", "a photo of a person doing {}."),
        ("ImageNet", "a photo of a {}."),
        ("cifar10", "a photo of a {}."),
        ("OxfordFlowers:test", "a photo of a {}, a type of flower."),
        ("CIFAR10:train", "a photo of a {}."),
    ],
)
def test_datasets_have_the_templates_of_the_adaptation_experiments(dataset: str, template: str) -> None:
    assert prompts.templates_for(dataset) == [template]


def test_templates_are_texts_or_names_of_them() -> None:
    assert prompts.resolve([]) == prompts.resolve(["imagenet"]) == prompts.resolve(("ImageNet",))
    assert prompts.resolve(()) == prompts.imagenet_templates()
    for name in (*prompts.TEMPLATES, *prompts.ALIASES, "Oxford_Pets"):
        assert prompts.resolve([name]) == prompts.templates_for(name)
    mixed = prompts.resolve(["a {}", "imagenet", "dtd", "a {}"])
    assert mixed == ["a {}", *prompts.imagenet_templates(), "{} texture.", "a {}"]


@pytest.mark.parametrize(
    ("templates", "message"),
    [(["cifar10"], "'cifar10'.*imagenet, oxfordpets.*ucf101"), (["a {}", ""], "''"), (["{} {}"], "2 times")],
)
def test_other_templates_are_refused(templates: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.resolve(templates)


def test_classifier_is_what_open_clip_builds(clip: SplitCLIP) -> None:
    names, templates = ["red square", "dog", "dog", "a {} brace"], ["a photo of a {}.", "{} texture."]
    expected = open_clip.build_zero_shot_classifier(
        clip.model, clip.tokenizer, names, [lambda c: f"a photo of a {c}.", lambda c: f"{c} texture."]
    ).T
    weights = clip.text_classifier(names, templates)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    assert torch.equal(weights[1], weights[2])


def test_without_renormalising_the_mean_keeps_its_length(clip: SplitCLIP) -> None:
    templates = ["a photo of a {}.", "{} texture."]
    embeddings = clip.encode_text(["a photo of a cat.", "cat texture."])
    weights = clip.text_classifier(["cat"], templates, renormalise=False)
    torch.testing.assert_close(weights[0], embeddings.mean(0), rtol=0, atol=1e-6)
    assert weights.norm() < 1 - 1e-6


@given(
    classes=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=7),
    count=st.integers(1, 5),
    batch=st.integers(1, 11),
)
def test_the_batch_size_changes_nothing_and_bounds_every_call(classes: list[str], count: int, batch: int) -> None:
    templates = [f"{'a' * i} {{}}" for i in range(count)]
    sizes: list[int] = []

    def encode(texts: list[str]) -> torch.Tensor:
        sizes.append(len(texts))
        return counting(texts)

    cut = prompts.classifier(encode, classes, templates, batch_size=batch)
    whole = prompts.classifier(counting, classes, templates, batch_size=1000)
    assert max(sizes) <= batch
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("classnames", "templates", "message"),
    [
        ([], ["{}"], "classnames is empty"),
        (["cat", " "], ["{}"], r"classnames\[1\] is ' '"),
        (["cat"], [], "templates is empty"),
        (["cat"], ["a photo"], r"'a photo' has 0 times '\{\}'"),
        (["cat"], ["{} and {}"], "has 2 times"),
        ("cat", ["{}"], "classnames is the text 'cat'"),
        (["cat"], "{}", "templates is the text"),
    ],
)
def test_bad_prompts_are_named(classnames: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.classifier(counting, classnames, templates)


def test_prompts_that_take_long_show_their_progress(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    names = [f"name {i}" for i in range(5)]
    prompts.classifier(counting, names, ["a {}.", "the {}."], batch_size=4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE", 1e-9)
    prompts.classifier(counting, names, ["a {}.", "the {}."], batch_size=4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("prompts  4 / 10 prompts  40.0%")
    assert lines[-1].startswith("prompts  done: 10 prompts")


def test_texts_keep_their_order_over_batches(clip: SplitCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a", "bb", "ccc", "dd", "e"]
    whole = clip.encode_text(texts)
    monkeypatch.setattr("patchsae.models.clip.TEXT_BATCH", 2)
    torch.testing.assert_close(clip.encode_text(texts), whole, rtol=0, atol=1e-6)
    assert clip.encode_text([]).shape == (0, clip.embed_dim)


@pytest.mark.parametrize("templates", [["a photo of a {}."], ["a photo of a {}, a type of pet.", "{}"]])
def test_names_that_differ_only_where_they_are_cut_off_are_refused(clip, templates) -> None:
    long = "shark " * 90
    with pytest.raises(
        ValueError, match=r"classnames\[1\] and classnames\[2\] are .*white.* and .*blue.*[0-9]+ tokens"
    ):
        clip.text_classifier(["cat", f"{long}white", f"{long}blue"], templates)
    assert len(clip.text_classifier(["cat", f"white {long}", f"blue {long}", "cat"], templates)) == 4


@pytest.mark.parametrize("where", [(0, 1), (3, 1500), (1030, 1500)])
def test_classes_of_one_embedding_are_warned_of_by_label_and_name(where) -> None:
    weights = torch.randn(1600, 64, generator=torch.Generator().manual_seed(0))
    weights[7] = 0
    names = [f"class {label}" for label in range(len(weights))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts.warn_of_twins(weights, names)
    weights[where[1]] = 3 * weights[where[0]]
    with pytest.warns(
        UserWarning, match=rf"2 of 1600 classes .*: {where[0]} 'class {where[0]}', {where[1]} 'class {where[1]}'$"
    ):
        prompts.warn_of_twins(weights, names)


def test_accuracy_over_names_that_no_tower_tells_apart_is_warned_of(clip) -> None:
    with pytest.warns(UserWarning, match="2 of 3 classes have the text embedding of another"):
        zero_shot(clip, ["missile", "cat", "missile"], ["a {}."], PromptOptions())
