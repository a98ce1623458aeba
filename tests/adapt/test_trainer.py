"""Training lowers the loss, leaves the CLIP alone, and ends with the same bits however it was cut."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from patchsae.adapt import checkpoint
from patchsae.adapt.forward import IMAGE_SIDE_FROZEN, Source, StepInput, open_source
from patchsae.adapt.options import AdaptOptions
from patchsae.adapt.recipes import Recipe
from patchsae.adapt.run import build
from patchsae.adapt.trainer import NonFiniteStep, take_step, train_adapter
from patchsae.adapters import create
from patchsae.data import BadImage, open_images
from patchsae.disk.runs import Run, Stage
from patchsae.interrupt import Interrupted
from patchsae.models.clip import SplitCLIP

from . import tiny

KINDS = ("maple", "coop", "vpt", "lora", "linear")


def begun(root: Path, name: str = "adapt") -> Stage:
    stage = Run(root).stage(name)
    assert stage.begin({})
    return stage


def trained(root: Path, clip: SplitCLIP, chosen: AdaptOptions):
    """(adapter, state, stage)"""
    task = tiny.task(chosen)
    adapted, usual = build(clip, task, chosen)
    with begun(root) as stage:
        state = train_adapter(adapted, task.training, usual, chosen, stage)
    return adapted, state, stage


def tensors(adapted) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adapted.trainable().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_leaves_the_clip_alone(tmp_path: Path, clip_folder: Path, kind: str) -> None:
    clip = tiny.read_clip(clip_folder)
    before = clip.fingerprint
    rates = {"maple": 0.05, "coop": 0.05, "vpt": 0.1, "lora": 0.01, "linear": 0.05}
    chosen = tiny.options(adapter=kind, steps=60, batch_size=16, augment="none", lr=rates[kind])
    _, _, stage = trained(tmp_path, clip, chosen)
    losses = [row["loss"] for row in stage.metrics()]
    assert len(losses) == 60
    assert losses[-1] < losses[0] - 0.1
    del clip.__dict__["fingerprint"]
    assert clip.fingerprint == before
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_workers_do_not_change_the_result(tmp_path: Path, clip: SplitCLIP) -> None:
    ends = [trained(tmp_path / str(n), clip, tiny.options(adapter="vpt", workers=n))[0] for n in (0, 2)]
    assert same(*map(tensors, ends))


def test_two_seeds_start_elsewhere_and_one_seed_ends_the_same(tmp_path: Path, clip: SplitCLIP) -> None:
    seeds = {"a": 1, "b": 1, "c": 2}
    ends = {
        name: tensors(trained(tmp_path / name, clip, tiny.options(adapter="coop", seed=seed))[0])
        for name, seed in seeds.items()
    }
    assert same(ends["a"], ends["b"])
    assert not same(ends["a"], ends["c"])


@pytest.mark.parametrize("kind", ["maple", "lora", "linear"])
def test_stopped_by_a_signal_and_resumed_ends_with_the_same_bits(tmp_path: Path, clip: SplitCLIP, kind: str) -> None:
    chosen = tiny.options(adapter=kind, epochs=3, log_every=5, lr=0.01)
    whole, _, expected = trained(tmp_path / "whole", clip, chosen)
    task = tiny.task(chosen)
    adapted, recipe = build(clip, task, chosen)
    stops_at_step_7(adapted)
    with pytest.raises(Interrupted, match="stopped after step 7 of 12"), begun(tmp_path / "cut") as stage:
        train_adapter(adapted, task.training, recipe, chosen, stage)
    resumed, state, stage = trained(tmp_path / "cut", clip, chosen)
    assert state.step == 12
    assert same(tensors(resumed), tensors(whole))
    assert tiny.timeless(stage) == tiny.timeless(expected)
    assert [row["step"] for row in stage.metrics()] == [1, 5, 10, 12]


def stops_at_step_7(adapted) -> None:
    """The process gets SIGINT in the middle of the 7th step."""
    classifier, calls = adapted.text_classifier, []

    def counted(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return classifier(*arguments)

    adapted.text_classifier = counted


def test_a_finished_training_takes_no_further_step(tmp_path: Path, clip: SplitCLIP) -> None:
    chosen = tiny.options(adapter="vpt")
    first, _, _ = trained(tmp_path, clip, chosen)
    again, _, stage = trained(tmp_path, clip, chosen)
    assert same(tensors(first), tensors(again))
    assert len(stage.metrics()) == 16


def test_embeddings_computed_once_train_as_pixels_do(clip: SplitCLIP) -> None:
    """The same steps, images, scores and gradients: only when the tower runs differs."""
    for kind in IMAGE_SIDE_FROZEN:
        chosen = tiny.options(adapter=kind, augment="none", epochs=3)
        task = tiny.task(chosen)
        adapted, recipe = build(clip, task, chosen)
        with torch.no_grad():
            next(iter(adapted.trainable().values())).normal_(generator=torch.Generator().manual_seed(1))
        quick = open_source(adapted, task.training, recipe, chosen, "quick")
        plain = Source(adapted, task.training, recipe, chosen)
        steps = list(zip(quick.stream(2), plain.stream(2), strict=True))
        assert [a.step for a, _ in steps] == list(range(2, 12))
        for a, b in steps:
            assert (a.step, a.ids, a.labels.tolist()) == (b.step, b.ids, b.labels.tolist())
            assert a.inputs.dim() == 2 < b.inputs.dim()
            torch.testing.assert_close(quick.logits(a.inputs), plain.logits(b.inputs), rtol=1e-4, atol=1e-4)


def test_pixels_are_trained_on_where_every_epoch_crops_anew(clip: SplitCLIP) -> None:
    chosen = tiny.options(adapter="coop", augment="crop-flip")
    task = tiny.task(chosen)
    adapted, recipe = build(clip, task, chosen)
    assert type(open_source(adapted, task.training, recipe, chosen, "")) is Source


def test_a_loss_that_is_not_finite_names_step_and_images_and_changes_nothing(tmp_path: Path, clip: SplitCLIP) -> None:
    chosen = tiny.options(adapter="vpt", epochs=3, lr=1e38)
    task = tiny.task(chosen)
    adapted, recipe = build(clip, task, chosen)
    with (
        pytest.raises(NonFiniteStep, match=r"step \d+ has .*Images of the step: train-") as caught,
        begun(tmp_path) as stage,
    ):
        train_adapter(adapted, task.training, recipe, chosen, stage)
    assert len(caught.value.ids) == 4


def test_a_gradient_that_is_not_finite_is_caught_before_it_is_used(clip: SplitCLIP) -> None:
    """sqrt(0) is finite and its gradient is not."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    state = checkpoint.AdapterState({"x": parameter}, torch.optim.SGD([parameter], lr=1.0))

    class Root(Source):
        def __init__(self) -> None: ...

        def logits(self, inputs: torch.Tensor) -> torch.Tensor:
            return parameter.sqrt()[None]

    with pytest.raises(NonFiniteStep, match="step 4 has a gradient that is not finite"):
        take_step(state, Root(), StepInput(3, torch.zeros(1), torch.tensor([1]), ["a"]), 1.0)
    assert torch.equal(parameter.detach(), torch.zeros(2))


def test_images_that_cannot_be_read_stop_or_are_left_out(tmp_path: Path, clip: SplitCLIP) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                open_images("shapes:train?n=3&size=16").sample(i).image.save(folder / f"{i}.png")
    (tmp_path / "data" / "train" / "ant" / "1.png").write_bytes(b"no image")
    train = open_images(str(tmp_path / "data"), "train")
    for kind, source in (("vpt", "crop-flip"), ("linear", "none")):
        recipe = Recipe("sgd", 0.01, 0.0, 2, epochs=2, warm_up=0, augment=source)  # type: ignore[arg-type]
        adapted = create(kind, clip, ["ant", "bee"])
        with pytest.raises(BadImage, match="1.png"), begun(tmp_path / kind / "stop") as stage:
            train_adapter(adapted, train, recipe, tiny.options(adapter=kind), stage)
        with begun(tmp_path / kind / "skip") as stage:
            state = train_adapter(adapted, train, recipe, tiny.options(adapter=kind, on_bad_image="skip"), stage)
        assert (state.step, state.images) == (6, 10)
        assert [Path(record.id).name for record in state.bad] == ["1.png"]
        assert train.ids(state.bad[0].index) == state.bad[0].id


def test_text_in_pieces_gives_the_same_gradients(clip: SplitCLIP) -> None:
    chosen = tiny.options(adapter="maple")
    task = tiny.task(chosen)
    adapted, _ = build(clip, task, chosen)
    gradients = []
    for budget in (adapted.text_budget_mb, 1e-6):
        adapted.text_budget_mb = budget
        loss = adapted.text_classifier().square().mul(torch.arange(16)).sum()
        gradients.append(torch.autograd.grad(loss, adapted.trainable()["ctx"])[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_text_budget_reaches_the_adapter(clip: SplitCLIP) -> None:
    chosen = tiny.options(text_budget_mb=77)
    assert build(clip, tiny.task(chosen), chosen)[0].text_budget_mb == 77


def test_mixed_precision_trains_float32_tensors_close_to_float32(tmp_path: Path, clip: SplitCLIP) -> None:
    losses = {}
    for precision in ("fp32", "amp"):
        adapted, _, stage = trained(tmp_path / precision, clip, tiny.options(precision=precision))
        losses[precision] = torch.tensor([row["loss"] for row in stage.metrics()])
        assert all(value.dtype == torch.float32 for value in adapted.trainable().values())
    assert not torch.equal(losses["fp32"], losses["amp"])
    torch.testing.assert_close(losses["fp32"], losses["amp"], rtol=0.05, atol=0.05)


def test_a_step_is_as_long_as_its_learning_rate(clip: SplitCLIP) -> None:
    def moved(rate: float) -> torch.Tensor:
        chosen = tiny.options(adapter="vpt")
        task = tiny.task(chosen)
        adapted, recipe = build(clip, task, chosen)
        source = open_source(adapted, task.training, recipe, chosen, "")
        parameter = adapted.trainable()["prompts.0"]
        state = checkpoint.AdapterState({"x": parameter}, torch.optim.SGD([parameter], lr=7.0))
        before = parameter.detach().clone()
        take_step(state, source, next(iter(source.stream(0))), rate)
        return parameter.detach() - before

    assert moved(0.0).count_nonzero() == 0
    torch.testing.assert_close(moved(0.5), 2 * moved(0.25), rtol=1e-3, atol=1e-6)


def test_every_step_has_the_rate_of_the_schedule(tmp_path: Path, clip: SplitCLIP) -> None:
    chosen = tiny.options(adapter="vpt")
    _, _, stage = trained(tmp_path, clip, chosen)
    recipe = build(clip, tiny.task(chosen), chosen)[1]
    rows = stage.metrics()
    assert [row["epoch"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert [row["lr"] for row in rows] == [recipe.rate(step, 4) for step in range(16)]
    assert rows[0]["lr"] == 1e-5 < rows[-1]["lr"] < rows[4]["lr"] == recipe.lr


@pytest.mark.parametrize(("kind", "optimiser"), [("maple", torch.optim.SGD), ("lora", torch.optim.AdamW)])
def test_the_optimiser_is_the_recipes(tmp_path: Path, clip: SplitCLIP, kind: str, optimiser: type) -> None:
    state = trained(tmp_path, clip, tiny.options(adapter=kind, steps=1))[1]
    (group,) = state.optimiser.param_groups
    assert type(state.optimiser) is optimiser
    assert group["weight_decay"] == {"maple": 5e-4, "lora": 1e-2}[kind]
    assert group.get("momentum", 0.9) == 0.9
