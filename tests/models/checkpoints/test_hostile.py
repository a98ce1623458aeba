"""Checkpoints that claim, hold or are something else: refused by name, in little memory, in few words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from patchsae import load_sae
from patchsae.disk.claims import FalseClaim
from patchsae.disk.runs import Run
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests import malice

D, S = 6, 20
SHAPES = {"W_enc": (D, S), "b_enc": (S,), "W_dec": (S, D), "b_dec": (D,)}


def weights(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} | changes


def write_ours(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    """A SAE of our format with other tensors and other entries of its configuration, the same in both copies."""
    record = {"format": "patchsae", "version": 1, "d_in": D, "d_sae": S, "activation": "relu", "k": None}
    text = json.dumps({**record, "metadata": {}, **changes})
    folder.mkdir()
    (folder / "config.json").write_text(text)
    save_file(tensors or weights(), folder / "sae.safetensors", metadata={"config": text})
    return folder


def write_pt(path: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    torch.save({"cfg": settings, "state_dict": tensors}, path)
    return path


@pytest.mark.parametrize("write", ["ours", "pt"])
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("W_enc", torch.zeros(D, S, dtype=torch.complex64), "W_enc has dtype complex64; expected real floating"),
        ("W_dec", torch.zeros(S, D, dtype=torch.int8), "W_dec has dtype int8; expected real floating"),
        ("b_enc", torch.zeros(S, dtype=torch.bool), "b_enc has dtype bool"),
        ("W_enc", torch.full((D, S), torch.nan), "W_enc has 120 entries that are NaN or infinite; expected finite"),
        ("b_dec", torch.tensor([1.0, torch.inf, 0, 0, -torch.inf, 0]), "b_dec has 2 entries that are NaN or infinite"),
        ("b_dec", torch.full((D,), 1e300, dtype=torch.float64), "b_dec has 6 entries .* infinite, in float32"),
        ("W_dec", torch.zeros(D, S), r"W_dec has shape \(6, 20\); .*transpose it"),
        ("b_enc", torch.zeros(()), r"b_enc has shape \(\)"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named_with_its_file(
    tmp_path: Path, write: str, name: str, values: torch.Tensor, message: str
) -> None:
    tensors = weights(**{name: values})
    ours = write == "ours"
    path = write_ours(tmp_path / "sae", tensors) if ours else write_pt(tmp_path / "sae.pt", tensors, d_in=D, d_sae=S)
    with pytest.raises(ValueError, match=message) as refusal:
        load_sae(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in weights().items()}
    for path in (write_ours(tmp_path / "sae", tensors), write_pt(tmp_path / "sae.pt", tensors)):
        assert torch.equal(load_sae(path, "cpu").W_enc, tensors["W_enc"].float())


def test_a_threshold_is_finite(tmp_path: Path) -> None:
    tensors = weights(threshold=torch.full((S,), torch.inf))
    with pytest.raises(ValueError, match="threshold has 20 entries that are NaN or infinite"):
        load_sae(write_ours(tmp_path / "sae", tensors, activation="jumprelu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": 10**12}, r"has shape .*; expected .*1000000000000"),
        ({"d_sae": 10**400}, "d_sae=10000.*; expected an integer of at least 1"),
        ({"d_sae": -20}, "d_sae=-20; expected an integer of at least 1"),
        ({"d_sae": 20.0}, "d_sae=20.0; expected an integer"),
        ({"d_in": True}, "d_in=True; expected an integer"),
        ({"d_in": None}, "d_in=None; expected an integer"),
        ({"d_in": [6]}, r"d_in=\[6\]; expected an integer"),
        ({"activation": "topk", "k": -1}, "k=-1; expected 1 <= k"),
        ({"activation": "topk", "k": True}, "k=True; expected an integer"),
        ({"activation": "topk", "k": 2.0}, "k=2.0; expected an integer"),
        ({"activation": ["relu"]}, "activation="),
        ({"metadata": ["model"]}, "metadata is a list; expected names"),
        ({"metadata": {"layer": [1]}}, r"metadata\['layer'\] is a list"),
        ({"metadata": {"layer": None}}, r"metadata\['layer'\] is a NoneType"),
        ({"version": [1]}, r"version \[1\]; this patchsae reads versions 1 and 2"),
    ],
)
def test_a_setting_that_no_sae_has_is_named_with_its_file(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_ours(tmp_path / "sae", **changes)
    with malice.little_memory(), pytest.raises(ValueError, match=message) as refusal:
        load_sae(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) - len(str(path)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "patchsae", "version": 1, "version": 1}', "the key 'version' occurs twice"),
        ('{"format": "patchsae", "d_in": NaN}', "NaN is no number"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "sae.safetensors holds .*; its configuration is config.json, which no format has"),
        (" " * (2**20 + 1), "more than 1,048,576 bytes of JSON"),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write_ours(tmp_path / "sae")
    (path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sae(path)


def test_sizes_of_a_released_file_are_those_of_its_tensors(tmp_path: Path) -> None:
    huge = {"W_enc": torch.zeros(1).expand(D, 10**9), "b_enc": torch.zeros(1).expand(10**9)}
    path = write_pt(tmp_path / "sae.pt", weights(**huge), d_in=D)
    with malice.little_memory(), pytest.raises(FalseClaim, match=r"sae\.pt claims .* bytes of tensors and stores"):
        load_sae(path)


def test_an_autoencoder_larger_than_the_memory_says_so_before_it_is_made() -> None:
    with malice.little_memory(), pytest.raises(FalseClaim, match=r"d_sae=1,000,000,000,000 .* needs 6\.15 PB of mem"):
        SparseAutoencoder(SAEConfig(768, 10**12))


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "sae.safetensors is empty; expected a safetensors file: download or copy it again"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "a git-LFS pointer.*git lfs pull"),
        (lambda: torn(save(weights())), "cut off or damaged"),
        (lambda: save(weights())[:20], "a safetensors file that is cut off; expected"),
        (lambda: malice.archive(b"\x80\x02N."), "is a torch archive; expected a safetensors file"),
        (lambda: (2**26).to_bytes(8, "little") + b"{" + b" " * 2**26, "its header claims 67,108,864 bytes"),
        (lambda: (10).to_bytes(8, "little") + b"{" + b"[" * 100, "cut off or damaged"),
    ],
)
def test_weights_that_are_something_else_are_told(tmp_path: Path, content: Callable[[], bytes], message: str) -> None:
    path = write_ours(tmp_path / "sae")
    (path / "sae.safetensors").write_bytes(content())
    with malice.little_memory(), pytest.raises(ValueError, match=message):
        load_sae(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sae.pt", b"version https://git-lfs.github.com/spec/v1\noid", "is a git-LFS pointer.*run `git lfs pull`"),
        (
            "sae.pt",
            b"<!DOCTYPE html><html>404</html>",
            "is a web page, .*; expected what torch",
        ),
        ("sae.pt", save(weights()), "holds W_dec, W_enc, b_dec, b_enc without a configuration, which no format has"),
        ("model.safetensors", save(weights()), "without a configuration, which no format has. Known formats: "),
        ("sae.bin", b"\x1f\x8b\x08", "is compressed with gzip; expected what torch.save"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_told_by_its_bytes(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path / name)


def test_a_torch_archive_may_be_called_anything(tmp_path: Path) -> None:
    assert load_sae(write_pt(tmp_path / "sae.ckpt", weights()), "cpu").config.d_sae == S


def test_what_was_meant_is_said(tmp_path: Path) -> None:
    SparseAutoencoder(SAEConfig(D, S)).save(tmp_path / "run" / "train")
    for name in ("extract", "half"):
        with Run(tmp_path / "run").stage(name) as stage:
            stage.begin({})
    write_pt(tmp_path / "a.pt", weights())
    write_pt(tmp_path / "b.pt", weights())
    for path, message in {
        "run": f"is a run, whose SAE is {tmp_path / 'run' / 'train'}: name that",
        "run/extract": "is a stage of a run, which holds no SAE",
        "run/train/sae.safetensors": f"is a part of a SAE; name its directory, {tmp_path / 'run' / 'train'}",
        "": f"holds several files of weights: name one, such as {tmp_path / 'a.pt'}",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)) as refusal:
            load_sae(tmp_path / path)
        assert message in str(refusal.value)
        assert len(str(refusal.value)) < 600
