"""saev's files, written by hand at D 3 and S 5, against its formulas in numpy."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchsae import load_sae
from patchsae.disk import archives
from patchsae.models import checkpoints
from patchsae.models.checkpoints import understood
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests import malice

D, S, K = 3, 5, 4
RELU = {"cls": "Relu", "params": {"key": "relu"}}
TOPK = {"cls": "TopK", "params": {"top_k": K}}
BATCHTOPK = {"cls": "BatchTopK", "params": {"top_k": 2}}


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, S), "b_enc": (S,), "W_dec": (S, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, header: dict[str, Any], **more: torch.Tensor) -> Path:
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(state() | more, file)
    return path


def header(activation: dict[str, Any], schema: int = 5) -> dict[str, Any]:
    return {"schema": schema, "cfg": {"d_model": D, "d_sae": S, "activation": activation}, "commit": "x", "lib": "1"}


def theirs(x: np.ndarray, kind: str, a: int, threshold: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state().items()}
    pre = (x - a * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = np.where(pre > max(threshold, 0), pre, 0)
    if kind == "topk":
        order = np.argsort(-pre, axis=1)[:, :K]
        z = np.zeros_like(pre)
        np.put_along_axis(z, order, np.take_along_axis(pre, order, 1), 1)
    return z, z @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize(
    ("record", "kind", "subtracts"),
    [
        ({"d_vit": D, "exp_factor": 5, "seed": 0}, "relu", None),
        ({"schema": 1, "cls": "Relu", "cfg": {"d_model": D, "d_sae": S}}, "relu", True),
        ({"schema": 1, "cls": "Relu", "cfg": {"d_model": D, "d_sae": S}}, "relu", False),
        (header(RELU, 2), "relu", None),
        (header(TOPK), "topk", None),
        (header(BATCHTOPK, 4), "batchtopk", None),
    ],
)
def test_a_file_answers_as_saev_does(tmp_path: Path, record: dict, kind: str, subtracts: bool | None) -> None:
    if "d_vit" in record:
        record = record | {"exp_factor": None}  # five latents are no multiple of three dimensions
    more = {"activation.threshold": torch.tensor(0.3)} if kind == "batchtopk" else {}
    path = write(tmp_path / "sae.pt", record, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = load_sae(path, "cpu", subtract_b_dec=subtracts)
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    a = int("schema" not in record if subtracts is None else subtracts)
    latents, y = theirs(x.numpy().astype(np.float64), kind, a, 0.3 if kind == "batchtopk" else 0.0)
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y, atol=1e-5)
    if kind == "topk":
        assert bool((z.values < 0).any())  # fewer than k pre-activations are positive somewhere


def test_what_the_file_leaves_open_is_warned_of_until_it_is_decided(tmp_path: Path) -> None:
    path = write(tmp_path / "sae.pt", {"schema": 1, "cls": "Relu", "cfg": {}})
    with pytest.warns(UserWarning, match="subtracted b_dec from its input until 2025-07-31"):
        load_sae(path, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_sae(path, "cpu", subtract_b_dec=False)
        load_sae(write(tmp_path / "new.pt", header(RELU)), "cpu")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (header(RELU, 9), "saev schema 9; this patchsae reads none and 1 to 5"),
        (header({"cls": "Gelu", "params": {}}), "activation Gelu"),
        (header({"cls": "TopK", "params": {"top_k": "all"}}), r"sae\.pt: k='all'; expected an integer"),
        (header(BATCHTOPK), "a BatchTopK SAE without activation.threshold, of before 2025-11-16"),
        ({"schema": 5, "cfg": 3}, "cfg of its header is 3; expected a table"),
        ({"schema": 5, "cfg": {"d_model": D, "d_sae": 10**12, "activation": RELU}}, "d_sae is 1000000000000, and the"),
    ],
)
def test_a_header_that_says_otherwise_is_refused(tmp_path: Path, record: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sae(write(tmp_path / "sae.pt", record), "cpu")


@pytest.mark.parametrize("name", list(malice.payloads(Path("unused"))))
def test_nothing_behind_the_header_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "sae.pt"
    path.write_bytes(json.dumps(header(RELU)).encode() + b"\n" + malice.archive(malice.payloads(marker)[name][1]))
    with pytest.raises(archives.UnsafeFileError, match=r"sae\.pt asks for"):
        load_sae(path, "cpu")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_download_that_was_cut_is_said(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "sae.pt", header(RELU))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"sae\.pt is a damaged zip archive .*download or copy it again"):
        load_sae(path, "cpu")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("W_enc", torch.full((D, S), torch.nan), "W_enc has 15 entries that are NaN"),
        ("W_dec", torch.zeros(D, S), r"W_dec has shape \(3, 5\); expected \[S, D\] = \(5, 3\): transpose it"),
        ("b_enc", torch.zeros(S, dtype=torch.int64), "b_enc has dtype int64"),
        ("extra", torch.zeros(1), "also holds extra; expected W_enc, b_enc, W_dec, b_dec"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, name: str, values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sae(write(tmp_path / "sae.pt", header(RELU), **{name: values}), "cpu")


def test_a_k_beyond_the_latents_is_all_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "sae.pt", header({"cls": "TopK", "params": {}}))  # saev's own default is 32
    assert load_sae(path, "cpu").config.k == S


def test_what_was_understood_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_sae(write(tmp_path / "sae.pt", header(RELU)), "cpu").save(tmp_path / "ours")
    line = "saev schema 5, relu: relu, D 3, S 5; b_dec not subtracted, tokens as they are"
    assert capsys.readouterr().err.startswith(f"sae: {line}")
    assert understood.line(load_sae(tmp_path / "ours", "cpu").config).startswith(line)


def test_our_own_sae_takes_no_mean(tmp_path: Path) -> None:
    SparseAutoencoder(SAEConfig(D, S)).save(tmp_path)
    with pytest.raises(ValueError, match="says itself what it encodes: tokens as they are"):
        load_sae(tmp_path, "cpu", mean=0.5)


def test_a_decided_file_takes_no_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leaves nothing to decide there: saev schema 5.* b_dec not subtracted"):
        load_sae(write(tmp_path / "sae.pt", header(RELU)), "cpu", subtract_b_dec=True)


def test_mean_and_deviation_are_folded(tmp_path: Path) -> None:
    mean, std = torch.tensor([0.5, -1.0, 2.0]), 1.7
    path = write(tmp_path / "sae.pt", header(RELU))
    sae = load_sae(path, "cpu", mean=mean, std=std)
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    latents, y = theirs(((x - mean) / std).numpy().astype(np.float64), "relu", 0)
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y * std + mean.numpy(), atol=1e-5)


@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("topk_no_relu", K), ("jumprelu", None)])
def test_what_is_written_is_read_as_the_same(tmp_path: Path, activation: str, k: int | None) -> None:
    sae = SparseAutoencoder(SAEConfig(D, S, activation, k)).requires_grad_(False)
    for tensor in (sae.b_enc, sae.b_dec):
        tensor.normal_(generator=torch.Generator().manual_seed(2))
    if activation == "jumprelu":
        sae.threshold.fill_(0.25)
    checkpoints.write(sae, tmp_path / "out", to="saev")
    again = load_sae(tmp_path / "out", "cpu")
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again.encode(x).to_dense(), sae.encode(x).to_dense(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again(x), sae(x), atol=1e-6, rtol=1e-5)


def test_what_is_written_subtracts_nothing(tmp_path: Path) -> None:
    """By saev's own formula: pre = x W_enc + b_enc."""
    sae = SparseAutoencoder(SAEConfig(D, S)).requires_grad_(False)
    sae.b_dec.fill_(0.7)
    checkpoints.write(sae, tmp_path, to="saev")
    with (tmp_path / "sae.pt").open("rb") as file:
        record = json.loads(file.readline())
        weights = torch.load(io.BytesIO(file.read()), weights_only=True)
    assert record["cfg"]["activation"] == {"cls": "Relu", "params": {}}
    x = torch.randn(40, D)
    latents = (x @ weights["W_enc"] + weights["b_enc"]).relu()
    torch.testing.assert_close(latents, sae.encode(x).to_dense())


@pytest.mark.parametrize(
    ("config", "thresholds", "message"),
    [
        (SAEConfig(D, S, "topk", 2), None, "its TopK keeps negative latents where fewer than k are positive"),
        (SAEConfig(D, S, "jumprelu"), torch.arange(S) / S, r"a threshold for each latent \(from 0 to 0.8\); it holds"),
        (SAEConfig(D, S, normalise="layer_norm"), None, "saev cannot hold what this SAE does to its input"),
    ],
)
def test_what_saev_cannot_hold_is_not_written(
    tmp_path: Path, config: SAEConfig, thresholds: torch.Tensor | None, message: str
) -> None:
    sae = SparseAutoencoder(config)
    if thresholds is not None:
        sae.threshold.copy_(thresholds)
    with pytest.raises(ValueError, match=message):
        checkpoints.write(sae, tmp_path / "out", to="saev")
    assert not (tmp_path / "out").exists()
