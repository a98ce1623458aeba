"""ViT-Prisma's files in its three layouts, written by hand at D 3 and S 6, against its formulas in numpy."""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray

from patchsae import load_sae
from patchsae.disk import archives
from patchsae.models.checkpoints import understood
from tests import malice

D, S, N, K = 3, 6, 60, 4
MODULE = "vit_prisma.sae.config"
DATACOMP = "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
Array = NDArray[np.float64]


def state(gated: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, S), "b_enc": (S,), "W_dec": (S, D), "b_dec": (D,)}
    shapes |= {"b_gate": (S,), "b_mag": (S,), "r_mag": (S,)} if gated else {}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def settings(**changes: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "model_name": DATACOMP,
        "hook_point_layer": 9,
        "layer_subtype": "hook_resid_post",
        "use_patches_only": False,
        "cls_token_only": False,
        "architecture": "standard",
        "d_in": D,
        "expansion_factor": 2,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "normalize_activations": "layer_norm",
        "is_transcoder": False,
        "transcoder_with_skip_connection": True,  # its default, which says nothing without the former
        "_dtype": "float32",
    }
    return {name: value for name, value in (said | changes).items() if value != "absent"}


def beside(folder: Path, weights: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    """A state dict, and config.json."""
    gated = changes.get("architecture") == "gated"
    torch.save(state(gated) if weights is None else weights, folder / "n_images_2600058.pt")
    (folder / "config.json").write_text(json.dumps(settings(**changes)))
    return folder


@pytest.fixture
def prisma() -> Iterator[type]:
    """The class of its configuration, importable while a file is written; gone afterwards."""
    parents = {name: types.ModuleType(name) for name in ("vit_prisma", "vit_prisma.sae")}
    module = types.ModuleType(MODULE)
    written = type("VisionModelSAERunnerConfig", (), {"__module__": MODULE})
    module.VisionModelSAERunnerConfig = written  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in (*parents, MODULE)}
    sys.modules.update({**parents, MODULE: module})
    yield written
    for name, held in before.items():
        sys.modules.pop(name, None)
        if held is not None:
            sys.modules[name] = held


def within(path: Path, class_: type, **changes: Any) -> Path:
    """One file with the pickled object, whose module nobody can import afterwards."""
    config = class_()
    vars(config).update(settings(**changes) | {"_device": torch.device("cpu"), "seen": torch.ones(2)})
    torch.save({"cfg": config, "state_dict": state()}, path)
    sys.modules[MODULE] = None  # type: ignore[assignment]
    return path


def theirs(x: Array, how: str | None, kind: str = "relu", gated: bool = False) -> tuple[Array, Array]:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state(gated).items()}
    mean, scale, u = np.zeros((len(x), 1)), np.ones((len(x), 1)), x
    if how == "layer_norm":
        mean, scale = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
        u = (x - mean) / (scale + 1e-5)
    if how == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(D)
        u = x / scale
    u = u - w["b_dec"]
    if gated:
        pre = u @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"]
        z = np.where(u @ w["W_enc"] + w["b_gate"] > 0, np.maximum(pre, 0), 0)
    else:
        z = np.maximum(u @ w["W_enc"] + w["b_enc"], 0)
    if kind == "topk":
        z[z < np.sort(z, axis=1)[:, -K, None]] = 0
    if kind == "tanh-relu":
        z = np.tanh(z)
    return z, (z @ w["W_dec"] + w["b_dec"]) * scale + mean


def answers_as(path: Path, expected: tuple[Array, Array]) -> None:
    sae = load_sae(path, "cpu")
    z = sae.encode(tokens())
    np.testing.assert_allclose(z.to_dense().detach().numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), expected[1], atol=1e-5)


def tokens() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 3 + 0.5


def seen() -> Array:
    return tokens().numpy().astype(np.float64)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale", "none", None])
@pytest.mark.parametrize("kind", ["relu", "topk", "tanh-relu"])
def test_a_state_dict_beside_its_configuration_answers_as_prisma_does(
    tmp_path: Path, how: str | None, kind: str
) -> None:
    more = {"k": K} if kind == "topk" else {}
    path = beside(tmp_path, normalize_activations=how, activation_fn_str=kind, activation_fn_kwargs=more)
    latents, y = theirs(seen(), how, kind)
    assert kind != "topk" or bool(((latents > 0).sum(1) < K).any())  # fewer than k are positive somewhere
    answers_as(path, (latents, y))


@pytest.mark.parametrize("kind", ["relu", "tanh-relu"])
def test_a_gated_one_answers_as_prisma_does(tmp_path: Path, kind: str) -> None:
    path = beside(tmp_path, architecture="gated", activation_fn_str=kind)
    answers_as(path, theirs(seen(), "layer_norm", kind, gated=True))
    assert load_sae(path, "cpu").config.activation == "jumprelu"


def test_a_configuration_in_the_file_is_read_without_its_class(tmp_path: Path, prisma: type) -> None:
    path = within(tmp_path / "sae.pt", prisma, cls_token_only=True, vit_model_cfg=prisma())
    answers_as(path, theirs(seen(), "layer_norm"))
    assert load_sae(path, "cpu").config.metadata["tokens"] == "cls"


def test_a_tensor_in_the_configuration_says_nothing(tmp_path: Path, prisma: type) -> None:
    path = within(tmp_path / "sae.pt", prisma, d_in=torch.zeros(2), d_sae=torch.zeros(2), model_name=torch.zeros(2))
    answers_as(path, theirs(seen(), "layer_norm"))


def test_that_in_the_file_counts_where_there_are_two(tmp_path: Path, prisma: type) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings(activation_fn_str="topk")))
    assert load_sae(within(tmp_path / "sae.pt", prisma), "cpu").config.activation == "relu"


def test_a_legacy_file_is_read_as_prisma_reads_it(tmp_path: Path) -> None:
    said = {"d_in": D, "d_sae": S, "hook_point": "blocks.9.hook_mlp_out", "model_name": "wkcn/TinyCLIP"}
    torch.save({"config": said, "autoencoder": {"state_dict": state()}}, tmp_path / "sae.pt")
    answers_as(tmp_path / "sae.pt", theirs(seen(), "layer_norm"))
    metadata = load_sae(tmp_path / "sae.pt", "cpu").config.metadata
    assert metadata["variant"] == "legacy, standard"
    assert metadata["hook"] == "blocks.9.hook_mlp_out"


def test_what_nothing_is_said_of_is_layer_normed_and_null_is_not(tmp_path: Path) -> None:
    assert load_sae(beside(tmp_path, normalize_activations="absent"), "cpu").config.normalise == "layer_norm"
    found = load_sae(beside(tmp_path, normalize_activations=None), "cpu").config
    assert (found.normalise, found.metadata["input"]) == ("none", understood.RAW)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"layer": 9, "tokens": "all"}),
        ({"hook_point_layer": [4]}, {"layer": 4}),
        ({"layer_subtype": "hook_resid_pre"}, {"layer": 8}),
        ({"hook_point_layer": 0, "layer_subtype": "hook_resid_pre"}, {"hook": "blocks.0.hook_resid_pre"}),
        ({"layer_subtype": "hook_mlp_out"}, {"hook": "blocks.9.hook_mlp_out"}),
        ({"layer_subtype": "ln2.hook_normalized"}, {"hook": "blocks.9.ln2.hook_normalized"}),
        ({"layer_subtype": "absent"}, {"layer": None, "hook": None}),
        ({"hook_point_layer": [3, 4], "hook_point": "blocks.3.hook_resid_post"}, {"layer": 3}),
        ({"layer_subtype": "absent", "hook_point": "blocks.3.hook_resid_post"}, {"layer": 3}),
        ({"cls_token_only": True}, {"tokens": "cls"}),
        ({"use_patches_only": True}, {"tokens": "patches"}),
        ({}, {"model": "ViT-B-32", "pretrained": "datacomp_xl_s13b_b90k"}),
        ({"model_name": "openai/clip-vit-base-patch32"}, {"model": "ViT-B-32-quickgelu", "pretrained": "openai"}),
        ({"model_name": "facebook/dino-vitb16"}, {"model": "facebook/dino-vitb16", "pretrained": None}),
        ({"model_name": "absent"}, {"model": None, "pretrained": None}),
        ({"model_name": ""}, {"model": None}),
    ],
)
def test_where_its_tokens_come_from_is_said_in_our_words(tmp_path: Path, changes: dict, expected: dict) -> None:
    metadata = load_sae(beside(tmp_path, **changes), "cpu").config.metadata
    assert {name: metadata.get(name) for name in expected} == expected


def test_names_of_laions_clips_are_those_of_open_clip(tmp_path: Path) -> None:
    """For all that open_clip lists, theirs is found or the name stays as it is."""
    weights = {
        str((open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub", "")).rstrip("/"): (model, tag)
        for model, tag in open_clip.list_pretrained()
    }
    laion = {name: tower for name, tower in weights.items() if name.startswith("laion/CLIP-ViT")}
    translated = 0
    for name, (model, tag) in laion.items():
        metadata = load_sae(beside(tmp_path, model_name=f"open-clip:{name}"), "cpu").config.metadata
        found = metadata["model"], metadata.get("pretrained")
        assert found in [(model, tag), (f"open-clip:{name}", None)]
        translated += found == (model, tag)
    assert translated > 0.8 * len(laion)


def test_a_k_that_is_not_said_is_asked_for(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, 66), "b_enc": (66,), "W_dec": (66, D), "b_dec": (D,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    path = beside(tmp_path, weights, expansion_factor=22, activation_fn_str="topk", activation_fn_kwargs=None)
    with pytest.warns(UserWarning, match="does not say its k; taken as ViT-Prisma's 64. k=K decides it"):
        assert load_sae(path, "cpu").config.k == 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_sae(path, "cpu", k=5).config.k == 5
    with pytest.raises(ValueError, match="k=5; .* leaves nothing to decide there: prisma standard: topk 4"):
        load_sae(beside(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": K}), "cpu", k=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_transcoder": True}, "holds a transcoder, which reconstructs another activation"),
        ({"architecture": "jumprelu"}, "the architecture jumprelu; this patchsae reads standard and gated"),
        ({"architecture": ["standard"]}, r"architecture is \['standard'\]; expected text"),
        ({"activation_fn_str": "leaky_relu"}, "the activation leaky_relu; this patchsae reads relu, tanh-relu and"),
        ({"activation_fn_str": "absent"}, "activation_fn_str is None; expected text"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": "all"}}, "k='all'; expected an integer"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}, "k=7; expected 1 <= k <= d_sae = 6"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 1, "postact_fn": "abs"}}, "expected k alone"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": [4]}, r"activation_fn_kwargs is \[4\]; expected k"),
        ({"architecture": "gated", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 1}}, "a gated SAE whose"),
        ({"normalize_activations": "batch"}, "normalize_activations is batch; expected null or one of none, layer_n"),
        ({"normalize_activations": 1}, "normalize_activations is 1; expected text"),
        ({"cls_token_only": True, "use_patches_only": True}, "cls_token_only and use_patches_only are both true"),
        ({"cls_token_only": "no"}, "cls_token_only is no; expected true or false"),
        ({"d_in": 4}, "d_in is 4, and the tensors have D = 3"),
        ({"expansion_factor": 3}, r"d_in \* expansion_factor is 9, and the tensors have S = 6"),
        ({"d_sae": 10**12}, "d_sae is 1000000000000, and the tensors have S = 6"),
    ],
)
def test_a_configuration_that_says_otherwise_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        load_sae(beside(tmp_path, **changes), "cpu")
    assert "n_images_2600058.pt" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("W_skip", torch.zeros(D, D), "holds a transcoder"),
        ("b_dec_out", torch.zeros(D), "holds a transcoder"),
        ("W_dec", torch.zeros(D, S), r"W_dec has shape \(3, 6\); expected \[S, D\] = \(6, 3\): transpose it"),
        ("W_enc", torch.full((D, S), torch.nan), "W_enc has 18 entries that are NaN"),
        ("b_enc", torch.zeros(S, dtype=torch.int64), "b_enc has dtype int64"),
        ("extra", torch.zeros(1), "also holds extra; expected W_enc, b_enc, W_dec, b_dec"),
        ("W_dec", 3, "has no W_dec"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, name: str, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sae(beside(tmp_path, state() | {name: values}), "cpu")


def test_what_is_none_of_the_three_is_not_read(tmp_path: Path, prisma: type) -> None:
    for content in (
        {"cfg": prisma(), "state_dict": 3},
        {"cfg": prisma, "state_dict": state()},
        {"config": {}, "autoencoder": {"state_dict": [1]}},
        {"config": {}, "autoencoder": {}},
    ):
        torch.save(content, tmp_path / "sae.pt")
        with pytest.raises(ValueError, match="which no format has"):
            load_sae(tmp_path / "sae.pt", "cpu")
    (tmp_path / "config.json").write_text(json.dumps(settings()))
    for content in ([1], {"W": torch.ones(2)}):
        torch.save(content, tmp_path / "sae.pt")
        with pytest.raises(ValueError, match=r"its configuration is config\.json, which no format has|holds a list"):
            load_sae(tmp_path / "sae.pt", "cpu")


def test_a_file_that_begins_with_json_is_not_its_own(tmp_path: Path) -> None:
    path = next(beside(tmp_path).glob("*.pt"))
    path.write_bytes(b'{"d_vit": 3, "exp_factor": 2}\n' + path.read_bytes())
    assert load_sae(path, "cpu", subtract_b_dec=True).config.metadata["format"] == "saev"


@pytest.mark.parametrize("name", list(malice.payloads(Path("unused"))))
def test_nothing_beside_the_configuration_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "sae.pt"
    hidden = malice.payloads(marker)[name][1].removeprefix(b"\x80\x02")
    object_ = b"cvit_prisma.sae.config\nVisionModelSAERunnerConfig\n)\x81}" + malice.text("x")
    path.write_bytes(malice.archive(b"\x80\x02}" + malice.text("cfg") + object_ + hidden))
    with pytest.raises(archives.UnsafeFileError, match=r"sae\.pt asks for"):
        load_sae(path, "cpu")
    assert not marker.exists()


def test_a_function_of_its_package_is_not_called(tmp_path: Path) -> None:
    call = b"\x80\x02cvit_prisma.sae.sae\nos.system\n" + malice.text(malice.command(tmp_path / "marker")) + b"\x85R."
    (tmp_path / "sae.pt").write_bytes(malice.archive(call))
    with pytest.raises(ValueError, match=r"sae\.pt"):
        load_sae(tmp_path / "sae.pt", "cpu")
    assert not (tmp_path / "marker").exists()


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    assert understood.line(load_sae(beside(tmp_path, use_patches_only=True), "cpu").config) == (
        "prisma standard: relu, D 3, S 6; b_dec subtracted, each token layer-normed; ViT-B-32 datacomp_xl_s13b_b90k, "
        "output of block 9, patches"
    )
    hooked = load_sae(beside(tmp_path, layer_subtype="hook_mlp_out"), "cpu").config
    assert understood.line(hooked).endswith("datacomp_xl_s13b_b90k, blocks.9.hook_mlp_out, all tokens")
