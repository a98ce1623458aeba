"""The trainer on pictures and a tiny random CLIP, against the dense float64 re-implementation of the released loop."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from patchsae import load_sae
from patchsae.data import BadImage, open_images, train_order
from patchsae.disk.runs import ConfigDiffers
from patchsae.errors import PatchsaeError
from patchsae.interrupt import Interrupted
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.training import checkpoint
from patchsae.training.checkpoint import DamagedCheckpoints
from patchsae.training.init import start_sae
from patchsae.training.learner import NonFiniteLoss
from tests.training.signals import SignalsOnce

from .dense_loss import NAMES, dense_loop
from .tiny import SOURCE, final_bytes, open_clip_dir, short_config, timeless, train_in, write_clip


def residual_batches(clip: SplitCLIP, batch_size: int, steps: int, seed: int) -> list[torch.Tensor]:
    """The residual streams of the first batch, which centres b_dec, and of every step."""
    dataset = open_images(SOURCE)
    order = train_order(len(dataset), batch_size * (steps + 1), seed, dataset.read_groups)
    pixels = [
        torch.stack([clip.preprocess(dataset.sample(i).image) for i in part]) for part in np.split(order, steps + 1)
    ]
    return [clip.residual(batch) for batch in pixels]


def test_steps_equal_the_dense_loop(tmp_path: Path, clip: SplitCLIP) -> None:
    config = short_config(cls_weight=2.0)
    first, *rest = residual_batches(clip, config.batch_size, config.steps, config.seed)
    start = start_sae(first, expansion=config.expansion, seed=config.seed).parameters_by_name()
    loop = {name: getattr(config, name) for name in ("lr", "warm_up_steps", "dead_window", "l1", "cls_weight")}
    history, params, _ = dense_loop(rest, start, ghost=True, **loop)

    sae, stage = train_in(tmp_path, clip, config)

    rows = stage.metrics()
    assert len(rows) == config.steps == 12
    assert sum(row["ghost"] > 0 for row in rows) >= 3  # the ghost term takes part
    for row, terms in zip(rows, history, strict=True):
        for name in ("total", "mse", "l1", "ghost", "l0"):
            assert row[name] == pytest.approx(getattr(terms, name).item(), rel=1e-4, abs=1e-7), (row["step"], name)
    params["W_dec"] /= params["W_dec"].norm(dim=1, keepdim=True)
    for name in NAMES:
        moved = (params[name] - start[name].double()).norm()
        assert (getattr(sae, name) - params[name]).norm() < 1e-3 * moved, name


def test_a_finished_stage_holds_the_autoencoder_and_its_report(tmp_path: Path, clip: SplitCLIP) -> None:
    config = short_config(total_images=9)
    sae, stage = train_in(tmp_path, clip, config)
    assert stage.finished
    loaded = load_sae(stage.path)
    for name in NAMES:
        assert torch.equal(getattr(loaded, name), getattr(sae, name))
    assert loaded.config.metadata["images"] == SOURCE
    assert {key: loaded.config.metadata[key] for key in clip.metadata} == clip.metadata
    assert stage.config is not None
    assert {key: stage.config[key] for key in ("model", "layer", "images", "lr")} == {
        "model": clip.name,
        "layer": clip.layer,
        "images": SOURCE,
        "lr": config.lr,
    }
    assert "128 latents" in stage.load_json("section")["html"]
    assert not (stage.path / checkpoint.FOLDER).exists()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(128))


def test_a_finished_stage_is_left_alone(tmp_path: Path, clip: SplitCLIP) -> None:
    config = short_config(total_images=8)
    sae, stage = train_in(tmp_path, clip, config)
    before = {path: path.stat().st_mtime_ns for path in stage.path.iterdir() if path.suffix == ".safetensors"}
    again, _ = train_in(tmp_path, clip, config)
    assert torch.equal(again.W_enc, sae.W_enc)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ConfigDiffers, match="lr"):
        train_in(tmp_path, clip, short_config(total_images=8, lr=0.5))
    other, _ = train_in(tmp_path, clip, short_config(total_images=8, lr=0.5), overwrite=True)
    assert not torch.equal(other.W_enc, sae.W_enc)


def test_metrics_are_logged_at_the_first_and_last_step_and_every_interval(tmp_path: Path, clip: SplitCLIP) -> None:
    _, stage = train_in(tmp_path, clip, short_config(log_every=5, total_images=28))
    rows = stage.metrics()
    assert [row["step"] for row in rows] == [1, 5, 7]
    assert [row["images"] for row in rows] == [4, 20, 28]
    assert [row["lr"] for row in rows] == pytest.approx([0.002, 0.01, 0.01])
    assert all(row["images_per_s"] > 0 for row in rows)
    assert rows[0]["l1_norm"] == pytest.approx(rows[0]["l1"] / 0.1)


def test_training_lowers_the_loss(tmp_path: Path, clip: SplitCLIP) -> None:
    _, stage = train_in(tmp_path, clip, short_config(total_images=480, log_every=10, l1=8e-5))
    rows = stage.metrics()
    assert rows[-1]["total"] < 0.5 * rows[0]["total"]
    assert rows[-1]["explained_variance"] > rows[0]["explained_variance"]
    assert rows[-1]["explained_variance"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_ends_with_the_same_bits(
    tmp_path: Path, clip: SplitCLIP, signum: int, capsys: pytest.CaptureFixture[str]
) -> None:
    _, unbroken = train_in(tmp_path / "unbroken", clip, short_config())
    handler = signal.getsignal(signum)
    dataset = SignalsOnce(open_images(SOURCE), signum, at=30)  # the first 4 centre b_dec: while step 7 is read
    with pytest.raises(Interrupted) as stopped:
        train_in(tmp_path / "broken", clip, short_config(), dataset)
    assert stopped.value.code == 128 + signum
    assert "stopped after step 6 of 12" in str(stopped.value)
    assert "goes on from there" not in capsys.readouterr().err  # whoever catches it prints it, once
    assert signal.getsignal(signum) == handler
    _, resumed = train_in(tmp_path / "broken", clip, short_config(checkpoint_steps=3))
    assert "going on after step 6 of 12" in capsys.readouterr().err
    assert final_bytes(resumed) == final_bytes(unbroken)
    assert timeless(resumed) == timeless(unbroken)


@pytest.mark.parametrize("change", ["weights", "dtype"])
def test_a_training_does_not_go_on_with_another_clip_of_the_same_name(tmp_path: Path, change: str) -> None:
    folder = write_clip(tmp_path / "clip")
    dataset = SignalsOnce(open_images(SOURCE), signal.SIGINT, at=30)
    with pytest.raises(Interrupted):
        train_in(tmp_path / "run", open_clip_dir(folder), short_config(), dataset)
    if change == "weights":
        write_clip(folder, seed=1)
    dtype = torch.bfloat16 if change == "dtype" else torch.float32
    other = load_clip(f"local-dir:{folder}", device="cpu", dtype=dtype)
    with pytest.raises(ConfigDiffers, match="clip_fingerprint"):
        train_in(tmp_path / "run", other, short_config())


def test_a_loss_that_is_not_finite_names_step_and_images_and_keeps_the_checkpoint(
    tmp_path: Path, clip: SplitCLIP
) -> None:
    config = short_config(lr=1e30, warm_up_steps=0, checkpoint_steps=100)
    with pytest.raises(NonFiniteLoss, match="step 2") as error:
        train_in(tmp_path, clip, config)
    dataset = open_images(SOURCE)
    order = train_order(len(dataset), 12, config.seed)
    assert isinstance(error.value, PatchsaeError)
    assert error.value.ids == [dataset.ids(i) for i in order[8:12]]
    (path,) = (tmp_path / "train" / checkpoint.FOLDER).iterdir()
    assert path.name == "000000001.safetensors"  # of before the step, though none was due
    assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    with pytest.raises(NonFiniteLoss, match="step 2") as again:
        train_in(tmp_path, clip, config)
    assert again.value.ids == error.value.ids


@pytest.fixture
def overflowing_clip(tmp_path: Path) -> SplitCLIP:
    """A float16 CLIP of which the patches of a white picture, and of no grey one, are more than float16 can hold."""
    folder = write_clip(tmp_path / "clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0] = 180.0
    save_file(weights, folder / "open_clip_model.safetensors")
    return load_clip(f"local-dir:{folder}", device="cpu", dtype=torch.float16)


@pytest.mark.parametrize("variant", ["relu", "batchtopk"])
def test_a_picture_that_overflows_in_the_tower_stops_with_its_batch_named(
    tmp_path: Path, overflowing_clip: SplitCLIP, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(60, 180, (9, 16, 16, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    config = short_config(batch_size=3, total_images=24, variant=variant, checkpoint_steps=100)
    order = train_order(9, 27, config.seed)
    white = int(order[7])  # of the second step
    Image.new("RGB", (16, 16), "white").save(tmp_path / "images" / f"{white}.png")
    with pytest.raises(NonFiniteLoss, match="step 2 has tokens that are not finite") as error:
        train_in(tmp_path / "run", overflowing_clip, config, open_images(tmp_path / "images"))
    assert [Path(name).stem for name in error.value.ids] == [str(i) for i in order[6:9]]
    (path,) = (tmp_path / "run" / "train" / checkpoint.FOLDER).iterdir()
    assert path.name == "000000001.safetensors"
    assert f"after step 1, is in {path.parent}" in capsys.readouterr().err
    Image.fromarray(noise[white]).save(tmp_path / "images" / f"{white}.png")
    _, mended = train_in(tmp_path / "run", overflowing_clip, config, open_images(tmp_path / "images"))
    assert mended.finished
    assert "going on after step 1 of 8" in capsys.readouterr().err


def interrupted(root: Path, clip: SplitCLIP, at: int = 30, **changes: object) -> list[Path]:
    """A run that stopped when it read its at-th image; its checkpoints, the newest first."""
    with pytest.raises(Interrupted):
        train_in(root, clip, short_config(**changes), SignalsOnce(open_images(SOURCE), signal.SIGTERM, at=at))
    return sorted((root / "train" / checkpoint.FOLDER).iterdir(), reverse=True)


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, clip: SplitCLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    _, unbroken = train_in(tmp_path / "unbroken", clip, short_config())
    newest, before = interrupted(tmp_path / "broken", clip, checkpoint_steps=4)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    _, resumed = train_in(tmp_path / "broken", clip, short_config(checkpoint_steps=4))
    printed = capsys.readouterr().err
    assert f"{newest} is damaged" in printed
    assert "going on after step 4 of 12" in printed
    assert before.stem == "000000004"
    assert final_bytes(resumed) == final_bytes(unbroken)
    assert timeless(resumed) == timeless(unbroken)


def test_where_all_checkpoints_are_damaged_nothing_is_overwritten(tmp_path: Path, clip: SplitCLIP) -> None:
    for path in interrupted(tmp_path, clip, checkpoint_steps=2):
        path.write_bytes(path.read_bytes()[:-1])
    held = {path: path.read_bytes() for path in (tmp_path / "train").rglob("*") if path.is_file()}
    with pytest.raises(DamagedCheckpoints, match="--overwrite"):
        train_in(tmp_path, clip, short_config())
    kept = {path: content for path, content in held.items() if path.name not in ("config.toml", ".sums", ".lock")}
    assert all(path.read_bytes() == content for path, content in kept.items())
    _, stage = train_in(tmp_path, clip, short_config(), overwrite=True)
    assert stage.finished


RESUMED: dict[str, dict[str, object]] = {
    "topk-auxk-shuffled": {"variant": "topk", "k": 4, "dead_term": "auxk", "shuffle": 3, "tokens_per_image": 3},
    "batchtopk-resampled": {"variant": "batchtopk", "k": 4, "dead_term": "resample", "resample_every": 2},
    "jumprelu-standardised": {"variant": "jumprelu", "l0": 0.1, "normalise": "standardise", "init": "data"},
    "gated-accumulated": {"variant": "gated", "accumulate": 2, "clip_gradient": 0.5, "start_batches": 2},
    "matryoshka-published": {"variant": "matryoshka", "k": 4, "prefixes": (0.25, 1.0), "loss": "published"},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RESUMED)
def test_every_recipe_goes_on_with_the_same_bits(tmp_path: Path, clip: SplitCLIP, recipe: str) -> None:
    changes = RESUMED[recipe]
    _, unbroken = train_in(tmp_path / "unbroken", clip, short_config(**changes))
    interrupted(tmp_path / "broken", clip, **changes)
    _, resumed = train_in(tmp_path / "broken", clip, short_config(**changes))
    assert final_bytes(resumed) == final_bytes(unbroken)
    assert timeless(resumed) == timeless(unbroken)


@pytest.fixture
def folder_with_a_bad_image(tmp_path: Path) -> Path:
    dataset = open_images(SOURCE)
    for i in range(8):
        folder = tmp_path / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset.sample(i).image.save(folder / f"{i}.png")
    (tmp_path / "images" / "class1" / "3.png").write_bytes(b"no picture")
    return tmp_path / "images"


def test_bad_images_stop_or_are_left_out_and_reported(
    tmp_path: Path, clip: SplitCLIP, folder_with_a_bad_image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = open_images(folder_with_a_bad_image)
    with pytest.raises(BadImage, match=r"3\.png"):
        train_in(tmp_path / "run", clip, short_config(total_images=16), images)
    _, stage = train_in(tmp_path / "run", clip, short_config(total_images=16, on_bad_image="skip"), images)
    bad = next(i for i in range(8) if images.ids(i).endswith("3.png"))
    order = train_order(8, 20, short_config().seed)
    assert stage.metrics()[-1]["images"] == 16 - int((order[4:] == bad).sum()) < 16
    assert "3.png" in stage.load_json("section")["html"]
    printed = capsys.readouterr().err
    assert "1 of 8 images could not be read" in printed
    assert printed.count("3.png") == 1


@pytest.mark.parametrize("changes", [{"tokens_per_image": 6}, {"accumulate": 5}])
def test_settings_that_are_refused_do_not_begin_the_stage(
    tmp_path: Path, clip: SplitCLIP, changes: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="expected at"):
        train_in(tmp_path, clip, short_config(**changes))
    train_in(tmp_path, clip, short_config(total_images=4))


def test_a_first_batch_without_images_is_an_error(tmp_path: Path, clip: SplitCLIP) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the images of the first batch"):
        train_in(tmp_path / "run", clip, short_config(on_bad_image="skip"), open_images(folder))


def test_the_result_does_not_depend_on_workers(tmp_path: Path, clip: SplitCLIP) -> None:
    _, alone = train_in(tmp_path / "alone", clip, short_config(total_images=16))
    _, helped = train_in(tmp_path / "helped", clip, short_config(total_images=16), workers=2)
    assert final_bytes(alone) == final_bytes(helped)


def test_grey_and_large_pictures_are_trained_on_like_any_other(tmp_path: Path, clip: SplitCLIP) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(np.full((40, 90), 60 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    _, stage = train_in(tmp_path / "run", clip, short_config(total_images=8), open_images(tmp_path / "images"))
    assert stage.metrics()[-1]["images"] == 8
