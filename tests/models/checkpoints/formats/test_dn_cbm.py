"""DN-CBM's files, written by hand at D 3 and S 5, against its formula in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsae import load_sae
from tests import malice

D, S = 3, 5
BEFORE, AFTER = "pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference"


def state(components: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"tied_bias": (D,), "encoder._weight": (S, D), "encoder._bias": (S,), "decoder._weight": (D, S)}
    return {name: torch.randn(components, *shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, tensors: dict[str, Any]) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("form", ["plain", "aliases", "no dimension of components"])
def test_a_file_answers_as_dn_cbm_does(tmp_path: Path, form: str) -> None:
    tensors = state()
    w = {name: tensor[0].numpy().astype(np.float64) for name, tensor in tensors.items()}
    if form == "aliases":
        tensors |= {BEFORE: tensors["tied_bias"], AFTER: tensors["tied_bias"]}
    if form == "no dimension of components":
        tensors = {name: tensor[0] for name, tensor in tensors.items()}
    x = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    latents = np.maximum((x.numpy() - w["tied_bias"]) @ w["encoder._weight"].T + w["encoder._bias"], 0)
    sae = load_sae(write(tmp_path / "sae.pt", tensors), "cpu")
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    y = latents @ w["decoder._weight"].T + w["tied_bias"]
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (state(2), "holds the SAEs of 2 places in a model; this patchsae reads those of one"),
        (state() | {BEFORE: torch.zeros(1, D)}, r"pre_encoder_bias\._bias_reference is not tied_bias"),
        (state() | {AFTER: torch.zeros(1, D)}, r"post_decoder_bias\._bias_reference is not tied_bias"),
        (state() | {"decoder._weight": torch.zeros(1, S, D)}, r"shape \(1, 5, 3\); expected \[C, D, S\] = \(1, 3, 5\)"),
        (state() | {"tied_bias": torch.full((1, D), torch.nan)}, "3 entries that are NaN"),
        (state() | {"encoder._weight": torch.tensor(1.0)}, r"encoder\._weight has shape \(\)"),
        ({name: value for name, value in state().items() if name != "tied_bias"}, "has no tied_bias"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=rf"sae\.pt.*{message}"):
        load_sae(write(tmp_path / "sae.pt", tensors), "cpu")


def test_it_leaves_nothing_open(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = write(tmp_path / "sae.pt", state())
    load_sae(path, "cpu")
    assert not recwarn.list
    for given in ({"k": 2}, {"subtract_b_dec": True}, {"mean": 0.0}):
        with pytest.raises(ValueError, match=r"leaves nothing to decide|says itself what it encodes"):
            load_sae(path, "cpu", **given)


def test_nothing_in_it_runs(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "sae.pt"
    pickled = b"\x80\x02}" + malice.text("encoder._weight") + malice.payloads(marker)["os.system"][1][2:-1] + b"s."
    path.write_bytes(malice.archive(pickled))
    with pytest.raises(ValueError, match=r"sae\.pt asks for posix\.system"):
        load_sae(path, "cpu")
    assert not marker.exists()


def test_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_sae(write(tmp_path / "sae.pt", state()), "cpu")
    said = "sae: dn-cbm: relu, D 3, S 5; b_dec subtracted, tokens as they are; a tower that is not said, a block "
    assert capsys.readouterr().err.startswith(f"{said}that is not said, image embeddings")
