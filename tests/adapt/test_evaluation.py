"""What is counted, and that a stopped evaluation goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from patchsae.adapt.evaluation import evaluate
from patchsae.adapt.run import templates_of
from patchsae.adapt.task import Part
from patchsae.adapters import create
from patchsae.data import batches, open_images
from patchsae.disk.runs import Run
from patchsae.models.clip import SplitCLIP

from . import tiny

TEMPLATES = ["a {} thing.", "some {}."]


def part() -> Part:
    return Part("other", open_images(tiny.OTHER))


def plain_counts(model, dataset, classifier: torch.Tensor) -> list[int]:
    """Right answers by class, from one batch of all images."""
    (batch,) = batches(dataset, model.preprocess, 1000)
    with torch.no_grad():
        right = (model.embed(model.residual(batch.pixels)) @ classifier.T).argmax(1) == batch.labels
    return [int((right & (batch.labels == label)).sum()) for label in range(len(dataset.classnames))]


@pytest.mark.parametrize("kind", ["maple", "coop", "vpt", "lora"])
def test_counts_are_those_of_both_models_on_the_parts_own_classes(tmp_path: Path, clip: SplitCLIP, kind: str) -> None:
    adapted = create(kind, clip, ["these", "are", "not", "tested"])
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    dataset = part().dataset
    with Run(tmp_path).stage("adapt") as stage:
        stage.begin({})
        found = evaluate(adapted, part(), TEMPLATES, tiny.options(test_batch_size=7), stage)
    names = dataset.classnames
    with torch.no_grad():
        theirs = clip.text_classifier(names, TEMPLATES)
        ours = adapted.text_classifier(names, TEMPLATES)
    assert found.images == torch.bincount(torch.from_numpy(dataset.labels), minlength=len(names)).tolist()
    assert found.correct == plain_counts(adapted, dataset, ours)
    assert found.clip_correct == plain_counts(clip, dataset, theirs)
    assert found.classnames == names


def test_a_linear_probe_is_tested_with_its_head_and_refuses_other_classes(tmp_path: Path, clip: SplitCLIP) -> None:
    dataset = part().dataset
    adapted = create("linear", clip, dataset.classnames)
    with torch.no_grad():
        adapted.trainable()["weight"].normal_(generator=torch.Generator().manual_seed(0))
    with Run(tmp_path).stage("adapt") as stage:
        stage.begin({})
        found = evaluate(adapted, part(), TEMPLATES, tiny.options(), stage)
        assert found.correct == plain_counts(clip, dataset, adapted.trainable()["weight"].detach())
        with pytest.raises(ValueError, match="knows the 1 classes"):
            evaluate(create("linear", clip, ["x"]), part(), TEMPLATES, tiny.options(), stage)


def test_templates_are_the_datasets_own_unless_told(clip: SplitCLIP) -> None:
    dataset = open_images(tiny.OTHER)
    dataset.name = "eurosat:test"
    assert templates_of(dataset, tiny.options()) == ["a centered satellite photo of {}."]
    assert templates_of(dataset, tiny.options(templates=("a {}.",))) == ["a {}."]
    dataset.name = "shapes:test?label=x"
    assert templates_of(dataset, tiny.options()) == ["a photo of a {}."]
