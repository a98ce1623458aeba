from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patchsae import load_sae
from patchsae.disk import archives
from patchsae.models.checkpoints.formats import patchsae_pt
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests import malice

D, S = 6, 20
NAMES = list(malice.payloads(Path("unused")))


@pytest.fixture
def released() -> Iterator[dict[str, type]]:
    """The released configuration classes, importable under their names while a file is written; gone afterwards."""
    module = types.ModuleType("src.sae_training.config")
    classes = {}
    for name in ("ViTSAERunnerConfig", "Config"):
        classes[name] = type(name, (), {"__module__": module.__name__})
        setattr(module, name, classes[name])
    parents = {name: types.ModuleType(name) for name in ("src", "src.sae_training")}
    sys.modules.update({**parents, module.__name__: module})
    yield classes
    for name in (*parents, module.__name__):
        del sys.modules[name]


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, S), "b_enc": (S,), "W_dec": (S, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | changes


def settings(target: Any, **changes: Any) -> Any:
    values = {
        "model_name": "openai/clip-vit-base-patch16",
        "block_layer": -2,
        "d_in": D,
        "d_sae": S,
        "l1_coefficient": 8e-5,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "gated_sae": False,
        "class_token": True,
        "store_size": None,
    }
    vars(target).update(values | changes)
    return target


def write(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        sys.modules[name] = None  # any import of it from here on fails
    return path


@pytest.mark.parametrize("key", ["cfg", "config"])
@pytest.mark.parametrize("class_name", ["ViTSAERunnerConfig", "Config"])
def test_a_released_file_is_read_without_its_classes(
    tmp_path: Path, released: dict[str, type], key: str, class_name: str
) -> None:
    weights = state()
    config = settings(released[class_name](), nested=settings(released["Config"]()))
    sae = load_sae(write(tmp_path / "out.pt", {key: config, "state_dict": weights}))
    assert (sae.config.d_in, sae.config.d_sae, sae.config.activation) == (D, S, "relu")
    assert sae.config.metadata["model"] == "ViT-B-16-quickgelu"
    assert sae.config.metadata["pretrained"] == "openai"
    assert (sae.config.metadata["layer"], sae.config.metadata["l1_coefficient"]) == (-2, 8e-5)
    for name, tensor in weights.items():
        assert torch.equal(getattr(sae, name), tensor)
    assert sae.W_enc.stride() == (1, D)


def test_what_is_read_can_be_saved_in_our_format(tmp_path: Path, released: dict[str, type]) -> None:
    config = settings(released["Config"]())
    sae = load_sae(write(tmp_path / "out.pt", {"cfg": config, "state_dict": state()}))
    sae.save(tmp_path / "ours")
    again = load_sae(tmp_path / "ours")
    assert again.config == sae.config
    assert torch.equal(again.W_enc, sae.W_enc)


def test_a_plain_dict_and_missing_sizes_will_do(tmp_path: Path) -> None:
    torch.save({"config": {"model_name": "other"}, "state_dict": state()}, tmp_path / "out.pt")
    sae = load_sae(tmp_path)  # the only .pt of a directory
    assert (sae.config.d_in, sae.config.d_sae, sae.config.metadata["model"]) == (D, S, "other")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_file_runs_and_what_it_asks_for_is_named(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    wanted, pickled = malice.payloads(marker)[name]
    (tmp_path / "sae.pt").write_bytes(malice.archive(pickled))
    allowed = patchsae_pt.CONFIG_CLASSES
    first = next(item for item in archives.asked_for(pickled) if item not in allowed)
    with pytest.raises(archives.UnsafeFileError) as refusal:
        load_sae(tmp_path / "sae.pt")
    assert f"asks for {first}," in str(refusal.value)
    assert wanted.rpartition(".")[2] in pickled.decode("latin-1") or wanted.startswith("copyreg")
    assert not marker.exists()


def test_a_config_class_with_its_own_setstate_runs_none_of_it(tmp_path: Path, released: dict[str, type]) -> None:
    marker = tmp_path / "marker"
    released["Config"].__setstate__ = lambda self, state: marker.touch()  # type: ignore[attr-defined]
    config = settings(released["Config"]())
    sae = load_sae(write(tmp_path / "out.pt", {"cfg": config, "state_dict": state()}))
    assert sae.config.d_sae == S
    assert not marker.exists()


def test_a_malicious_entry_beside_good_weights_is_refused(tmp_path: Path, released: dict[str, type]) -> None:
    import os

    marker = tmp_path / "marker"
    config = settings(released["Config"](), extra=malice.Reduced(os.system, malice.command(marker)))
    write(tmp_path / "out.pt", {"cfg": config, "state_dict": state()})
    with pytest.raises(archives.UnsafeFileError, match=r"asks for posix\.system"):
        load_sae(tmp_path / "out.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": state()}, r"holds state_dict without a configuration, which no format has"),
        ({"cfg": {}}, r"holds cfg without a configuration, which no format has"),
        ([1], "holds a list, which no format has"),
        ({"cfg": 3, "state_dict": state()}, "holds cfg, state_dict without"),
        ({"cfg": {"gated_sae": True}, "state_dict": state()}, "gated SAE"),
        ({"cfg": {}, "state_dict": {**state(), "r_mag": torch.ones(S)}}, "r_mag"),
        (
            {"cfg": {"d_in": D, "d_sae": S}, "state_dict": state(W_dec=torch.ones(D, S))},
            r"W_dec has shape \(6, 20\); expected \[S, D\] = \(20, 6\): transpose it",
        ),
        ({"cfg": {"d_in": "six"}, "state_dict": state()}, "d_in='six'"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_fn_str": "topk"},
        {"activation": "topk"},
        {"k": 2},
        {"activation_fn_kwargs": {"k": 2}},
        {"architecture": "gated"},
        {"normalize_activations": "layer_norm"},
        {"apply_b_dec_to_input": False},
    ],
)
def test_settings_of_other_projects_are_not_passed_over(tmp_path: Path, settings: dict) -> None:
    state = SparseAutoencoder(SAEConfig(3, 5)).state_dict()
    torch.save({"cfg": settings, "state_dict": dict(state)}, tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is .*, which no released SAE has"):
        load_sae(tmp_path / "sae.pt", "cpu")


def test_a_tensor_among_settings_says_nothing(tmp_path: Path) -> None:
    state = SparseAutoencoder(SAEConfig(3, 5)).state_dict()
    torch.save({"cfg": {"gated_sae": torch.zeros(3)}, "state_dict": dict(state)}, tmp_path / "sae.pt")
    assert load_sae(tmp_path / "sae.pt", "cpu").config.d_sae == 5
