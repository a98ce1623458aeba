"""The configuration: the released values by default, wrong ones refused by name, and no torch needed to read it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from patchsae.training.config import TrainConfig


def test_defaults_are_the_released_run() -> None:
    config = TrainConfig()
    assert config.steps == 20_480
    assert (config.l1, config.lr, config.warm_up_steps, config.batch_size) == (8e-5, 4e-4, 500, 128)
    assert (config.expansion, config.dead_window, config.seed) == (64, 64, 42)
    assert (config.variant, config.loss, config.dead_term, config.init, config.start) == (
        "relu",
        "released",
        "ghost",
        "independent",
        "geometric-median",
    )
    assert (config.normalise, config.shuffle, config.tokens_per_image, config.cls_only) == ("none", 0, None, False)
    assert (config.accumulate, config.clip_gradient, config.start_batches, config.latent_shards) == (1, None, 1, 1)


def test_steps_are_rounded_up() -> None:
    assert [TrainConfig(batch_size=4, total_images=n).steps for n in (1, 4, 5)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("lr", 0.0),
        ("l1", -1e-5),
        ("start", "median"),
        ("on_bad_image", "warn"),
        ("log_every", 0),
        ("variant", "top-k"),
        ("loss", "mse"),
        ("dead_term", True),
        ("init", "kaiming"),
        ("normalise", "layer"),
        ("k", 0),
        ("accumulate", 0),
        ("keep_checkpoints", 0),
        ("bandwidth", 0.0),
        ("shuffle", -1),
        ("clip_gradient", 0.0),
        ("tokens_per_image", 0),
        ("prefixes", ()),
        ("prefixes", (0.5,)),
        ("prefixes", (0.5, 0.5, 1.0)),
        ("prefixes", (0.0, 1.0)),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"TrainConfig.{name} is {value!r}; expected")):
        TrainConfig(**{name: value})


def test_reading_the_configuration_imports_no_torch() -> None:
    code = "import sys, patchsae.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("mixing", [{"shuffle": 2}, {"tokens_per_image": 3}])
def test_tokens_out_of_their_places_have_no_cls_to_weigh(mixing: dict) -> None:
    with pytest.raises(ValueError, match=r"TrainConfig.cls_weight is 2.0; expected 1 with tokens_per_image or shuffle"):
        TrainConfig(cls_weight=2.0, **mixing)
    assert TrainConfig(cls_weight=1.0, **mixing).cls_weight == 1
