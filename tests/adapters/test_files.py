"""Our own adapter files."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from patchsae import load_adapter, load_maple
from patchsae.adapters import AdaptedCLIP, save_adapter
from patchsae.adapters.coop import CoOpConfig
from patchsae.adapters.lora import LoRAConfig
from patchsae.adapters.maple import MaPLeConfig
from patchsae.adapters.vpt import VPTConfig
from tests.adapters.towers import NAMES, make_adapter, make_clip
from tests.small_clips import pixels

CONFIGS: dict[str, Any] = {
    "maple": MaPLeConfig(3, 2),
    "coop": CoOpConfig(5),
    "vpt": VPTConfig(3, 2, ("a {}.", "the {}.")),
    "linear": None,
    "lora": LoRAConfig(3, 2, ("fc", "k")),
}


def make(kind: str) -> AdaptedCLIP:
    return make_adapter(kind, make_clip("plain"), CONFIGS[kind])


def rewrite(file: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Change entries of the header, or the tensors."""
    with safe_open(file, framework="pt") as content:
        record = json.loads(content.metadata()["patchsae_adapter"])
    record = {key: value for key, value in {**record, **changes}.items() if value is not None}
    save_file(tensors or load_file(file), file, metadata={"patchsae_adapter": json.dumps(record)})


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["folder", "folder/file.safetensors"])
def test_an_adapter_comes_back_as_it_was(tmp_path: Path, kind: str, name: str) -> None:
    adapted = make(kind)
    file = save_adapter(adapted, tmp_path / name)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    loaded = load_adapter(adapted.clip, tmp_path / name)
    assert type(loaded) is type(adapted)
    assert (loaded.config, loaded.classnames) == (adapted.config, adapted.classnames)
    assert loaded.fingerprint == adapted.fingerprint
    assert not any(loaded.trainable()[n] is p for n, p in adapted.trainable().items())
    first = file.read_bytes()
    assert save_adapter(loaded, tmp_path / name).read_bytes() == first


def test_other_classes_can_be_asked_for(tmp_path: Path) -> None:
    file = save_adapter(make("coop"), tmp_path)
    assert load_adapter(make_clip("plain"), file, ["cow"]).classnames == ("cow",)
    file = save_adapter(make("linear"), tmp_path)
    with pytest.raises(ValueError, match="no others"):
        load_adapter(make_clip("plain"), file, ["cow"])


def test_load_maple_reads_ours_too(tmp_path: Path) -> None:
    adapted = make("maple")
    save_adapter(adapted, tmp_path)
    assert load_maple(adapted.clip, tmp_path, NAMES, n_ctx=3, depth=2).fingerprint == adapted.fingerprint
    with pytest.raises(ValueError, match="holds n_ctx=3 and depth=2; asked for were n_ctx=2 and depth=9"):
        load_maple(adapted.clip, tmp_path, NAMES, n_ctx=2, depth=9)
    save_adapter(make("vpt"), tmp_path)
    with pytest.raises(ValueError, match="kind 'vpt'; expected 'maple'"):
        load_maple(adapted.clip, tmp_path, NAMES)


@pytest.mark.parametrize("kind", CONFIGS)
def test_another_clip_is_an_error_and_the_same_in_low_precision_is_not(tmp_path: Path, kind: str) -> None:
    save_adapter(make(kind), tmp_path)
    with pytest.raises(ValueError, match=r"adapter\.safetensors was learned on another CLIP"):
        load_adapter(make_clip("plain", seed=1), tmp_path)
    with pytest.raises(ValueError, match="another CLIP"):
        load_adapter(make_clip("more_vision"), tmp_path)
    assert load_adapter(make_clip("plain", dtype=torch.bfloat16), tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2; this patchsae reads version 1"),
        ({"version": None}, "version None"),
        ({"kind": "prefix"}, "kind='prefix'"),
        ({"kind": "linear"}, "settings"),
        ({"config": {"n_ctx": 5, "depth": 1}}, "settings"),
        ({"config": 3}, "settings"),
        ({"config": {"n_ctx": "5"}}, "n_ctx=.5.; expected a int"),
        ({"config": {"n_ctx": True}}, "n_ctx=True; expected a int"),
        ({"config": {"n_ctx": 10**12}}, "n_ctx=1000000000000; expected 0"),
        ({"kind": ["maple"]}, "kind="),
        ({"config": {"n_ctx": 4}}, r"ctx has shape \(5, 16\); expected \(4, 16\)"),
        ({"classnames": "dog"}, "classnames is dog; expected a list of text"),
        ({"classnames": ["dog", 1]}, "expected a list of text"),
        ({"classnames": []}, "classnames is empty"),
        ({"surprise": 1}, r"entries .*'surprise'"),
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = save_adapter(make("coop"), tmp_path)
    rewrite(file, **changes)
    with pytest.raises(ValueError, match=message):
        load_adapter(make_clip("plain"), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(5, 16, dtype=torch.complex64), "ctx has dtype complex64"),
        (torch.zeros(5, 16, dtype=torch.int8), "ctx has dtype int8"),
        (torch.full((5, 16), torch.nan), "ctx has 80 entries that are NaN or infinite"),
        (torch.full((5, 16), 1e300, dtype=torch.float64), "ctx has 80 entries .* in float32"),
    ],
)
def test_tensors_that_are_no_weights_are_named(tmp_path: Path, values: torch.Tensor, message: str) -> None:
    file = save_adapter(make("coop"), tmp_path)
    rewrite(file, {**load_file(file), "ctx": values})
    with pytest.raises(ValueError, match=rf"adapter\.safetensors.*{message}"):
        load_adapter(make_clip("plain"), tmp_path)


def test_an_adapter_is_known_by_its_bytes(tmp_path: Path) -> None:
    file = save_adapter(make("coop"), tmp_path)
    assert load_adapter(make_clip("plain"), file.rename(tmp_path / "coop.pt")).kind == "coop"
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"page\.pt is a web page, .*; expected what torch\.save"):
        load_adapter(make_clip("plain"), tmp_path / "page.pt", NAMES)
    with pytest.raises(ValueError, match=r"page\.pt is a web page, .*; expected what save_adapter wrote, or a checkp"):
        load_adapter(make_clip("plain"), tmp_path / "page.pt")


@pytest.mark.parametrize("kind", CONFIGS)
def test_inference_mode_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    file = save_adapter(make(kind), tmp_path)
    clip = make_clip("plain")
    with torch.inference_mode():
        adapters = [make_adapter(kind, clip, CONFIGS[kind]), load_adapter(clip, file)]
        for adapted in adapters:
            adapted.logits(pixels(1))  # whatever this keeps is kept for what follows
    for adapted in adapters:
        adapted.logits(pixels(1)).sum().backward()
        assert any(parameter.grad is not None for parameter in adapted.trainable().values())


def test_a_head_for_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    file = save_adapter(make("linear"), tmp_path)
    rewrite(file, classnames=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"weight has shape \(3, 24\); expected \(4, 24\)"):
        load_adapter(make_clip("plain"), tmp_path)


def test_files_that_are_not_adapters_are_refused(tmp_path: Path) -> None:
    clip, file = make_clip("plain"), tmp_path / "adapter.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_adapter(clip, file)
    with pytest.raises(FileNotFoundError):
        load_adapter(clip, tmp_path / "nowhere", NAMES)
    save_file({"ctx": torch.zeros(2, 2)}, file)
    with pytest.raises(ValueError, match="no header 'patchsae_adapter'"):
        load_adapter(clip, tmp_path)
    whole = save_adapter(make("coop"), tmp_path).read_bytes()
    for part, message in (b"", "is empty"), (whole[:100], "cut off"), (whole[:-1], "cut off or damaged"):
        file.write_bytes(part)
        with pytest.raises(ValueError, match=message):
            load_adapter(clip, tmp_path)
    save_file({"ctx": torch.zeros(2, 2)}, file, metadata={"patchsae_adapter": "{"})
    with pytest.raises(ValueError, match="is not JSON"):
        load_adapter(clip, tmp_path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = save_adapter(make("coop"), tmp_path)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as a full disk, in the middle of writing
    try:
        with pytest.raises(Exception, match="[Ff]ile too large"):
            save_adapter(make("maple"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
