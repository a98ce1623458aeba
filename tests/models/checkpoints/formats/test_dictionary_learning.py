"""dictionary_learning's files, written by hand at D 3 and S 5, against its formulas in numpy; and ours for it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patchsae import load_sae
from patchsae.disk import archives
from patchsae.models.checkpoints import understood, write
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests import malice

D, S, K, N = 3, 5, 2, 60
LINEAR = {"encoder.weight": (S, D), "encoder.bias": (S,), "decoder.weight": (D, S)}
PLAIN = {"W_enc": (D, S), "b_enc": (S,), "W_dec": (S, D), "b_dec": (D,)}
GATED = {"decoder_bias": (D,), "r_mag": (S,), "gate_bias": (S,), "mag_bias": (S,)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": {**LINEAR, "bias": (D,)},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": (D,)},
    "AutoEncoderTopK": {**LINEAR, "b_dec": (D,)},
    "BatchTopKSAE": {**LINEAR, "b_dec": (D,)},
    "MatryoshkaBatchTopKSAE": PLAIN,
    "MatroyshkaBatchTopKSAE": PLAIN,
    "GatedAutoEncoder": {name: shape for name, shape in {**LINEAR, **GATED}.items() if name != "encoder.bias"},
    "JumpReluAutoEncoder": PLAIN,
}
BATCHED = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "MatroyshkaBatchTopKSAE")
Array = NDArray[np.float64]


def tensors(kind: str, threshold: float = 0.4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES[kind].items()}
    if kind in ("AutoEncoderTopK", *BATCHED):
        found |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    if kind.startswith("Mat"):
        found["group_sizes"] = torch.tensor([2, 3])
    if kind == "JumpReluAutoEncoder":
        found["threshold"] = torch.tensor([-1.0, 0.0, 0.3, 0.5, 2.0])
    return found


def save(folder: Path, kind: str, content: Any = None, **said: Any) -> Path:
    """A folder as theirs; ``config=False`` leaves the configuration out."""
    folder.mkdir(exist_ok=True)
    torch.save(tensors(kind) if content is None else content, folder / "ae.pt")
    if said.pop("config", True):
        trainer = {"trainer_class": "X", "dict_class": kind, "activation_dim": D, "dict_size": S, "lm_name": "tiny"}
        trainer |= {"k": K} if kind in ("AutoEncoderTopK", *BATCHED) else {}
        buffer = {"d_submodule": D, "io": said.pop("io", "out")}
        trainer |= {"layer": 4, "submodule_name": "resid_post_layer_4"} | said
        trainer = {key: value for key, value in trainer.items() if value != "absent"}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
    return folder


def theirs(x: Array, kind: str, w: dict[str, torch.Tensor]) -> tuple[Array, Array]:
    v = {name: tensor.numpy().astype(np.float64) for name, tensor in w.items()}
    bias = next(v[name] for name in ("b_dec", "bias", "decoder.bias", "decoder_bias") if name in v)
    W_enc = v["encoder.weight"].T if "encoder.weight" in v else v["W_enc"]
    W_dec = v["decoder.weight"].T if "decoder.weight" in v else v["W_dec"]
    inner = x if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - bias
    pre = inner @ W_enc
    if kind == "GatedAutoEncoder":
        z = (pre + v["gate_bias"] > 0) * np.maximum(np.exp(v["r_mag"]) * pre + v["mag_bias"], 0)
    else:
        z = np.maximum(pre + v["encoder.bias" if "encoder.bias" in v else "b_enc"], 0)
        if kind == "AutoEncoderTopK":
            z = np.where(z >= -np.sort(-z, axis=1)[:, K - 1 : K], z, 0)
        elif "threshold" in v:
            z = np.where(z > v["threshold"], z, 0)
    return z, z @ W_dec + bias


def tokens() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.5


def answers_as(sae: SparseAutoencoder, kind: str, w: dict[str, torch.Tensor], factor: float = 1.0) -> None:
    x = tokens()
    latents, y = theirs(x.numpy().astype(np.float64) / factor, kind, w)
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y * factor, atol=2e-5 * factor)
    assert (latents > 0).any()
    assert (latents == 0).any()


def quietly(path: Path, **answers: Any) -> SparseAutoencoder:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_sae(path, "cpu", **answers)


@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_file_answers_as_its_class_does(tmp_path: Path, kind: str) -> None:
    answers_as(quietly(save(tmp_path / "ae", kind)), kind, tensors(kind))


@pytest.mark.parametrize("kind", ["AutoEncoder", "MatryoshkaBatchTopKSAE", "GatedAutoEncoder"])
def test_tensors_of_one_class_alone_need_no_configuration(tmp_path: Path, kind: str) -> None:
    sae = quietly(save(tmp_path / "ae", kind, config=False))
    answers_as(sae, kind, tensors(kind))
    assert sae.config.metadata["variant"] == kind


def test_weights_in_half_precision_are_widened(tmp_path: Path) -> None:
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors("AutoEncoderTopK").items()}
    answers_as(
        quietly(save(tmp_path / "ae", "AutoEncoderTopK", half)),
        "AutoEncoderTopK",
        {k: v.float() for k, v in half.items()},
    )


def test_what_was_saved_in_training_has_the_configuration_above(tmp_path: Path) -> None:
    save(tmp_path, "JumpReluAutoEncoder")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_500.pt")
    answers_as(quietly(tmp_path / "checkpoints" / "ae_500.pt"), "JumpReluAutoEncoder", tensors("JumpReluAutoEncoder"))
    answers_as(quietly(tmp_path / "checkpoints"), "JumpReluAutoEncoder", tensors("JumpReluAutoEncoder"))


def test_without_a_configuration_topk_and_batchtopk_are_the_same(tmp_path: Path) -> None:
    path, w = save(tmp_path / "ae", "BatchTopKSAE", config=False), tensors("BatchTopKSAE")
    with pytest.warns(
        UserWarning, match=r"taken as topk 2. threshold=0.400000006 \(that of the file\) decides for the"
    ):
        answers_as(load_sae(path, "cpu"), "AutoEncoderTopK", w)
    answers_as(quietly(path, threshold=0.400000006), "BatchTopKSAE", w)
    answers_as(quietly(path, k=K), "AutoEncoderTopK", w)
    assert quietly(path, k=3).config.k == 3


@pytest.mark.parametrize("kind", BATCHED)
def test_a_threshold_that_was_never_set_keeps_all_that_are_positive(tmp_path: Path, kind: str) -> None:
    w = tensors(kind, threshold=-1.0)
    path = save(tmp_path / "ae", kind, w)
    with pytest.warns(UserWarning, match="threshold was not set in training; taken as keeping every positive latent"):
        sae = load_sae(path, "cpu")
    assert sae.config.activation == "relu"
    answers_as(sae, kind, w)
    answers_as(quietly(path, threshold=0.7), kind, w | {"threshold": torch.tensor(0.7)})
    assert quietly(path, k=K).config.k == K


def test_a_threshold_is_strict(tmp_path: Path) -> None:
    w = tensors("BatchTopKSAE", threshold=0.5) | {"encoder.weight": torch.zeros(S, D)}
    w["encoder.bias"] = torch.tensor([0.5, 0.5, 0.50001, 0.4, 0.6])
    kept = quietly(save(tmp_path / "ae", "BatchTopKSAE", w)).encode(torch.zeros(1, D)).to_dense()
    assert (kept > 0).tolist() == [[False, False, True, False, True]]
    unset = save(tmp_path / "unset", "BatchTopKSAE", w | {"threshold": torch.tensor(-1.0)})
    answered = quietly(unset, threshold=0.5).encode(torch.zeros(1, D)).to_dense()
    assert (answered > 0).tolist() == [[True, True, True, False, True]]


def test_a_token_keeps_fewer_than_k_where_fewer_are_positive(tmp_path: Path) -> None:
    w = tensors("AutoEncoderTopK") | {"encoder.bias": torch.full((S,), -3.0)}
    sae = quietly(save(tmp_path / "ae", "AutoEncoderTopK", w))
    z = sae.encode(tokens()).to_dense()
    assert bool((z >= 0).all())
    assert bool(((z > 0).sum(1) < K).any())
    answers_as(sae, "AutoEncoderTopK", w)


def test_files_of_before_the_threshold(tmp_path: Path) -> None:
    w = {name: tensor for name, tensor in tensors("AutoEncoderTopK").items() if name not in ("k", "threshold")}
    answers_as(quietly(save(tmp_path / "ae", "AutoEncoderTopK", w)), "AutoEncoderTopK", w)
    bare = save(tmp_path / "bare", "AutoEncoderTopK", w, k="absent")
    with pytest.raises(ValueError, match=r"ae\.pt: it does not say how many latents a token keeps; k= decides it"):
        load_sae(bare, "cpu")
    answers_as(quietly(bare, k=K), "AutoEncoderTopK", w)


@pytest.mark.parametrize("with_config", [True, False])
def test_a_file_to_go_on_training_from(tmp_path: Path, with_config: bool) -> None:
    kind = "JumpReluAutoEncoder" if with_config else "GatedAutoEncoder"
    state = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    saved: dict[str, Any] = {"step": 7, "ae": tensors(kind), "optimizer": state}
    saved |= {"config": {"dict_class": kind, "lm_name": "tiny", "layer": 1}, "norm_factor": 3.5} if with_config else {}
    sae = quietly(save(tmp_path / "ae", kind, saved, config=False))
    answers_as(sae, kind, tensors(kind), 3.5 if with_config else 1.0)
    assert sae.config.metadata.get("input") == ("x / 3.5" if with_config else None)
    assert sae.config.metadata.get("layer") == (1 if with_config else None)


@pytest.mark.parametrize("factor", [0, -1.0, "3", True, float("nan"), 10**400])
def test_a_factor_that_is_none_is_refused(tmp_path: Path, factor: object) -> None:
    saved = {"step": 7, "ae": tensors("AutoEncoder"), "optimizer": {}, "norm_factor": factor}
    with pytest.raises(ValueError, match=r"ae\.pt: norm_factor is .*; expected a positive number"):
        load_sae(save(tmp_path / "ae", "AutoEncoder", saved, config=False), "cpu")


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        (
            "AutoEncoder",
            {"dict_class": "IdentityDict"},
            "holds dictionary_learning's IdentityDict, which this patchsae",
        ),
        ("AutoEncoder", {"dict_class": "CrossCoder"}, "holds dictionary_learning's CrossCoder, which this patchsae"),
        ("AutoEncoder", {"dict_class": ["x"]}, "this patchsae does not; it reads AutoEncoder, AutoEncoderNew"),
        ("AutoEncoder", {"io": "in_and_out"}, "holds a transcoder, which reconstructs another activation"),
        ("AutoEncoder", {"dict_class": "GatedAutoEncoder"}, "has no decoder_bias"),
        ("AutoEncoderNew", {"dict_class": "absent"}, "does not say its dict_class, and holds encoder.weight"),
        ("AutoEncoderTopK", {"k": 3}, r"ae\.pt: k is 2, and its configuration says 3"),
        ("AutoEncoderTopK", {"k": "all"}, r"ae\.pt: k is 2, and its configuration says all"),
        ("AutoEncoder", {"dict_size": 10**12}, "dict_size is 1000000000000, and the tensors have S = 5"),
        ("AutoEncoder", {"activation_dim": True}, "activation_dim is True, and the tensors have D = 3"),
    ],
)
def test_a_configuration_that_says_otherwise_is_refused(
    tmp_path: Path, kind: str, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path / "ae", kind, **said), "cpu")


@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        ("AutoEncoder", "bias", torch.full((D,), torch.nan), "bias has 3 entries that are NaN"),
        ("AutoEncoder", "decoder.weight", torch.zeros(S, D), r"\(5, 3\); expected \[D, S\] = \(3, 5\): transpose it"),
        ("AutoEncoder", "encoder.bias", torch.zeros(S, dtype=torch.int64), "encoder.bias has dtype int64"),
        ("AutoEncoder", "k", torch.tensor(3), "also holds k; expected encoder.weight"),
        ("BatchTopKSAE", "threshold", torch.zeros(S), r"threshold has shape \(5,\)"),
        ("BatchTopKSAE", "threshold", torch.tensor(torch.nan), "threshold has 1 entries that are NaN"),
        ("AutoEncoderTopK", "k", torch.tensor(2.0), "k has shape .* dtype torch.float32; expected one integer"),
        ("AutoEncoderTopK", "k", torch.tensor([2, 2]), r"k has shape \(2,\)"),
        ("MatryoshkaBatchTopKSAE", "group_sizes", torch.tensor([2, 2]), "group_sizes add up to 4; .* S = 5"),
        ("MatryoshkaBatchTopKSAE", "group_sizes", torch.tensor([2j, 3]), "group_sizes add up to torch.complex64"),
        ("GatedAutoEncoder", "r_mag", torch.full((S,), 1000.0), "NaN or infinite"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(
    tmp_path: Path, kind: str, name: str, values: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load_sae(save(tmp_path / "ae", kind, tensors(kind) | {name: values}), "cpu")
    assert "ae.pt" in str(refused.value)


@pytest.mark.parametrize("k", [6, 0])
def test_a_k_that_no_token_can_keep_is_refused(tmp_path: Path, k: int) -> None:
    w = tensors("AutoEncoderTopK") | {"k": torch.tensor(k)}
    with pytest.raises(ValueError, match=rf"ae\.pt.* k(=| is ){k}; expected"):
        load_sae(save(tmp_path / "ae", "AutoEncoderTopK", w, k=k), "cpu")


@pytest.mark.parametrize("name", list(malice.payloads(Path("unused"))))
def test_nothing_in_it_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", save(tmp_path / "ae", "AutoEncoder")
    (path / "ae.pt").write_bytes(malice.archive(malice.payloads(marker)[name][1]))
    with pytest.raises(archives.UnsafeFileError, match=r"ae\.pt asks for"):
        load_sae(path, "cpu")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ({}, "tiny, output of block 4, tokens not said"),
        ({"lm_name": "openai/clip-vit-base-patch16"}, "ViT-B-16-quickgelu openai, output of block 4, tokens not said"),
        (
            {"lm_name": "", "layer": "", "submodule_name": ""},
            "a tower that is not said, a block that is not said, tokens",
        ),
        ({"submodule_name": "mlp_out"}, "tiny, mlp_out, tokens not said"),
        ({"submodule_name": None}, "tiny, output of block 4, tokens not said"),
        ({"io": "in"}, "tiny, the input of resid_post_layer_4, tokens not said"),
    ],
)
def test_what_was_understood_is_said(
    tmp_path: Path, said: dict[str, Any], end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = load_sae(save(tmp_path / "ae", "JumpReluAutoEncoder", **said), "cpu")
    line = "dictionary_learning JumpReluAutoEncoder: jumprelu, D 3, S 5; b_dec not subtracted, tokens as they are; "
    assert capsys.readouterr().err.startswith(f"sae: {line}{end}")
    assert understood.line(sae.config).startswith(f"{line}{end}")


def ours(activation: str, unit: bool = False, **metadata: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    config = SAEConfig(D, S, activation, K if activation.startswith("topk") else None, metadata)
    state = {name: torch.randn(shape, generator=generator) for name, shape in config.shapes.items()}
    if unit:
        state["W_dec"] /= state["W_dec"].norm(dim=1, keepdim=True)
    if "threshold" in state:
        state["threshold"] = torch.tensor([0.0, 0.1, 0.5, 0.7, 0.2])
    return SparseAutoencoder.from_tensors(config, state)


def one_threshold() -> SparseAutoencoder:
    sae = ours("jumprelu", l0=K)
    sae.threshold.fill_(0.3)
    return sae


@pytest.mark.parametrize(
    ("sae", "kind", "is_exact"),
    [
        (ours("relu", unit=True), "AutoEncoder", True),
        (ours("relu"), "JumpReluAutoEncoder", False),
        (ours("topk"), "AutoEncoderTopK", True),
        (ours("jumprelu"), "JumpReluAutoEncoder", False),
        (one_threshold(), "BatchTopKSAE", True),
        (ours("jumprelu", l0=K), "JumpReluAutoEncoder", False),
    ],
)
def test_ours_come_back(tmp_path: Path, sae: SparseAutoencoder, kind: str, is_exact: bool) -> None:
    write(sae, tmp_path / "ae", "dictionary_learning")
    back, x = quietly(tmp_path / "ae"), tokens()
    assert back.config.metadata["variant"] == kind
    assert (back.config.activation, back.config.k) == (sae.config.activation, sae.config.k)
    expected, found = sae.encode(x).to_dense(), back.encode(x).to_dense()
    if is_exact:
        assert torch.equal(found, expected)
        assert torch.equal(back(x), sae(x))
    else:
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(back(x), sae(x), atol=5e-6, rtol=0)
    answers_as(sae, kind, torch.load(tmp_path / "ae" / "ae.pt"))


def test_a_file_of_ours_is_what_their_loader_takes(tmp_path: Path) -> None:
    write(ours("topk", model="ViT-B-16", pretrained="openai", layer=10, tokens="all"), tmp_path, "dictionary_learning")
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["k"], trainer["lm_name"], trainer["layer"]) == (
        "AutoEncoderTopK",
        K,
        "ViT-B-16",
        10,
    )
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    assert {name: (tuple(t.shape), t.dtype) for name, t in state.items()} == {
        **{name: (shape, torch.float32) for name, shape in SHAPES["AutoEncoderTopK"].items()},
        "k": ((), torch.int32),
        "threshold": ((), torch.float32),
    }
    assert state["threshold"] == -1
    back = load_sae(tmp_path, "cpu").config.metadata
    assert {key: back[key] for key in ("model", "pretrained", "layer", "tokens")} == {
        "model": "ViT-B-16",
        "pretrained": "openai",
        "layer": 10,
        "tokens": "all",
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SAEConfig(D, S, "topk_no_relu", K), "cannot hold the activation topk_no_relu; it holds relu, topk, jumprelu"),
        (
            SAEConfig(D, S, normalise="layer_norm"),
            r"cannot hold what this SAE does to its input \(each token layer-nor",
        ),
        (SAEConfig(D, S, soft_cap=2.0), r"cannot hold latents that are capped \(soft_cap=2\)"),
    ],
)
def test_what_no_class_of_theirs_is_stays_unwritten(tmp_path: Path, config: SAEConfig, message: str) -> None:
    with pytest.raises(ValueError, match=f"dictionary_learning {message}"):
        write(SparseAutoencoder(config), tmp_path / "ae", "dictionary_learning")
    assert not (tmp_path / "ae").exists()


def test_a_tensor_among_settings_says_nothing(tmp_path: Path) -> None:
    config = {"dict_class": "AutoEncoder", "k": torch.zeros(3), "layer": torch.zeros(2)}
    torch.save({"step": 7, "ae": tensors("AutoEncoder"), "optimizer": {}, "config": config}, tmp_path / "ae.pt")
    assert load_sae(tmp_path / "ae.pt", "cpu").config.activation == "relu"


@pytest.mark.parametrize("k", [0, -3, True, "3"])
def test_a_k_that_is_none_is_refused(tmp_path: Path, k: object) -> None:
    content = {name: value for name, value in tensors("BatchTopKSAE").items() if name != "k"}
    with pytest.raises(ValueError, match=f"k is {k}; expected an integer of at least 1"):
        load_sae(save(tmp_path / "ae", "BatchTopKSAE", content, k=k), "cpu")


def test_behind_a_line_of_json_it_is_not_its_own(tmp_path: Path) -> None:
    with (tmp_path / "ae.pt").open("wb") as file:
        file.write(b'{"schema": 5, "cfg": {"activation": {"cls": "Relu", "params": {}}}}\n')
        torch.save(tensors("AutoEncoder"), file)
    with pytest.raises(ValueError, match="has no W_enc; expected W_enc, b_enc, W_dec, b_dec"):
        load_sae(tmp_path / "ae.pt", "cpu")
