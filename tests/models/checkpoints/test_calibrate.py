"""What files leave open, decided by tokens on which the truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patchsae.models.checkpoints.calibrate import calibrate
from patchsae.models.checkpoints.format import Answers
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

D, N = 6, 500


def pairs(b_dec: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """An autoencoder without error on tokens about b_dec: two latents a dimension, one for each sign."""
    eye = torch.eye(D)
    W_dec = torch.cat([eye, -eye])
    return {"W_enc": W_dec.T * scale, "b_enc": torch.zeros(2 * D), "W_dec": W_dec / scale, "b_dec": b_dec}


def tokens(mean: Tensor, deviation: float) -> Tensor:
    return mean + deviation * torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def saev(path: Path, state: dict[str, Tensor], schema: int = 1) -> Path:
    activation = {"activation": {"cls": "Relu", "params": {}}} if schema > 1 else {}
    with path.open("wb") as file:
        file.write(json.dumps({"schema": schema, "cls": "Relu", "cfg": activation}).encode() + b"\n")
        torch.save(state, file)
    return path


@pytest.mark.parametrize("subtracted", [True, False])
def test_the_meaning_of_b_dec_is_found(tmp_path: Path, subtracted: bool) -> None:
    mean = torch.tensor([3.0, -2.0, 1.0, 4.0, -5.0, 2.0])
    state = pairs(mean)
    if not subtracted:
        state["b_enc"] = -mean @ state["W_enc"]
    sae, readings = calibrate(saev(tmp_path / "sae.pt", state), tokens(mean, 0.5))
    assert [reading.subtract_b_dec for reading in readings] == [subtracted, not subtracted]
    assert readings[0].fvu < 1e-6 < 1 < readings[1].fvu
    assert readings[0].l0 == pytest.approx(D)
    x = tokens(mean, 0.5)
    torch.testing.assert_close(sae(x), x)
    assert sae.config.metadata["b_dec"] == ("b_dec subtracted" if subtracted else "b_dec not subtracted")
    assert str(sae.config.metadata["calibrated"]).startswith(str(sae.config.metadata["b_dec"]))


def test_a_file_that_says_everything_is_measured_as_it_is(tmp_path: Path) -> None:
    sae, readings = calibrate(saev(tmp_path / "sae.pt", pairs(torch.zeros(D)), schema=5), tokens(torch.zeros(D), 1.0))
    assert [reading.said for reading in readings] == ["as the file says"]
    assert readings[0].fvu < 1e-6
    assert "calibrated" not in sae.config.metadata


def test_what_is_known_is_not_tried_otherwise(tmp_path: Path) -> None:
    path = saev(tmp_path / "sae.pt", pairs(torch.ones(D)))
    _, readings = calibrate(path, tokens(torch.ones(D), 1.0), answers=Answers(subtract_b_dec=False))
    assert len(readings) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(4, D + 1), r"tokens has shape \(4, 7\); expected \[N, D\] with D = 6"),
        (torch.zeros(1, D), "N of at least 2"),
        (torch.zeros(4, D), "tokens are all the same"),
        (torch.full((4, D), torch.nan), "not finite"),
    ],
)
def test_tokens_that_decide_nothing_are_refused(tmp_path: Path, given: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(saev(tmp_path / "sae.pt", pairs(torch.zeros(D))), given)


def test_one_of_ours_needs_no_decision(tmp_path: Path) -> None:
    SparseAutoencoder(SAEConfig(D, 2 * D)).save(tmp_path)
    assert len(calibrate(tmp_path, tokens(torch.zeros(D), 1.0))[1]) == 1


def test_the_mean_and_deviation_of_the_input_are_found(tmp_path: Path) -> None:
    """A SAE that reconstructs u as it is up to 3, and no further: relu(u) - relu(u - 3), for each sign."""
    width = 16
    eye = torch.eye(width)
    rows = torch.cat([eye, -eye, eye, -eye])
    weights = {
        "encoder.weight": rows,
        "encoder.bias": torch.cat([torch.zeros(2 * width), torch.full((2 * width,), -3.0)]),
    }
    torch.save(weights | {"decoder.weight": torch.cat([rows[: 2 * width], -rows[2 * width :]])}, tmp_path / "sae.pt")
    said = {"input_dim": width, "hidden_dim": 4 * width, "activation": "batchtopk", "threshold": 0.05}
    (tmp_path / "config.json").write_text(json.dumps(said))
    mean = 100 * eye[0]  # beyond 3 in whatever units leave it where it is
    x = mean + 3 * torch.randn(N, width, generator=torch.Generator().manual_seed(0))
    sae, readings = calibrate(tmp_path, x)
    assert len(readings) == 4
    assert readings[0].said == "minus the mean token, over the deviation about it"
    assert readings[0].fvu < 0.01
    assert isinstance(readings[0].mean, Tensor)
    torch.testing.assert_close(readings[0].mean.float(), x.mean(0))
    assert readings[0].std == pytest.approx(float((x - x.mean(0)).square().mean().sqrt()), rel=1e-5)
    assert sae.config.metadata["input"] == "(x - mean) / std"


def test_what_tokens_do_not_decide_is_warned_of(tmp_path: Path) -> None:
    state = pairs(torch.zeros(D))
    weights = {"encoder.weight": state["W_enc"].T.contiguous(), "encoder.bias": state["b_enc"]}
    torch.save(weights | {"dictionary._weights": state["W_dec"]}, tmp_path / "sae.pt")
    with pytest.warns(UserWarning, match="does not say which latents a token keeps; taken as relu"):
        calibrate(tmp_path / "sae.pt", tokens(torch.zeros(D), 1.0))
