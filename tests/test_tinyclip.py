"""The tiny CLIP that is shipped, and the script that makes such models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import load_file

import patchsae
from patchsae.data import DataError, ImageDataset, Sample
from patchsae.data.shapes import FACTORS, ShapesWorld
from patchsae.models.clip_weights import TINY
from patchsae.tinyclip import TinyClipConfig, evaluate_zero_shot, train_clip
from patchsae.tinyclip.model import CONFIG_FILE, WEIGHTS_FILE, load_model, new_model
from patchsae.tinyclip.texts import TextGroup, text_groups
from patchsae.tinyclip.train import grouped_loss

SHIPPED = Path(patchsae.__file__).parent / "assets" / "tiny-clip"
WEIGHTS = "open_clip_model.safetensors"
SMALL = TinyClipConfig(
    image_size=32,
    patch_size=16,
    width=32,
    layers=2,
    head_width=16,
    embed_dim=16,
    text_width=16,
    text_layers=1,
    steps=3,
    batch_size=8,
)
BARS = {"shape": 0.6, "colour": 0.95, "texture": 0.9, "background": 0.95, "style": 0.95}


def weights(directory: Path) -> bytes:
    return (directory / WEIGHTS).read_bytes()


@torch.inference_mode()
@pytest.mark.parametrize("template", ["a photo of a {}.", "{}"])
def test_the_shipped_model_names_held_out_combinations(template: str) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{SHIPPED}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{SHIPPED}")
    world = ShapesWorld("test", n=150, seed=11)
    images = model.eval().encode_image(
        torch.stack([preprocess(world.sample(i).image) for i in range(150)]), normalize=True
    )
    for factor, values in FACTORS.items():
        texts = model.encode_text(tokenizer([template.format(value) for value in values]), normalize=True)
        answers = (images @ texts.T).argmax(1).numpy()
        assert (answers == world.factor_labels(factor)).mean() > BARS[factor], factor


def test_evaluation_agrees_with_open_clip() -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{SHIPPED}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{SHIPPED}")
    world = ShapesWorld("val", n=40)
    model.eval()
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([f"a {colour} object" for colour in FACTORS["colour"]]), normalize=True)
        images = model.encode_image(torch.stack([preprocess(world.sample(i).image) for i in range(40)]), normalize=True)
    share = ((images @ texts.T).argmax(1).numpy() == world.factor_labels("colour")).mean()
    assert evaluate_zero_shot(SHIPPED, world, ["a {} object"])["colour"] == pytest.approx(share)


def test_the_shipped_model_is_small_and_says_how_it_was_made() -> None:
    state = load_file(SHIPPED / WEIGHTS)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert 2e6 < sum(value.numel() for value in state.values()) < 5e6
    words_known = int(state["token_embedding.weight"].any(1).sum())
    assert 50 < words_known < 2000
    record = json.loads((SHIPPED / "training.json").read_text())
    assert record["config"] == asdict(TinyClipConfig(**record["config"]))
    figures = json.loads((SHIPPED / "zero_shot.json").read_text())
    for accuracy in figures["accuracy"].values():
        assert all(accuracy[factor] > BARS[factor] for factor in FACTORS)


def test_training_writes_a_checkpoint_that_open_clip_reads(tmp_path: Path) -> None:
    record = train_clip(ShapesWorld(n=20, size=32), tmp_path / "clip", SMALL, workers=0)
    assert record.steps == SMALL.steps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip"]
    assert json.loads((tmp_path / "clip" / "training.json").read_text()) == asdict(record)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    assert model.visual.grid_size == (2, 2)
    assert preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_the_same_seed_gives_the_same_weights_whoever_decodes(tmp_path: Path) -> None:
    world = ShapesWorld(n=20, size=32)
    for name, workers in (("a", 0), ("b", 1)):
        train_clip(world, tmp_path / name, SMALL, workers=workers)
    train_clip(world, tmp_path / "c", TinyClipConfig(**(asdict(SMALL) | {"seed": 1})), workers=0)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


@pytest.mark.slow
def test_training_on_class_names_learns_them(tmp_path: Path) -> None:
    """A subset is an ordinary labelled dataset: the script sees classes, no captions."""
    learns = {"steps": 120, "batch_size": 32, "augment": True, "lr": 3e-3, "text_width": 32}
    config = TinyClipConfig(**(asdict(SMALL) | learns))
    seen = ShapesWorld(n=400, size=32, label="background").subset(np.arange(400))
    train_clip(seen, tmp_path / "clip", config, workers=0)
    held_out = ShapesWorld("test", n=100, size=32, label="background").subset(np.arange(100))
    assert evaluate_zero_shot(tmp_path / "clip", held_out)["class"] > 0.6  # chance: 0.2


def test_going_on_from_a_checkpoint_keeps_its_sizes_and_moves_its_weights(tmp_path: Path) -> None:
    world = ShapesWorld(n=20, size=32)
    train_clip(world, tmp_path / "first", SMALL, workers=0)
    train_clip(world, tmp_path / "second", TinyClipConfig(steps=2, batch_size=4), start=tmp_path / "first", workers=0)
    config = "open_clip_config.json"
    assert (tmp_path / "first" / config).read_text() == (tmp_path / "second" / config).read_text()
    before, after = load_file(tmp_path / "first" / WEIGHTS), load_file(tmp_path / "second" / WEIGHTS)
    moved = (before["visual.proj"] - after["visual.proj"]).abs().max()
    assert 0 < moved < 0.01
    unread = ~before["token_embedding.weight"].any(1)
    assert unread.sum() > 48_000


def test_an_existing_directory_keeps_its_other_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("kept")
    train_clip(ShapesWorld(n=4, size=32), tmp_path, SMALL, workers=0)
    first = weights(tmp_path)
    train_clip(ShapesWorld(n=4, size=32, seed=1), tmp_path, SMALL, workers=0)
    assert (tmp_path / "README.md").read_text() == "kept"
    assert weights(tmp_path) != first


class Interrupted(ImageDataset):
    """Ctrl-C comes while image 20 is decoded."""

    def __init__(self) -> None:
        super().__init__("interrupted", np.arange(40) % 2, ["black", "white"])

    def ids(self, i: int) -> str:
        return str(i)

    def sample(self, i: int) -> Sample:
        if i == 20:
            raise KeyboardInterrupt
        return Sample(Image.new("RGB", (32, 32), ("black", "white")[i % 2]), i % 2, str(i))


def test_an_interrupted_training_leaves_what_it_has(tmp_path: Path) -> None:
    record = train_clip(Interrupted(), tmp_path / "clip", TinyClipConfig(**(asdict(SMALL) | {"steps": 50})), workers=0)
    assert record.steps < 50
    assert evaluate_zero_shot(tmp_path / "clip", ShapesWorld("val", n=2))


def test_a_new_model_knows_which_patches_are_neighbours() -> None:
    places = new_model(TinyClipConfig()).visual.positional_embedding[1:].detach().reshape(8, 8, -1)
    apart = (places - places[3, 4]).norm(dim=2)
    assert apart[3, 4] == 0
    near = {(2, 4), (4, 4), (3, 3), (3, 5)}
    order = apart.flatten().argsort()[1:5].tolist()
    assert {divmod(k, 8) for k in order} == near


def test_without_labels_nothing_is_written(tmp_path: Path) -> None:
    unlabelled = Interrupted().subset([1, 2, 3])
    unlabelled.labels = np.array([0, -1, 1])
    with pytest.raises(DataError, match="images without label"):
        train_clip(unlabelled, tmp_path / "clip", SMALL, workers=0)
    with pytest.raises(DataError, match="dataset is empty"):
        train_clip(unlabelled.subset([]), tmp_path / "clip", SMALL, workers=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 7}, "patch_size is 7; expected a divisor of image_size 64"),
        ({"layers": 1}, "layers is 1; expected at least 2"),
        ({"width": 100}, "head_width is 32; expected a divisor of width 100"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
    ],
)
def test_a_wrong_size_is_explained(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyClipConfig(**changes)


def unit_rows(n: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_with_one_text_per_image_the_loss_is_clips() -> None:
    images, texts, scale = unit_rows(6, 0), unit_rows(6, 1), torch.tensor(10.0)
    group = TextGroup(tuple("abcdef"), np.arange(6))
    assert grouped_loss(images, texts, [group], scale).item() == pytest.approx(
        ClipLoss()(images, texts, scale).item(), rel=1e-6
    )


def test_the_loss_is_smallest_where_images_of_a_text_agree_with_it() -> None:
    texts = torch.eye(3, 8)
    group = TextGroup(("a", "b", "c"), np.array([0, 1, 1, 2, 0]))
    agreeing = texts[group.positive]
    best = grouped_loss(agreeing, texts, [group], torch.tensor(50.0))
    assert best < grouped_loss(agreeing.roll(1, 0), texts, [group], torch.tensor(50.0))
    # two images share text a and two text b: log 2 each of the texts' side is what no model can avoid
    assert best.item() == pytest.approx((2 / 3) * np.log(2) / 2, abs=1e-5)


def test_texts_say_what_the_images_of_a_batch_show() -> None:
    import random

    world = ShapesWorld(n=30)
    groups = text_groups(world, np.arange(30), random.Random(0))
    for group, factor in zip(groups, FACTORS, strict=False):
        for i in range(30):
            words = group.texts[group.positive[i]].replace(".", " ").split()
            assert world.factors(i).value(factor) in words
    meanings = groups[-1].texts
    assert len(meanings) > 8  # more than any one factor tells apart


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("open_clip_config.json", b"{", "is not JSON"),
        ("open_clip_model.safetensors", b"", "is empty; expected"),
        ("open_clip_model.safetensors", b"<!DOCTYPE html>", "is a web page"),
    ],
)
def test_a_damaged_start_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / file).write_bytes((TINY / file).read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        load_model(tmp_path)
