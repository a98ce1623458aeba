"""MSAE's files, written by hand at D 3 and S 5, against its formula in numpy."""

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

D, S = 3, 5
SCALING = 0.37
DATASET = "cc3m_ViT-L~14_train_image_2905936_3"


def state(tied: bool = False, jump: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"pre_bias": (D,), "encoder": (D, S), "latent_bias": (S,), "decoder": (S, D)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if tied:
        del made["decoder"]
    made["latents_activation_frequency"] = torch.zeros(S, dtype=torch.int64)
    return made | ({"activation.log_threshold": torch.linspace(-1, 0.3, S)} if jump else {})


def mean() -> Tensor:
    return torch.tensor([0.5, -1.0, 2.0])


def write(folder: Path, name: str, model: dict[str, Tensor] | None = None, **more: Any) -> Path:
    table = {"model": state() if model is None else model, "mean_center": mean(), "scaling_factor": SCALING}
    path = folder / name
    torch.save(table | {"target_norm": 1.7} | more, path)
    return path


def named(activation: str, tied: bool = False, normalize: bool = False, cap: float = 0.0) -> str:
    return f"{S}_{D}_{activation}_{tied}_{normalize}_{cap}_{DATASET}.pth"


def theirs(
    x: np.ndarray, keeps: str, k: int = 0, cap: float = 0.0, normalize: bool = False, **more: Any
) -> tuple[np.ndarray, np.ndarray]:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state(**more).items()}
    centre, scaling = (np.zeros(D), 1.0) if normalize else (mean().numpy().astype(np.float64), SCALING)
    u = (x - centre) * scaling
    mu, std = u.mean(1, keepdims=True), u.std(1, ddof=1, keepdims=True)
    pre = ((u - mu) / (std + 1e-5) if normalize else u) - w["pre_bias"]
    pre = pre @ w["encoder"] + w["latent_bias"]
    z = pre if keeps == "all" else np.maximum(pre, 0)
    if "activation.log_threshold" in w:
        z = np.where(z > np.exp(w["activation.log_threshold"]), z, 0)
    if k:
        order, kept = np.argsort(-z, axis=1)[:, :k], np.zeros_like(z)
        np.put_along_axis(kept, order, np.take_along_axis(z, order, 1), 1)
        z = kept
    z = cap * np.tanh(z / cap) if cap else z
    y = z @ w.get("decoder", w["encoder"].T) + w["pre_bias"]
    return z, (y * std + mu if normalize else y) / scaling + centre


def close(path: Path, expected: tuple[np.ndarray, np.ndarray], **more: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = load_sae(path, "cpu", **more)
    z = sae.encode(tokens())
    np.testing.assert_allclose(z.to_dense().detach().numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), expected[1], atol=2e-5)


def tokens() -> Tensor:
    return 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(1))


def wide() -> np.ndarray:
    return tokens().numpy().astype(np.float64)


@pytest.mark.parametrize(
    ("activation", "keeps", "k", "answers"),
    [
        ("ReLU_003", "positive", 0, {}),
        ("ReLU", "positive", 0, {}),
        ("TopKReLU_2_RW", "positive", 0, {}),
        ("TopKReLU_2_UW", "positive", 2, {"k": 2}),
        ("BatchTopKReLU_2", "positive", 3, {"k": 3}),
        ("TopK_4", "all", 4, {}),
        ("BatchTopK_4", "all", 4, {}),
        ("BatchTopK_4", "all", 1, {"k": 1}),
    ],
)
def test_a_file_answers_as_msae_does(tmp_path: Path, activation: str, keeps: str, k: int, answers: dict) -> None:
    close(write(tmp_path, named(activation)), theirs(wide(), keeps, k), **answers)


def test_a_tied_decoder_a_cap_and_thresholds_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, named("TopKReLU_2", tied=True, cap=0.8), state(tied=True))
    close(path, theirs(wide(), "positive", cap=0.8, tied=True))
    close(write(tmp_path, named("JumpReLU", cap=3.0), state(jump=True)), theirs(wide(), "positive", cap=3.0, jump=True))


def test_what_equals_a_threshold_is_not_kept(tmp_path: Path) -> None:
    model = state(jump=True) | {"encoder": torch.ones(D, S), "activation.log_threshold": torch.zeros(S)}
    model |= {"latent_bias": torch.zeros(S), "pre_bias": torch.zeros(D)}
    path = write(tmp_path, named("JumpReLU"), model, mean_center=torch.zeros(D), scaling_factor=1.0)
    x = torch.tensor([[1.0, 0.0, 0.0], [1 + 2**-23, 0.0, 0.0]])
    assert (load_sae(path, "cpu").encode(x).to_dense() > 0).sum(1).tolist() == [0, S]


def test_tokens_that_are_not_centred_may_be_layer_normed(tmp_path: Path) -> None:
    name, plain = named("ReLU_003", normalize=True), {"mean_center": torch.zeros(D), "scaling_factor": 1.0}
    close(write(tmp_path, name, **plain), theirs(wide(), "positive", normalize=True))
    with pytest.raises(ValueError, match=r"layer-norms tokens that were centred and scaled \(scaling_factor=0\.37\)"):
        load_sae(write(tmp_path, name, mean_center=torch.zeros(D)), "cpu")
    with pytest.raises(ValueError, match="layer-norms tokens that were centred and scaled"):
        load_sae(write(tmp_path, name, scaling_factor=1), "cpu")


@pytest.mark.filterwarnings("ignore:.*which alone says whether it layer-norms:UserWarning")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (named("TopKReLU_2_RW"), "its authors use a TopKReLU of k 2 with all positive latents"),
        (named("BatchTopKReLU_2"), "its authors use a BatchTopKReLU of k 2 with all positive latents"),
        (named("BatchTopK_4"), "its k of 4 is a whole batch's mean; taken as the 4 largest of each token"),
        ("sae.pth", r"which alone says which latents a token keeps; taken as relu\. k=K keeps"),
    ],
)
def test_what_the_name_leaves_open_is_warned_of_until_it_is_decided(tmp_path: Path, name: str, said: str) -> None:
    path = write(tmp_path, name)
    with pytest.warns(UserWarning, match=said):
        load_sae(path, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*which alone says whether it layer-norms")
        assert load_sae(path, "cpu", threshold=0.5).config.activation == "jumprelu"


def test_another_name_is_read_by_its_tensors(tmp_path: Path) -> None:
    path = write(tmp_path, "sae.pth", state(tied=True, jump=True))
    with pytest.warns(UserWarning, match="whether it layer-norms tokens and caps latents; taken as neither"):
        sae = load_sae(path, "cpu")
    assert sae.config.activation == "jumprelu"
    close(path, theirs(wide(), "positive", tied=True, jump=True))


@pytest.mark.parametrize("activation", ["ReLU_003", "TopK_4"])
def test_a_name_that_decides_takes_no_argument(tmp_path: Path, activation: str) -> None:
    path = write(tmp_path, named(activation))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_sae(path, "cpu")
    with pytest.raises(ValueError, match="leaves nothing to decide there"):
        load_sae(path, "cpu", k=2)
    with pytest.raises(ValueError, match=r"says itself what it encodes: \(x - mean_center\) scaling_factor"):
        load_sae(path, "cpu", mean=0.0)


@pytest.mark.parametrize(
    ("name", "model", "more", "message"),
    [
        (named("TopKabsReLU_2"), state(), {}, "holds a TopKabsReLU SAE, which keeps latents by their size"),
        (named("BatchTopKabs_2"), state(), {}, "holds a BatchTopKabs SAE"),
        (named("Identity"), state(), {}, r"latents are all kept \(Identity\)"),
        (named("TopK_6"), state(), {}, "k=6; expected 1 <= k <= d_sae = 5"),
        (named("TopK"), state(), {}, "k=None with activation='topk_no_relu'"),
        (f"6{named('ReLU')[1:]}", state(), {}, "S in its name is 6, and the tensors have S = 5"),
        (named("ReLU", tied=True), state(), {}, "also holds decoder"),
        (named("ReLU"), state(tied=True), {}, "has no decoder"),
        (named("ReLU"), state(jump=True), {}, r"also holds activation\.log_threshold"),
        (named("JumpReLU"), state(), {}, r"has no activation\.log_threshold"),
        (named("ReLU"), state(), {"scaling_factor": 0.0}, r"scaling_factor is 0\.0; expected a positive number"),
        (named("ReLU"), state(), {"scaling_factor": True}, "scaling_factor is True"),
        (named("ReLU"), state(), {"scaling_factor": float("nan")}, "scaling_factor is nan"),
        (named("ReLU"), state(), {"scaling_factor": torch.ones(2)}, "scaling_factor is tensor"),
        (named("ReLU"), state(), {"scaling_factor": 1e-300}, "NaN or infinite"),
        (named("ReLU"), state(), {"mean_center": 0.0}, "has no mean_center"),
        (named("ReLU"), state(), {"mean_center": torch.zeros(D + 1)}, r"mean_center has shape \(4,\)"),
        (named("ReLU"), state() | {"encoder": torch.zeros(S, D)}, {}, "latent_bias has shape"),
        (named("ReLU"), state() | {"decoder": torch.full((S, D), torch.nan)}, {}, "15 entries that are NaN"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, model: dict, more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"\.pth.*{message}"):
        load_sae(write(tmp_path, name, model, **more), "cpu")


def test_nothing_in_it_runs(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / named("ReLU")
    pickled = b"\x80\x02}" + malice.text("target_norm") + malice.payloads(marker)["eval"][1][2:-1] + b"s."
    path.write_bytes(malice.archive(pickled))
    with pytest.raises(ValueError, match=r"\.pth asks for __builtin__\.eval"):
        load_sae(path, "cpu")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:.*with all positive latents:UserWarning")
def test_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = load_sae(write(tmp_path, named("TopKReLU_2_RW", cap=1.5)), "cpu")
    assert capsys.readouterr().err.startswith(
        "sae: msae TopKReLU_2_RW: relu, capped at 1.5, D 3, S 5; b_dec subtracted, (x - mean_center) scaling_factor; "
        "ViT-L-14-quickgelu openai, a block that is not said, image embeddings"
    )
    assert sae.config.soft_cap == 1.5
    text = load_sae(write(tmp_path, named("ReLU").replace("_image_", "_text_")), "cpu")
    assert "tokens" not in text.config.metadata
