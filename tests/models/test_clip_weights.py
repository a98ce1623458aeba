from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from patchsae.disk import archives
from patchsae.errors import PatchsaeError
from patchsae.models.clip import load_clip
from patchsae.models.clip_weights import Weights, decide_activation, downloaded, read_weights, resolve
from tests import malice
from tests.small_clips import model_config, pixels, write_clip

OPENAI = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return load_file(write_clip(tmp_path_factory.mktemp("clip")) / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    return {variant: write_clip(root / variant, variant) for variant in ("gelu", "quick_gelu")}


def as_openai(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """OpenAI's precision: linear layers in fp16, the rest in fp32; stored as ``dtype``."""
    return {
        name: tensor.half().to(dtype) if "resblocks" in name and "ln_" not in name else tensor
        for name, tensor in state.items()
    }


def decide(name: str, file: Path) -> tuple[bool, str | None]:
    decision = decide_activation(resolve(name, str(file)), read_weights(file))
    return decision.quick_gelu, decision.warning


@pytest.mark.parametrize("nested", [False, True])
def test_openais_own_entries_prove_quick_gelu(state: dict[str, torch.Tensor], tmp_path: Path, nested: bool) -> None:
    content = {**state, **OPENAI}
    torch.save({"state_dict": content} if nested else content, tmp_path / "clip.pt")
    quick_gelu, warning = decide("ViT-B-16", tmp_path / "clip.pt")
    assert quick_gelu
    assert "ViT-B-16" in str(warning)
    assert "using QuickGELU" in str(warning)
    assert decide("ViT-B-16-quickgelu", tmp_path / "clip.pt") == (True, None)
    assert read_weights(tmp_path / "clip.pt").state.keys() == state.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_openais_weights_saved_again_are_recognised_and_refused_under_a_gelu_name(
    state: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    save_file(as_openai(state, dtype), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="name='ViT-B-16-quickgelu'"):
        decide("ViT-B-16", tmp_path / "clip.safetensors")
    assert decide("ViT-B-16-quickgelu", tmp_path / "clip.safetensors") == (True, None)


@pytest.mark.parametrize(("name", "assumed"), [("ViT-B-16", "GELU"), ("ViT-B-16-quickgelu", "QuickGELU")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_where_nothing_says_the_activation_the_assumption_is_stated(
    state: dict[str, torch.Tensor], tmp_path: Path, name: str, assumed: str, dtype: torch.dtype
) -> None:
    save_file({key: value.to(dtype) for key, value in state.items()}, tmp_path / "clip.safetensors")
    quick_gelu, warning = decide(name, tmp_path / "clip.safetensors")
    assert quick_gelu == (assumed == "QuickGELU")
    assert f"assuming {assumed} from name='{name}'" in str(warning)


@pytest.mark.parametrize(
    ("name", "tag", "quick_gelu"),
    [("ViT-B-16", "openai", True), ("ViT-B-16-quickgelu", "openai", True), ("ViT-B-16", "laion2b_s34b_b88k", False)],
)
def test_a_pretrained_tag_knows_its_activation(name: str, tag: str, quick_gelu: bool) -> None:
    from patchsae.models.clip_weights import Source

    record = open_clip.get_pretrained_cfg(name, tag)
    source = Source(name, name, open_clip.get_model_config(name), pretrained=tag, tag=record)
    decision = decide_activation(source, Weights({}, None, "", half_linear=False))
    assert decision.quick_gelu == quick_gelu
    assert (decision.warning is not None) == ((name, tag) == ("ViT-B-16", "openai"))


def test_a_corrected_model_computes_with_quick_gelu(directories: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(directories["quick_gelu"] / "open_clip_model.safetensors")
    torch.save({**weights, **OPENAI}, tmp_path / "openai.pt")
    with pytest.warns(UserWarning, match="using QuickGELU"):
        clip = load_clip(f"local-dir:{directories['gelu']}", pretrained=str(tmp_path / "openai.pt"))
    expected = load_clip(f"local-dir:{directories['quick_gelu']}")
    assert torch.equal(clip.residual(pixels(1)), expected.residual(pixels(1)))
    assert clip.quick_gelu
    assert "input_resolution" in clip.activation_from


@pytest.mark.parametrize("trained", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("named", ["gelu", "quick_gelu"])
def test_a_torchscript_archive_says_its_activation_in_its_code(
    directories: dict[str, Path], tmp_path: Path, trained: str, named: str
) -> None:
    module: nn.Module = open_clip.create_model(f"local-dir:{directories[trained]}").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the files that it wrote are what this is about
        traced = torch.jit.trace(module, (pixels(1), torch.zeros(1, 77, dtype=torch.long)), check_trace=False)
        torch.jit.save(traced, tmp_path / "clip.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip = load_clip(f"local-dir:{directories[named]}", pretrained=str(tmp_path / "clip.pt"))
    expected = module.encode_image(pixels(1), normalize=True)
    torch.testing.assert_close(clip.embed(clip.residual(pixels(1))), expected, rtol=0, atol=1e-5)
    assert any("TorchScript" in str(w.message) for w in caught) == (trained != named)


def test_the_configuration_next_to_the_weights_is_believed(directories: dict[str, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_clip(f"local-dir:{directories['quick_gelu']}")
    assert clip.quick_gelu
    assert clip.activation_from == "the configuration next to the weights"


def test_a_weights_file_that_would_run_something_is_refused(tmp_path: Path, directories: dict[str, Path]) -> None:
    marker = tmp_path / "marker"
    wanted, pickled = malice.payloads(marker)["os.system"]
    (tmp_path / "clip.pt").write_bytes(malice.archive(pickled))
    with pytest.raises(archives.UnsafeFileError, match=wanted):
        load_clip(f"local-dir:{directories['gelu']}", pretrained=str(tmp_path / "clip.pt"))
    assert not marker.exists()


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list; expected a state dict"):
        read_weights(tmp_path / "list.pt")


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        PatchsaeError, match=r"'laion2b_s34b_b88k' of 'ViT-B-16' could not be downloaded.*give the file"
    ):
        downloaded(resolve("ViT-B-16", "laion2b_s34b_b88k"))


def test_a_layer_that_is_not_there_is_said_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.download_pretrained", lambda tag: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match=r"layer=99; 'ViT-B-16' has 12 blocks"):
        load_clip("ViT-B-16", "laion2b_s34b_b88k", layer=99)


def written(folder: Path, directory: Path, record: object) -> Path:
    """A CLIP's folder with another configuration: a value of JSON, or text."""
    shutil.copytree(directory, folder)
    text = record if isinstance(record, str) else json.dumps(record)
    (folder / "open_clip_config.json").write_text(text)
    return folder


def changed(name: str, value: object) -> dict[str, Any]:
    """A configuration with one entry, given as "vision_cfg.width", of another value."""
    record: dict[str, Any] = {"model_cfg": model_config("gelu"), "preprocess_cfg": {}}
    *tables, last = name.split(".")
    table = record if tables[:1] == ["preprocess_cfg"] else record["model_cfg"]
    for step in tables:
        table = table[step]
    table[last] = value
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed("vision_cfg.layers", 10**12), "vision_cfg.layers is 1000000000000; the weights beside it hold"),
        (changed("vision_cfg.layers", 10**4), r"vision_cfg.layers is 10000; the weights beside it hold \d+ tensors"),
        (changed("vision_cfg.width", 2**20), "do not fit name=.*of other shapes"),
        (changed("text_cfg.vocab_size", 10**11), "text_cfg.vocab_size is 100000000000; the weights"),
        (changed("text_cfg.context_length", 10**6), "do not fit name=.*of other shapes"),
        (changed("vision_cfg.image_size", [10**6, 10**6]), "do not fit|does not describe"),
        (
            {
                "model_cfg": model_config("sin_cos")
                | {"vision_cfg": {"image_size": 2**20, "pos_embed_type": "sin_cos_2d"}}
            },
            "positions of [0-9,]+ numbers; the weights",
        ),
        (changed("vision_cfg.width", -32), "does not describe a CLIP"),
        (changed("vision_cfg.width", "wide"), "does not describe a CLIP"),
        (changed("vision_cfg.patch_size", 0), "does not describe a CLIP"),
        (changed("vision_cfg.image_size", float("1e30")), "does not describe a CLIP"),
        (changed("vision_cfg.mlp_ratio", 1e300), "does not describe a CLIP"),
        (changed("embed_dim", None), "does not describe a CLIP"),
        (changed("no_such_entry", 1), "does not describe a CLIP.*no_such_entry"),
        (changed("vision_cfg", []), "vision_cfg is a list; expected a table"),
        (changed("text_cfg", None), "text_cfg is a NoneType; expected a table"),
        (changed("preprocess_cfg.mean", "grey"), "does not describe a CLIP"),
        (changed("preprocess_cfg.std", [0, 1, 1]), "does not describe a CLIP"),
        (changed("preprocess_cfg.interpolation", "best"), "does not describe a CLIP"),
        (changed("text_cfg.tokenizer_kwargs", {"trust_remote_code": True}), "tokenizer_kwargs has 'trust_remote_code'"),
        ([], "has no 'model_cfg'"),
        ("{", "is not JSON"),
        ('{"model_cfg": ' * 10_000, "nested too deeply"),
        ('{"model_cfg": {}, "model_cfg": {}}', "'model_cfg' occurs twice"),
        ('{"model_cfg": {"embed_dim": NaN}}', "NaN is no number"),
    ],
)
def test_a_configuration_is_held_against_its_weights(
    directories: dict[str, Path], tmp_path: Path, record: object, message: str
) -> None:
    folder = written(tmp_path / "clip", directories["gelu"], record)
    with malice.little_memory(2**29), pytest.raises(ValueError, match=message) as refusal:
        load_clip(f"local-dir:{folder}")
    assert str(folder) in str(refusal.value)
    assert len(str(refusal.value).replace(str(folder), "")) <= 600


def hugging_face() -> dict[str, torch.Tensor]:
    """Entries of Hugging Face's CLIPModel: a few of the 400."""
    names = ["embeddings.class_embedding", *(f"encoder.layers.{i}.mlp.fc1.weight" for i in range(400))]
    return {f"vision_model.{name}": torch.zeros(1) for name in names} | {
        "text_model.final_layer_norm.bias": torch.zeros(1)
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            save(hugging_face()),
            r"do not fit .* lack .* and \d+ more.* It is a CLIP in the layout of Hugging",
        ),
        (save({"W_enc": torch.zeros(1)}), "It is a sparse autoencoder and no CLIP"),
        (save({"prompt_learner.ctx": torch.zeros(1)}), "which is an adapter and no CLIP"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (save({"W": torch.zeros(9)})[:-4], "cut off or damaged"),
    ],
)
def test_weights_that_are_something_else_are_told_in_few_words(
    directories: dict[str, Path], tmp_path: Path, content: bytes, message: str
) -> None:
    for name in ("weights.pt", "weights.safetensors", "weights.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as refusal:
            load_clip(f"local-dir:{directories['gelu']}", str(tmp_path / name))
        assert len(str(refusal.value).replace(str(tmp_path.parent), "")) <= 600


def test_weights_are_read_by_what_they_are(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "clip.pt")
    torch.save(state, tmp_path / "clip.safetensors")
    for name in ("clip.pt", "clip.safetensors"):
        assert read_weights(tmp_path / name).state.keys() == state.keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda weight: weight.to(torch.complex64), "visual.proj has dtype complex64"),
        (lambda weight: weight.to(torch.int8), "visual.proj has dtype int8"),
        (lambda weight: torch.full_like(weight, torch.nan), "visual.proj has 768 entries that are NaN"),
        (lambda weight: weight.double() * 1e300, "visual.proj has 768 entries .* infinite, in float32"),
    ],
)
def test_entries_that_are_no_weights_are_named(
    directories: dict[str, Path], state: dict[str, torch.Tensor], tmp_path: Path, values: Any, message: str
) -> None:
    save_file({**state, "visual.proj": values(state["visual.proj"])}, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=message) as refusal:
        load_clip(f"local-dir:{directories['gelu']}", str(tmp_path / "clip.safetensors"))
    assert "clip.safetensors" in str(refusal.value)
