"""sae-ft's files, written by hand at D 3 and S 6, against its formula in numpy."""

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

D, S, K = 3, 6, 5


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"b_pre": (D,), "encoder.weight": (S, D), "decoder.weight": (D, S)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, **more: Any) -> Path:
    torch.save(state() | more, path)
    return path


def test_a_file_answers_as_sae_ft_does(tmp_path: Path) -> None:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state().items()}
    x = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    length = np.sqrt((x.numpy().astype(np.float64) ** 2).sum(1, keepdims=True)) + 1e-8
    pre = (x.numpy() / length - w["b_pre"]) @ w["encoder.weight"].T
    latents, order = np.zeros_like(pre), np.argsort(-pre, axis=1)[:, :K]
    np.put_along_axis(latents, order, np.take_along_axis(pre, order, 1), 1)
    y = (latents @ w["decoder.weight"].T + w["b_pre"]) * length  # theirs is that of x / length
    sae = load_sae(write(tmp_path / f"sae_2_{K}.pt"), "cpu")
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y, atol=2e-5)
    assert bool((z.values < 0).any())  # fewer than k pre-activations are positive somewhere


@pytest.mark.parametrize("name", ["sae_2_5.pt", "sae_DTD_2_5.pt"])
def test_a_name_with_the_right_size_says_k(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_sae(write(tmp_path / name), "cpu").config.k == K
    with pytest.raises(ValueError, match="leaves nothing to decide there"):
        load_sae(tmp_path / name, "cpu", k=2)


@pytest.mark.parametrize("name", ["sae.pt", "sae_3_5.pt", "other_2_5.pt"])
def test_any_other_name_says_none(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    with pytest.warns(UserWarning, match="only its name says k, .* taken as its authors' 32"):
        assert load_sae(path, "cpu").config.k == S  # no more than there are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_sae(path, "cpu", k=2).config
        assert (config.activation, config.k) == ("topk_no_relu", 2)
        assert load_sae(path, "cpu", threshold=0.1).config.activation == "jumprelu"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"encoder.bias": torch.zeros(S)}, r"also holds encoder\.bias"),
        ({"decoder.weight": torch.zeros(S, D)}, r"decoder\.weight has shape \(6, 3\); .*: transpose it"),
        ({"b_pre": torch.zeros(D, dtype=torch.complex64)}, "b_pre has dtype complex64"),
        ({"encoder.weight": torch.full((S, D), torch.nan)}, "18 entries that are NaN"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, more: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=rf"sae_2_5\.pt.*{message}"):
        load_sae(write(tmp_path / "sae_2_5.pt", **more), "cpu")


def test_a_k_beyond_the_latents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sae_2_7\.pt: k=7; expected 1 <= k <= d_sae = 6"):
        load_sae(write(tmp_path / "sae_2_7.pt"), "cpu")


def test_nothing_in_it_runs(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "sae_2_5.pt"
    pickled = b"\x80\x02}" + malice.text("b_pre") + malice.payloads(marker)["os.system"][1][2:-1] + b"s."
    path.write_bytes(malice.archive(pickled))
    with pytest.raises(ValueError, match=r"sae_2_5\.pt asks for posix\.system"):
        load_sae(path, "cpu")
    assert not marker.exists()


def test_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_sae(write(tmp_path / "sae_2_5.pt"), "cpu")
    said = (
        "sae: sae-ft SparseAutoencoderTopK: topk_no_relu 5, D 3, S 6; b_dec subtracted, each token scaled to length 1; "
    )
    assert capsys.readouterr().err.startswith(
        f"{said}a tower that is not said, a block that is not said, image embeddings"
    )
