from __future__ import annotations

import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from patchsae import archives
from patchsae.clip import load_clip
from patchsae.clip_weights import Weights, decide_activation, read_weights, resolve
from patchsae.errors import PatchsaeError

from . import malice
from .small_clips import pixels, write_clip

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
    from patchsae.clip_weights import Source

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
        resolve("ViT-B-16", "laion2b_s34b_b88k")
