from __future__ import annotations

import importlib.util
import logging
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from patchsae.errors import PatchsaeError
from patchsae.models import clip_weights, tower
from patchsae.models.clip import load_clip
from tests.small_clips import VARIANTS, VISION, pixels, write_clip

CLS_TAIL = {"gelu", "quick_gelu", "layer_scale", "no_ln_pre", "ln_after_pool", "non_square", "sin_cos", "custom_text"}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    return {variant: write_clip(root / variant, variant) for variant in VARIANTS}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_two_halves_are_encode_image_at_every_layer(directories: dict[str, Path], variant: str) -> None:
    reference = open_clip.create_model(f"local-dir:{directories[variant]}").eval()
    images = pixels(2, reference.visual.image_size)
    expected = reference.encode_image(images, normalize=True)
    for layer in range(-VISION["layers"], VISION["layers"]):
        clip = load_clip(f"local-dir:{directories[variant]}", layer=layer)
        residual = clip.residual(images)
        assert residual.shape == (2, clip.image_tokens, clip.width)
        torch.testing.assert_close(clip.embed(residual), expected, rtol=0, atol=1e-5)


def test_the_residual_stream_is_the_output_of_the_block(directories: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{directories['gelu']}", layer=-2)
    seen: list[torch.Tensor] = []
    clip.model.visual.transformer.resblocks[2].register_forward_hook(lambda *args: seen.append(args[2]))
    clip.model.encode_image(pixels(1))
    assert torch.equal(clip.residual(pixels(1)), seen[0])
    assert (clip.layer, clip.layers) == (2, 4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_block_is_computed_for_cls_alone_where_only_cls_is_used(
    directories: dict[str, Path], variant: str
) -> None:
    clip = load_clip(f"local-dir:{directories[variant]}", layer=-2)
    assert tower.cls_leaves_alone(clip.model.visual) == (variant in CLS_TAIL | {"coca_token"})


def test_the_cls_tail_spends_less_than_keys_and_values_alone_would(directories: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{directories['gelu']}", layer=-2)
    residual = clip.residual(pixels(4))
    with FlopCounterMode(display=False) as counter:
        clip.embed(residual)
    keys_and_values = 2 * 2 * 4 * clip.image_tokens * clip.width**2
    assert 0 < counter.get_total_flops() < keys_and_values


def test_embed_passes_the_same_gradient_as_the_whole_tower(directories: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{directories['quick_gelu']}", layer=1)
    visual = clip.model.visual
    residual = clip.residual(pixels(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(clip.embed(residual)[:, 0].sum(), residual)
    whole = visual.transformer.resblocks[3](visual.transformer.resblocks[2](residual))
    embedding = torch.nn.functional.normalize(visual._pool(whole)[0] @ visual.proj, dim=-1)
    (expected,) = torch.autograd.grad(embedding[:, 0].sum(), residual)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["gelu", "layer_scale", "coca", "clipa"])
def test_low_precision_stays_near_float32(directories: dict[str, Path], variant: str, dtype: torch.dtype) -> None:
    name = f"local-dir:{directories[variant]}"
    clip, exact = load_clip(name, dtype=dtype), load_clip(name)
    embedding = clip.embed(clip.residual(pixels(2)))
    assert embedding.dtype == clip.dtype == dtype
    expected = exact.embed(exact.residual(pixels(2)))
    torch.testing.assert_close(embedding.float(), expected, rtol=0, atol=0.05)


def test_no_images_give_no_embeddings(directories: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{directories['gelu']}")
    assert clip.embed(clip.residual(pixels(0))).shape == (0, clip.embed_dim)


def test_attributes_describe_the_tower(directories: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{directories['non_square']}")
    assert (clip.grid, clip.image_tokens, clip.width, clip.embed_dim) == ((2, 5), 11, 32, 24)
    assert clip.logit_scale == pytest.approx(1 / 0.07)
    assert clip.device == torch.device("cpu" if not torch.cuda.is_available() else "cuda:0")
    assert clip.metadata == {"model": clip.name, "pretrained": "", "layer": 2}


def test_preprocess_is_open_clips_own_and_travels_to_workers(directories: dict[str, Path]) -> None:
    directory = directories["gelu"]
    clip = load_clip(f"local-dir:{directory}")
    image = Image.effect_noise((50, 37), 80).convert("RGB")
    _, _, theirs = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    mine = pickle.loads(pickle.dumps(clip.preprocess))
    assert torch.equal(mine(image), theirs(image))
    wide = load_clip(f"local-dir:{directories['non_square']}").preprocess(image)
    assert wide.shape == (3, 16, 40)
    assert wide.dtype == torch.float32


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "RN50", "convnext_base", "ViTamin-B", "EVA02-B-16"])
def test_other_towers_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*(timm's|ModifiedResNet).*VisionTransformer"):
        load_clip(name)


def test_every_model_of_open_clip_is_accepted_or_refused_for_its_tower() -> None:
    accepted = []
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        own = not vision.get("timm_model_name") and isinstance(vision.get("layers", 12), int)
        try:
            clip_weights.resolve(name, None)
        except ValueError:
            assert not own, name
        else:
            assert own, name
            accepted.append(name)
    assert {"ViT-B-16", "ViT-L-14-CLIPA", "coca_ViT-B-32", "ViT-bigG-14"} <= set(accepted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "VIT-B16"}, r"'VIT-B16' is not known; .*did you mean .*'ViT-B-16'"),
        ({"name": "openai/clip-vit-base-patch32"}, "name='ViT-B-32-quickgelu' with pretrained='openai'"),
        ({"name": "hf-hub:openai/clip-vit-large-patch14"}, "name='ViT-L-14-quickgelu' with pretrained='openai'"),
        (
            {"name": "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"},
            "name='ViT-B-32' with pretrained='laion2b_s34b_b79k'",
        ),
        ({"name": "hf-hub:somebody/something"}, "Models of the Hub are not read under their names there"),
        ({"name": "/tmp"}, ": a folder is named as 'local-dir:/tmp'"),
        ({"name": __file__}, ": a file of weights is named as pretrained"),
        ({"name": "%%%"}, r"`open_clip\.list_models\(\)` has them all"),
        ({"name": ""}, r"`open_clip\.list_models\(\)` has them all"),
        ({"name": "x" * 10_000}, "name has 10,000 letters, 'xxxx.*; expected a name or a path"),
        ({"name": "ViT-B-32"}, r"pretrained is not given for 'ViT-B-32'; expected a tag \(.* and \d+ more\), a file"),
        ({"name": "ViT-B-32", "pretrained": ""}, "pretrained is not given for 'ViT-B-32'"),
        ({"name": "ViT-S-32-alt"}, r"expected a tag \(it has none\), a file of weights, or 'random'"),
        ({"name": "ViT-S-32-alt", "pretrained": None, "layer": 12}, "layer=12.*12 blocks: expected -12..11"),
        ({"name": "ViT-S-32-alt", "pretrained": None, "layer": -13}, "layer=-13"),
        ({"name": "ViT-S-32-alt", "pretrained": None, "dtype": torch.float64}, "dtype=torch.float64"),
        ({"name": "ViT-S-32-alt", "pretrained": "no-such-tag"}, "no-such-tag.*neither a file nor a tag"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        load_clip(**arguments)
    assert len(str(refusal.value)) <= 600


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
        load_clip(f"local-dir:{tmp_path}")
    directory = write_clip(tmp_path / "clip")
    (directory / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="open_clip_model.safetensors"):
        load_clip(f"local-dir:{directory}")


def test_wrong_shapes_are_named(directories: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{directories['gelu']}")
    with pytest.raises(ValueError, match=r"pixels has shape \(1, 3, 16, 16\)"):
        clip.residual(pixels(1, (16, 16)))
    with pytest.raises(ValueError, match=r"residual has shape \(1, 17, 16\); expected .*32"):
        clip.embed(torch.zeros(1, 17, 16))
    with pytest.raises(ValueError, match=r"pixels has shape \(3, 32, 32\); .*: pixels\[None\] makes a batch of one"):
        clip.residual(pixels(1)[0])


def test_pictures_paths_and_bytes_are_no_pixels(directories: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{directories['gelu']}")
    for value, message in (
        (Image.new("RGB", (32, 32)), r"pixels is a PIL picture; .*clip\.preprocess\(picture\)\[None\] makes pixels"),
        ("cat.png", r"pixels is the text 'cat\.png'; .*load_image\(path\)"),
        (Path("cat.png"), r"pixels is the path 'cat\.png'"),
        ([pixels(1)], r"pixels is a list; .*torch\.as_tensor makes one"),
        (None, "pixels is None; expected preprocessed images"),
        ((pixels(1) * 255).byte(), "pixels has dtype uint8; expected preprocessed images .*, of floats"),
    ):
        with pytest.raises(TypeError, match=message):
            clip.residual(value)
    with pytest.raises(TypeError, match=r"residual is a ndarray of shape \(1, 17, 32\); expected the residual stream"):
        clip.embed(np.zeros((1, 17, 32)))


@pytest.mark.parametrize("inside", [True, False], ids=["loaded inside", "loaded outside"])
def test_inference_mode_leaves_nothing_behind(directories: dict[str, Path], inside: bool) -> None:
    with torch.inference_mode(inside):
        clip = load_clip(f"local-dir:{directories['gelu']}")
    with torch.inference_mode(not inside):
        clip.embed(clip.residual(pixels(1)))
    images = pixels(1).requires_grad_()
    clip.embed(clip.residual(images)).sum().backward()
    assert images.grad is not None


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_a_text_tower_of_hugging_face_says_what_it_needs() -> None:
    with pytest.raises(PatchsaeError, match="roberta-ViT-B-32.*roberta-base.*transformers"):
        load_clip("roberta-ViT-B-32", "random")


def test_a_tokenizer_that_cannot_be_had_stops_only_the_text_side(tmp_path: Path) -> None:
    directory = write_clip(tmp_path / "clip")
    record = (directory / "open_clip_config.json").read_text()
    changed = record.replace('"context_length": 77', '"context_length": 77, "hf_tokenizer_name": "no-such-tokenizer"')
    (directory / "open_clip_config.json").write_text(changed)
    clip = load_clip(f"local-dir:{directory}")
    assert clip.embed(clip.residual(pixels(1))).shape == (1, 24)
    with pytest.raises(PatchsaeError, match=r"tokenizer.*transformers"):
        clip.encode_text(["a cat"])


@pytest.mark.slow
def test_random_weights_come_from_the_seed_alone(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = load_clip("ViT-S-32-alt", "random", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert caplog.records == []
    again, other = load_clip("ViT-S-32-alt", "random", seed=1), load_clip("ViT-S-32-alt", None, seed=2)
    weight = first.model.visual.conv1.weight
    assert torch.equal(weight, again.model.visual.conv1.weight)
    assert not torch.equal(weight, other.model.visual.conv1.weight)
    assert other.metadata == {"model": "ViT-S-32-alt", "pretrained": "", "layer": 10, "model_seed": 2}


def test_random_is_random_everywhere(directories: dict[str, Path]) -> None:
    for name in ("tiny", f"local-dir:{directories['gelu']}"):
        own, left_out = load_clip(name), load_clip(name, pretrained=None)
        random, again, other = (load_clip(name, "random", seed=seed) for seed in (0, 0, 1))
        assert own.fingerprint == left_out.fingerprint
        assert random.fingerprint == again.fingerprint
        assert len({own.fingerprint, random.fingerprint, other.fingerprint}) == 3
        assert (own.seed, random.seed, random.metadata["model_seed"]) == (None, 0, 0)


def test_a_file_replaces_the_weights_of_a_directory(directories: dict[str, Path], tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other", seed=7)
    file = str(other / "open_clip_model.safetensors")
    clip = load_clip(f"local-dir:{directories['gelu']}", pretrained=file)
    expected = load_clip(f"local-dir:{other}", pretrained="")
    assert torch.equal(clip.residual(pixels(1)), expected.residual(pixels(1)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_torch_files_are_read_with_and_without_a_training_wrapper(
    directories: dict[str, Path], tmp_path: Path, wrapped: bool
) -> None:
    state = load_file(directories["gelu"] / "open_clip_model.safetensors")
    content = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(content if wrapped else state, tmp_path / "weights.pt")
    clip = load_clip(f"local-dir:{directories['gelu']}", pretrained=str(tmp_path / "weights.pt"))
    expected = load_clip(f"local-dir:{directories['gelu']}")
    assert torch.equal(clip.residual(pixels(1)), expected.residual(pixels(1)))


def test_weights_that_do_not_fit_are_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(directories["gelu"] / "open_clip_model.safetensors")
    del state["visual.proj"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"(?s)do not fit.*visual\.proj"):
        load_clip(f"local-dir:{directories['gelu']}", pretrained=str(tmp_path / "part.safetensors"))


def test_the_shipped_clip_is_open_clips_reading_of_its_directory() -> None:
    clip = load_clip(device="cpu")
    reference = open_clip.create_model(f"local-dir:{clip_weights.TINY}").eval()
    images = pixels(2, clip.image_size)
    torch.testing.assert_close(clip.embed(clip.residual(images)), reference.encode_image(images, normalize=True))
    assert (clip.name, clip.layer, clip.image_tokens) == ("tiny", clip.layers - 2, 65)
    assert clip.text_classifier(["red circle", "blue square"], ["a {}."]).shape == (2, clip.embed_dim)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [-2, 5])
def test_vit_b_16_agrees_with_open_clip(layer: int) -> None:
    clip = load_clip("ViT-B-16-quickgelu", "random", layer=layer)
    images = pixels(1, (224, 224))
    with torch.no_grad():
        expected = clip.model.encode_image(images, normalize=True)
        torch.testing.assert_close(clip.embed(clip.residual(images)), expected, rtol=0, atol=1e-5)
    assert clip.image_tokens == 197
