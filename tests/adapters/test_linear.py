from __future__ import annotations

import torch

from patchsae.adapters import create
from tests.adapters.towers import NAMES, make_adapter, make_clip
from tests.small_clips import pixels


def test_it_scores_embeddings_by_its_head() -> None:
    clip = make_clip("plain")
    probe = make_adapter("linear", clip)
    embeddings = clip.embed(clip.residual(pixels(4)))
    expected = clip.logit_scale * embeddings @ probe.trainable()["weight"].T
    torch.testing.assert_close(probe.logits(pixels(4)), expected)
    assert torch.equal(probe.text_classifier(templates=["a {}."]), probe.trainable()["weight"])


def test_before_training_every_class_scores_alike() -> None:
    probe = create("linear", make_clip("plain"), NAMES)
    assert not probe.logits(pixels(2)).any()


def test_it_separates_images_that_zero_shot_prompts_do_not() -> None:
    probe, images, labels = create("linear", make_clip("plain"), NAMES), pixels(6), torch.tensor([0, 1, 2] * 2)
    optimiser = torch.optim.SGD(probe.trainable().values(), lr=0.05, momentum=0.9)
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(probe.logits(images), labels).backward()
        optimiser.step()
    assert torch.equal(probe.logits(images).argmax(dim=1), labels)
