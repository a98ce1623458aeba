"""An adaptation from the few images to its tables, in every setting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from patchsae import load_adapter, load_maple
from patchsae.adapt import evaluation, result
from patchsae.adapt.run import build
from patchsae.cli import opening
from patchsae.cli.choices import FewImages
from patchsae.data import few_shot, open_images
from patchsae.disk.runs import ConfigDiffers, Run
from patchsae.experiments.groups import harmonic_mean
from patchsae.models.clip import SplitCLIP
from patchsae.report import build as build_report

from . import tiny


def test_base_to_novel_leaves_adapter_tables_and_section(tmp_path: Path, clip: SplitCLIP) -> None:
    rows, stage = tiny.adapt_in(tmp_path, clip, tiny.options(setting="base-to-novel"))
    assert [row.part for row in rows] == ["base", "novel", "harmonic mean"]
    assert rows[2].accuracy == pytest.approx(harmonic_mean(rows[0].accuracy, rows[1].accuracy))
    assert rows[0].classes == rows[1].classes == 4
    table = stage.read_table("accuracy.csv")
    assert table["part"] == [row.part for row in rows]
    assert list(table["accuracy"]) == [row.accuracy for row in rows]
    assert len(stage.read_table("classes.csv")["label"]) == 8
    assert {"step", "epoch", "loss", "accuracy", "lr"} <= set(stage.metrics()[-1])
    assert "Adaptation: MaPLe" in build_report(Run(tmp_path)).read_text()
    assert not (stage.path / "checkpoint.safetensors").exists()


def test_the_images_trained_on_are_those_of_the_draw(tmp_path: Path, clip: SplitCLIP) -> None:
    _, stage = tiny.adapt_in(tmp_path, clip, tiny.options(adapter="vpt", seed=3))
    drawn = few_shot(open_images(tiny.TRAIN), 2, 3)
    table = stage.read_table("few_shot.csv")
    assert table["image"] == [drawn.ids(i) for i in range(len(drawn))]
    assert list(table["label"]) == drawn.labels.tolist()


def test_saved_adapters_give_the_tested_accuracy_again(tmp_path: Path, clip: SplitCLIP) -> None:
    chosen = tiny.options(setting="base-to-novel")
    rows, stage = tiny.adapt_in(tmp_path, clip, chosen)
    base = tiny.task(chosen).parts[0]
    names = base.dataset.classnames
    with Run(tmp_path).stage("again") as again:
        again.begin({})
        for adapted in (
            load_adapter(clip, stage.path, names),
            opening.adapter(str(stage.path), clip, names),
            load_maple(clip, stage.path / "MultiModalPromptLearner" / "model.pth.tar-4", names),
        ):
            found = evaluation.evaluate(adapted, base, ["a photo of a {}."], chosen, again)
            assert (found.accuracy, found.clip_accuracy) == (rows[0].accuracy, rows[0].clip)


def test_cross_dataset_tests_source_and_targets(tmp_path: Path, clip: SplitCLIP) -> None:
    rows, _ = tiny.adapt_in(tmp_path, clip, tiny.options(setting="cross-dataset", adapter="coop", epochs=2))
    assert [row.images for row in rows] == [50, 30, None]
    assert rows[2].accuracy == rows[1].accuracy


def test_finished_says_so_other_settings_are_refused_and_overwrite_starts_again(
    tmp_path: Path, clip: SplitCLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = tiny.options(adapter="linear", steps=60, lr=0.01)
    first, stage = tiny.adapt_in(tmp_path, clip, chosen)
    files = tiny.results(stage)
    capsys.readouterr()
    assert tiny.adapt_in(tmp_path, clip, chosen)[0] == first
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ConfigDiffers, match="lr: was 0.01, now 0.02"):
        tiny.adapt_in(tmp_path, clip, tiny.options(adapter="linear", steps=60, lr=0.02))
    tiny.adapt_in(tmp_path, clip, chosen, overwrite=True)
    assert "already finished" not in capsys.readouterr().out
    assert tiny.results(stage) == files


def test_stopped_between_two_parts_goes_on_with_the_second(
    tmp_path: Path, clip: SplitCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny.options(setting="base-to-novel", adapter="vpt")
    whole = tiny.adapt_in(tmp_path / "whole", clip, chosen)[1]
    tested = []

    def failing(adapted, part, *rest):
        tested.append(part.name)
        if tested == ["base", "novel"]:
            raise KeyboardInterrupt
        return evaluation.evaluate(adapted, part, *rest)

    monkeypatch.setattr("patchsae.adapt.run.evaluate", failing)
    with pytest.raises(KeyboardInterrupt):
        tiny.adapt_in(tmp_path / "cut", clip, chosen)
    _, resumed = tiny.adapt_in(tmp_path / "cut", clip, chosen)
    assert tested == ["base", "novel", "novel"]
    assert tiny.results(resumed) == tiny.results(whole)


def test_the_report_sums_up_seeds_that_differ_in_nothing_else(tmp_path: Path, clip: SplitCLIP) -> None:
    base = {"adapter": "linear", "steps": 60, "shots": 1}
    tiny.adapt_in(tmp_path, clip, tiny.options(**base, seed=1), "one")
    tiny.adapt_in(tmp_path, clip, tiny.options(**base, seed=9, lr=0.5), "another")
    rows, stage = tiny.adapt_in(tmp_path, clip, tiny.options(**base, seed=2), "two")
    found = result.over_seeds(stage, "few-shot", result.load_parts(stage))
    assert list(found) == [1, 2]
    assert found[2] == rows
    content = stage.load_json("section")
    assert "Over the seeds 1, 2" in content["html"]
    assert content["title"] == "Adaptation: Linear probe, 1 shot, seed 2"


def test_coop_starts_from_the_embeddings_of_its_words(clip: SplitCLIP) -> None:
    chosen = tiny.options(setting="base-to-novel", adapter="coop")
    adapted, recipe = build(clip, tiny.task(chosen), chosen)
    words = clip.tokenizer([recipe.start_words])[0, 1:5]
    expected = clip.model.token_embedding(words)
    assert torch.equal(adapted.trainable()["ctx"], expected)


def test_adapters_without_text_prompts_get_the_templates(clip: SplitCLIP) -> None:
    chosen = tiny.options(adapter="lora", templates=("{} here.", "imagenet"))
    adapted, _ = build(clip, tiny.task(chosen), chosen)
    assert adapted.config.templates[0] == "{} here."
    assert len(adapted.config.templates) == 81
    assert (adapted.config.rank, adapted.config.alpha) == (2, 1.0)


def test_a_setting_that_the_clip_is_too_small_for_is_an_error(clip: SplitCLIP) -> None:
    for changes, message in (({"adapter": "vpt", "depth": 9}, "depth=9"), ({"adapter": "lora", "rank": 99}, "rank=99")):
        with pytest.raises(ValueError, match=message):
            build(clip, tiny.task(tiny.options(**changes)), tiny.options(**changes))


def test_an_adapter_that_is_not_there_is_an_error_that_says_what_was_expected(tmp_path: Path, clip: SplitCLIP) -> None:
    with pytest.raises(FileNotFoundError, match="expected RUN/NAME of `patchsae adapt`"):
        opening.adapter(str(tmp_path / "nothing"), clip, ["a"])
    with Run(tmp_path).stage("begun") as stage:
        stage.begin({})
    with pytest.raises(FileNotFoundError, match="is a stage without adapter.safetensors"):
        opening.adapter(str(stage.path), clip, ["a"])


def test_images_left_out_are_those_of_the_sae_and_targets_may_name_their_split() -> None:
    choice = FewImages(targets=("shapes?n=9&label=style", "shapes:val?n=8"), test_limit=6)
    train, test, targets, record = opening.few_images(choice, {"images": "shapes?n=20&size=16", "split": "val"})
    assert train.name == "shapes:train?label=shape&seed=0&size=16"
    assert test.name == "shapes:test?label=shape&seed=0&size=16"
    assert [target.name.partition("?")[0] for target in targets] == ["shapes:test", "shapes:val"]
    assert [len(dataset) for dataset in (train, test, *targets)] == [20, 6, 6, 6]
    assert record["targets"] == list(choice.targets)
    assert (record["images"], record["split"], record["test_split"]) == ("shapes?n=20&size=16", "train", "test")


def test_the_seed_draws_the_start_of_the_adapter(clip: SplitCLIP) -> None:
    starts = [
        build(clip, tiny.task(chosen), chosen)[0].trainable()["ctx"]
        for chosen in (tiny.options(adapter="coop", seed=seed) for seed in (1, 1, 2))
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
