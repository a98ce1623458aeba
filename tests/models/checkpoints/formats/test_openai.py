"""Files of OpenAI's sparse_autoencoder, written by hand at D 3 and S 5, against its formulas in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from patchsae import load_sae
from patchsae.disk import archives
from patchsae.models.checkpoints import understood
from patchsae.models.sae import SparseAutoencoder
from tests import malice

D, S, N, K = 3, 5, 60, 3
Array = NDArray[np.float64]


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"pre_bias": (D,), "encoder.weight": (S, D), "latent_bias": (S,), "decoder.weight": (D, S)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, activation: str | None = "ReLU", after: Any = "ReLU", k: Any = K, **changes: Any) -> Path:
    """What its state_dict() holds; "absent" leaves an entry out."""
    content: dict[str, Any] = {
        **state(),
        "stats_last_nonzero": torch.zeros(S, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(S),
        "latents_mean_square": torch.full((S,), torch.nan),  # of no token
        "activation_state_dict": {"k": k, "postact_fn": after} if activation == "TopK" else {},
        **({} if activation is None else {"activation": activation}),
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    torch.save(
        {name: value for name, value in content.items() if not isinstance(value, str) or value != "absent"}, path
    )
    return path


def theirs(x: Array, activation: str = "ReLU", after: str = "ReLU", tied: bool = False) -> tuple[Array, Array]:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state().items()}
    mean, scale = np.zeros((len(x), 1)), np.ones((len(x), 1))
    u = x
    if activation == "TopK":
        mean, scale = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
        u = (x - mean) / (scale + 1e-5)
    z = (u - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    if activation == "TopK":
        z[z < np.sort(z, axis=1)[:, -K, None]] = 0
    if activation == "ReLU" or (activation == "TopK" and after == "ReLU"):
        z = np.maximum(z, 0)
    y = z @ (w["encoder.weight"] if tied else w["decoder.weight"].T) + w["pre_bias"]
    return z, y * scale + mean


def require_as(sae: SparseAutoencoder, **how: Any) -> Array:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 2 + 1
    latents, y = theirs(x.numpy().astype(np.float64), **how)
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y, atol=1e-5)
    return latents


@pytest.mark.parametrize(
    ("activation", "after"), [("ReLU", "ReLU"), ("Identity", "ReLU"), ("TopK", "ReLU"), ("TopK", "Identity")]
)
def test_a_file_answers_as_openais_code_does(tmp_path: Path, activation: str, after: str) -> None:
    sae = load_sae(write(tmp_path / "0.pt", activation, after), "cpu")
    latents = require_as(sae, activation=activation, after=after)
    if activation == "TopK":
        few = ((latents > 0).sum(1) < K).any()  # fewer than k are positive somewhere
        assert bool(few)
        assert bool((latents < 0).any()) == (after == "Identity")


@pytest.mark.filterwarnings("ignore:.*names no activation")
def test_a_file_that_names_no_activation_has_relu(tmp_path: Path) -> None:
    require_as(load_sae(write(tmp_path / "0.pt", None, activation_state_dict="absent"), "cpu"), activation="ReLU")


def test_files_without_statistics_are_read(tmp_path: Path) -> None:
    gone = dict.fromkeys(("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"), "absent")
    require_as(load_sae(write(tmp_path / "0.pt", **gone), "cpu"))


def test_settings_that_are_saved_twice_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "0.pt", "TopK", activation__k=K, activation__postact_fn="ReLU")
    require_as(load_sae(path, "cpu"), activation="TopK")


@pytest.mark.parametrize("again", ["absent", state()["encoder.weight"]])
def test_a_tied_decoder_is_the_encoder(tmp_path: Path, again: Any) -> None:
    path = write(tmp_path / "0.pt", "TopK", decoder__weight="absent", decoder__linear__weight=again)
    sae = load_sae(path, "cpu")
    require_as(sae, activation="TopK", tied=True)
    assert sae.config.metadata["variant"] == "TopK, tied"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"activation": "JumpReLU"}, "the activation JumpReLU; this patchsae reads ReLU, Identity and TopK"),
        ({"activation": torch.zeros(2)}, r"the activation tensor\(\[0., 0.\]\); this patchsae reads"),
        (
            {"activation": "TopK", "after": "TopK"},
            "postact_fn of its TopK is TopK; this patchsae reads ReLU and I",
        ),
        ({"activation": "TopK", "after": ["ReLU"]}, r"postact_fn of its TopK is \['ReLU'\]"),
        ({"activation": "TopK", "k": 0}, "k=0; expected 1 <= k <= d_sae = 5"),
        ({"activation": "TopK", "k": 6}, "k=6; expected 1 <= k <= d_sae = 5"),
        ({"activation": "TopK", "k": True}, "k=True; expected an integer"),
        ({"activation": "TopK", "activation_state_dict": "absent"}, "activation_state_dict is None; expected k and"),
        ({"activation": "TopK", "activation_state_dict": {"k": 1}}, r"activation_state_dict is \{'k': 1\}; expected k"),
        ({"decoder__weight": torch.zeros(S, D)}, r"decoder.weight has shape \(5, 3\); .*\(3, 5\): transpose it"),
        ({"decoder__linear__weight": torch.zeros(S, D)}, "also holds decoder.linear.weight"),
        ({"encoder__weight": torch.full((S, D), torch.nan)}, "encoder.weight has 15 entries that are NaN"),
        ({"latent_bias": torch.zeros(S + 1)}, r"latent_bias has shape \(6,\); expected \[S\] = \(5,\)"),
        ({"pre_bias": torch.zeros(D, dtype=torch.int64)}, "pre_bias has dtype int64"),
        ({"latent_bias": "zero"}, "has no latent_bias"),
    ],
)
def test_what_it_cannot_be_is_refused(tmp_path: Path, how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        load_sae(write(tmp_path / "0.pt", **how), "cpu")
    assert "0.pt" in str(refusal.value)


def test_it_leaves_nothing_to_decide(tmp_path: Path) -> None:
    path = write(tmp_path / "0.pt")
    for answer in ({"k": 2}, {"threshold": 0.5}, {"subtract_b_dec": False}):
        with pytest.raises(ValueError, match="leaves nothing to decide there: openai ReLU"):
            load_sae(path, "cpu", **answer)
    with pytest.raises(ValueError, match="says itself what it encodes: tokens as they are"):
        load_sae(path, "cpu", mean=0.5)


def test_a_file_that_begins_with_json_is_not_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "0.pt")
    path.write_bytes(b'{"d_vit": 3, "exp_factor": 2}\n' + path.read_bytes())
    with pytest.raises(ValueError, match="has no W_enc; expected W_enc, b_enc, W_dec, b_dec"):
        load_sae(path, "cpu")


@pytest.mark.parametrize("name", list(malice.payloads(Path("unused"))))
def test_nothing_in_a_file_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "0.pt"
    hidden = malice.payloads(marker)[name][1].removeprefix(b"\x80\x02")
    path.write_bytes(malice.archive(b"\x80\x02}" + malice.text("activation") + hidden))
    with pytest.raises(archives.UnsafeFileError, match=r"0\.pt asks for"):
        load_sae(path, "cpu")
    assert not marker.exists()


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    end = "a tower that is not said, a block that is not said, tokens not said"
    assert understood.line(load_sae(write(tmp_path / "0.pt", "TopK"), "cpu").config) == (
        f"openai TopK: topk 3, D 3, S 5; b_dec subtracted, each token layer-normed; {end}"
    )
    assert understood.line(load_sae(write(tmp_path / "1.pt"), "cpu").config) == (
        f"openai ReLU: relu, D 3, S 5; b_dec subtracted, tokens as they are; {end}"
    )


def test_a_file_that_names_no_activation_asks(tmp_path: Path) -> None:
    shapes = {"pre_bias": (3,), "encoder.weight": (5, 3), "latent_bias": (5,), "decoder.weight": (3, 5)}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="it names no activation; taken as ReLU"):
        assert load_sae(tmp_path, "cpu").config.activation == "relu"
    sae = load_sae(tmp_path, "cpu", k=2)
    assert (sae.config.activation, sae.config.k) == ("topk", 2)
    assert load_sae(tmp_path, "cpu", threshold=0.5).config.activation == "jumprelu"
    (tmp_path / "config.json").write_text('{"activation": "topk", "k": 2}')
    with pytest.raises(ValueError, match=r"config\.json has the activation topk; files of OpenAI's name theirs"):
        load_sae(tmp_path, "cpu")
