"""Universal SAE's checkpoints, written by hand at D 3 and S 5, against its formula in numpy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsae import load_sae
from tests import malice

D, S, K = 3, 5, 2
FINAL = "encoder.final_block"
SIZES = {
    f"{FINAL}.0.weight": (S, D),
    f"{FINAL}.0.bias": (S,),
    f"{FINAL}.1.weight": (S,),
    f"{FINAL}.1.bias": (S,),
    f"{FINAL}.1.running_mean": (S,),
    f"{FINAL}.1.running_var": (S,),
    "dictionary._weights": (S, D),
}


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SIZES.items()}
    counted = {f"{FINAL}.1.num_batches_tracked": torch.tensor(7)}
    return made | {f"{FINAL}.1.running_var": made[f"{FINAL}.1.running_var"].abs()} | counted


def write(path: Path, **more: Tensor) -> Path:
    optimiser = {"state": {0: {"exp_avg": torch.zeros(S, D)}}, "param_groups": [{"lr": 1e-3}]}
    record = {"epoch": 29, "model_state_dict": state() | more, "optimizer_state_dict": optimiser, "learning_rate": 1e-6}
    torch.save(record, path)
    return path


def theirs(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    w = {name.removeprefix(f"{FINAL}."): tensor.numpy().astype(np.float64) for name, tensor in state().items()}
    pre = (x @ w["0.weight"].T + w["0.bias"] - w["1.running_mean"]) / np.sqrt(w["1.running_var"] + 1e-5)
    codes = np.maximum(pre * w["1.weight"] + w["1.bias"], 0)
    z, order = np.zeros_like(codes), np.argsort(-codes, axis=1)[:, :k]
    np.put_along_axis(z, order, np.take_along_axis(codes, order, 1), 1)
    rows = w["dictionary._weights"]
    return z, z @ (rows / (np.sqrt((rows**2).sum(1, keepdims=True)) + 1e-8))


@pytest.mark.parametrize("k", [1, K, S])
def test_a_file_answers_as_universal_sae_does(tmp_path: Path, k: int) -> None:
    mean, std = -0.03, 2.2315
    x = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    latents, y = theirs((x.numpy().astype(np.float64) - mean) / std, k)
    sae = load_sae(write(tmp_path / "uni.pth"), "cpu", k=k, mean=mean, std=std)
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y * std + mean, atol=1e-5)


def test_k_and_the_input_are_not_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "uni.pth")
    with pytest.warns(UserWarning, match="model_mean and model_std"), pytest.warns(UserWarning, match="authors' 32"):
        sae = load_sae(path, "cpu")
    assert (sae.config.activation, sae.config.k) == ("topk", S)  # the 32 of its authors, and no more than there are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_sae(path, "cpu", k=K, mean=0.0, std=1.0)
        assert load_sae(path, "cpu", threshold=0.5, mean=0.0).config.activation == "jumprelu"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({f"{FINAL}.1.running_var": -torch.ones(S)}, "running_var has 5 negative entries"),
        ({f"{FINAL}.0.weight": torch.zeros(D, S)}, r"bias has shape \(5,\); expected \[S\] = \(3,\)"),
        ({"dictionary._weights": torch.full((S, D), torch.inf)}, "15 entries that are NaN or infinite"),
        ({"dictionary.scale": torch.tensor(0.0)}, r"also holds dictionary\.scale"),
        ({"encoder.weight": torch.zeros(S, D)}, "has the encoder untied; this patchsae reads mlp_bn_1, linear"),
        ({"encoder.mlp_blocks.0.0.weight": torch.zeros(D, D)}, "encoder with hidden layers"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"uni\.pth.*({message})"):
        load_sae(write(tmp_path / "uni.pth", **more), "cpu")


def test_an_optimiser_that_is_code_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "uni.pth"
    pickled = b"\x80\x02}" + malice.text("optimizer_state_dict") + malice.payloads(marker)["os.system"][1][2:-1] + b"s."
    path.write_bytes(malice.archive(pickled))
    with pytest.raises(ValueError, match=r"uni\.pth asks for posix\.system"):
        load_sae(path, "cpu")
    assert not marker.exists()


def test_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_sae(write(tmp_path / "uni.pth"), "cpu", k=K, mean=0.5, std=2.0)
    said = "sae: universal-sae mlp_bn_1: topk 2, D 3, S 5; no b_dec, (x - mean) / std; a tower that is not said"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_data_parallel_saved_is_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.final_block.0.weight": (5, 3), "encoder.final_block.0.bias": (5,), "dictionary._weights": (5, 3)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    x, found = torch.randn(9, 3, generator=generator), []
    for before in ("", "module."):
        content = {"epoch": 1, "model_state_dict": {f"{before}{name}": value for name, value in state.items()}}
        torch.save(content, tmp_path / "sae.pth")
        found.append(load_sae(tmp_path / "sae.pth", "cpu")(x))
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_archetypal_dictionary_is_fused(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    W, C, relax = torch.rand(5, 4, generator=g), torch.randn(4, 3, generator=g), torch.zeros(5, 3)
    state = {
        "encoder.final_block.0.weight": torch.randn(5, 3, generator=g),
        "encoder.final_block.0.bias": torch.ones(5),
    }
    state |= {"dictionary.W": W, "dictionary.C": C, "dictionary.Relax": relax}
    torch.save({"epoch": 1, "model_state_dict": state}, tmp_path / "sae.pth")
    torch.testing.assert_close(load_sae(tmp_path / "sae.pth", "cpu").W_dec.detach(), W / W.sum(1, keepdim=True) @ C)
