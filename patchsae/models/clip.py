"""CLIP split at a block: `residual` up to it, `embed` after it, and the text side as a classifier."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import AttentionalPooler, LayerScale, VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Compose

from patchsae.data.decode import upright_rgb
from patchsae.disk.claims import require_memory
from patchsae.disk.hashing import fingerprint
from patchsae.errors import PatchsaeError
from patchsae.models import clip_config, clip_weights, prompts, tower
from patchsae.models.clip_names import NOT_SAID
from patchsae.models.given import outside_inference_mode, require_tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_GREY = Image.new("RGB", (8, 8), (128, 128, 128))
TEXT_BATCH = 256  # prompts per pass of the text tower


@outside_inference_mode
def load_clip(
    name: str = "tiny",
    pretrained: str | None = NOT_SAID,
    layer: int = -2,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> SplitCLIP:
    """Load a CLIP whose image tower is open_clip's own VisionTransformer, split after block ``layer``.

    Nothing in a local file is executed. Whether the model uses QuickGELU is taken from the weights rather than from
    the name where they differ (a warning says so); see ``activation_from``.

    Args:
        name: a model of open_clip, "tiny" (the one that is shipped), or "local-dir:PATH" (``open_clip_config.json``
            and ``open_clip_model.safetensors``).
        pretrained: a tag of open_clip (downloaded by it), a local weights file, or "random": weights from ``seed``.
            Left out (or ""): "tiny" and "local-dir:" bring their own, and for a model of open_clip it is an error.
            None, said explicitly, is "random" for a model of open_clip and left out for the others.
        layer: block whose output is the residual stream, counted as Python counts: -2 is the 11th of 12.
        device: "auto" is CUDA where there is one.
        dtype: float32, bfloat16 or float16; norms and embeddings stay float32, as in OpenAI's fp16 models.

    Raises:
        ValueError: unknown name or tag, no weights named, unsupported tower, layer out of range, weights that do not
            fit, a file that asks for more than tensors (`archives.UnsafeFileError`) or claims more than it holds
            (`claims.FalseClaim`), or OpenAI-like weights under a GELU name.
        FileNotFoundError: a local path is missing.
        PatchsaeError: a download failed, or the text tower needs the package transformers and it is missing.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}; expected one of {', '.join(map(str, DTYPES))}")
    source = clip_weights.resolve(name, pretrained)
    index = block_index(layer, source.config["vision_cfg"].get("layers", 12), name)
    source = clip_weights.downloaded(source)
    weights = clip_weights.read_weights(source.weights) if source.weights else None
    if source.own_config and name != "tiny":
        _require_described(source.own_config, source, weights)
    activation = clip_weights.decide_activation(source, weights)
    if activation.warning:
        warnings.warn(activation.warning, UserWarning, stacklevel=3)  # the caller of the decorated function
    model = _build(source, activation.quick_gelu, dtype, seed)
    if weights is not None:
        clip_weights.assign(model, weights.state, source)
    target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    return SplitCLIP(model.to(target), index, source, activation, dtype, seed if weights is None else None)


def _require_described(path: Path, source: clip_weights.Source, weights: clip_weights.Weights | None) -> None:
    """Raise ValueError unless a stranger's configuration describes a CLIP, and one that its weights hold.

    It is built where tensors take no memory.
    """
    clip_config.require_held(path, source.config, None if weights is None else weights.state)
    try:
        with torch.device("meta"):
            model: Any = _build(source, False, torch.float32, 0)
        pixels = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)(_GREY)
        if not bool(pixels.isfinite().all()):
            raise ValueError("its preprocessing makes numbers that are not finite")
    except PatchsaeError:
        raise
    except Exception as error:  # open_clip takes any entry for granted
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{path} does not describe a CLIP that open_clip can build ({told})") from error
    if weights is None:
        require_memory(f"{path}: the model", sum(4 * tensor.numel() for tensor in model.state_dict().values()))
    else:
        clip_weights.fitted(model, weights.state, source)


def block_index(layer: int, blocks: int, name: str) -> int:
    """``layer`` as Python counts -> 0-based block."""
    if not -blocks <= layer < blocks:
        raise ValueError(f"layer={layer}; {name!r} has {blocks} blocks: expected {-blocks}..{blocks - 1}")
    return layer % blocks


def checked_pixels(clip: SplitCLIP, pixels: Tensor) -> Tensor:
    """``pixels`` on the CLIP's device in its dtype.

    Raises:
        TypeError: they are no tensor of floats.
        ValueError: they are not of its size.
    """
    expected = ("B", 3, *clip.image_size)
    require_tensor("pixels", pixels, f"preprocessed images [B, 3, H, W] = {expected}")
    if pixels.dim() != 4 or tuple(pixels.shape[1:]) != expected[1:]:
        hint = ": pixels[None] makes a batch of one" if tuple(pixels.shape) == expected[1:] else ""
        raise ValueError(f"pixels has shape {tuple(pixels.shape)}; expected [B, 3, H, W] = {expected}{hint}")
    return pixels.to(clip.device, clip.dtype)


class SplitCLIP:
    """A frozen CLIP cut after one block of its image tower.

    ``embed(residual(pixels))`` is open_clip's ``encode_image(pixels, normalize=True)``. Both halves are
    differentiable in their input; the parameters are frozen.

    Attributes:
        model: the open_clip model itself, in eval mode.
        name, pretrained: as given to `load_clip`.
        layer: the block, 0-based.
        layers: number of blocks.
        width: D of the residual stream.
        grid: patch rows and columns.
        image_tokens: T, CLS and the patches in raster order.
        embed_dim: E.
        logit_scale: factor on cosine similarities (the exponential of the stored parameter).
        preprocess: PIL image of any mode and orientation -> float32 ``[3, H, W]``: upright RGB, then open_clip's
            inference transform; picklable.
        seed: of random weights; None where the weights came from a file.
        quick_gelu, activation_from: the activation, and how it is known.
    """

    def __init__(
        self,
        model: Any,
        layer: int,
        source: clip_weights.Source,
        activation: clip_weights.Activation,
        dtype: torch.dtype,
        seed: int | None,
    ) -> None:
        visual: Any = model.visual
        if type(visual) is not VisionTransformer:
            raise ValueError(
                f"name={source.name!r} has a {type(visual).__name__} as its image tower; "
                "expected open_clip's own VisionTransformer"
            )
        self.model: Any = model.eval().requires_grad_(False)
        self.name, self.pretrained, self._identifier = source.name, source.pretrained, source.identifier
        self.layer, self.layers = layer, len(visual.transformer.resblocks)
        self.width: int = visual.transformer.width
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.image_size: tuple[int, int] = tuple(visual.image_size)
        self.image_tokens = self.grid[0] * self.grid[1] + 1
        self.embed_dim: int = visual.output_dim
        self.dtype, self.seed = dtype, seed
        self.logit_scale = float(self.model.logit_scale.exp())
        self.quick_gelu, self.activation_from = activation.quick_gelu, activation.known_from
        self.preprocess: Callable[[Any], Tensor] = Compose(
            [upright_rgb, image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)]
        )

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.model.visual.conv1.weight
        return weight.device

    @property
    def metadata(self) -> dict[str, str | int | float]:
        """What `load_clip` needs to give this CLIP again, for a SAE's configuration.

        "" is no ``pretrained``: those that the model brings, or with ``model_seed`` random ones of that seed.
        """
        record: dict[str, str | int | float] = {
            "model": self.name,
            "pretrained": self.pretrained or "",
            "layer": self.layer,
        }
        return record if self.seed is None else {**record, "model_seed": self.seed}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that depend on every weight and its dtype, not on where the files lie nor on the device."""
        return fingerprint(self.model.state_dict())

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """open_clip's tokenizer of this model: list of n texts -> int64 ``[n, context]``.

        Raises:
            PatchsaeError: the model uses a Hugging Face tokenizer and its package or its files are missing.
        """
        try:
            tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(self._identifier)
            return tokenizer
        except (ImportError, OSError) as error:
            raise PatchsaeError(
                f"the tokenizer of {self.name!r} cannot be loaded ({error}); it needs the package transformers and the "
                "tokenizer's files. residual() and embed() work without it"
            ) from error

    def residual(self, pixels: Tensor) -> Tensor:
        """Residual stream after the block: ``[B, 3, H, W]`` preprocessed -> ``[B, T, D]`` in ``dtype``.

        Raises:
            TypeError: ``pixels`` is no tensor of floats.
            ValueError: the images are not of this model's size.
        """
        pixels = checked_pixels(self, pixels)
        if len(pixels) == 0:
            return pixels.new_empty(0, self.image_tokens, self.width)
        return tower.residual_stream(self.model.visual, pixels, self.layer)

    def embed(self, residual: Tensor) -> Tensor:
        """The rest of the tower: residual stream ``[B, T, D]`` -> unit-norm embedding ``[B, E]`` in ``dtype``.

        More tokens than T are accepted (prompt tokens follow the image's). Where the pooling takes CLS, the last
        block computes CLS alone.

        Raises:
            TypeError: ``residual`` is no tensor of floats.
            ValueError: wrong number of dimensions or wrong width.
        """
        require_tensor("residual", residual, f"the residual stream [B, T, D] with D = {self.width}")
        if residual.dim() != 3 or residual.shape[2] != self.width:
            raise ValueError(
                f"residual has shape {tuple(residual.shape)}; "
                f"expected [B, T, D] = ('B', {self.image_tokens}, {self.width})"
            )
        return F.normalize(tower.pooled(self.model.visual, residual.to(self.dtype), self.layer), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text embeddings: n texts -> ``[n, E]`` in ``dtype``."""
        parts = [self._encode_prompts(list(texts[i : i + TEXT_BATCH])) for i in range(0, len(texts), TEXT_BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, self.embed_dim, device=self.device, dtype=self.dtype)

    def text_classifier(self, classnames: Sequence[str], templates: Sequence[str], renormalise: bool = True) -> Tensor:
        """Zero-shot weights ``[C, E]``: per class, the mean of the unit-norm embeddings of its filled templates.

        Scores are ``clip.logit_scale * embedding @ weights.T``. A class name that occurs twice gives two rows.

        Args:
            templates: texts with exactly one ``{}``.
            renormalise: bring the mean back to unit norm, as open_clip users expect; PatchSAE's code does not.

        Raises:
            ValueError: no classes, an empty class name, no templates, a template without exactly one ``{}``, or names
                that differ only after the tokens that the text tower takes.
        """
        prompts.check_prompts(classnames, templates)
        prompts.refuse_cut(self.tokenizer, classnames, templates)
        return prompts.classifier(self._encode_prompts, classnames, templates, renormalise, TEXT_BATCH)

    def _encode_prompts(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts).to(self.device)
        embeddings: Tensor = self.model.encode_text(tokens, normalize=True)
        return embeddings


def _build(source: clip_weights.Source, quick_gelu: bool, dtype: torch.dtype, seed: int) -> nn.Module:
    """open_clip's model of this configuration with random weights from ``seed``; the global generator is untouched."""
    config = dict(source.config)
    model_class = _model_class(config)
    text = dict(config["text_cfg"])
    if "hf_model_name" in text:
        _require_transformers(source.name, text["hf_model_name"])
        text["hf_model_pretrained"] = False
    config.update(text_cfg=text, quick_gelu=quick_gelu, cast_dtype=None if dtype == torch.float32 else dtype)
    config.pop("custom_text", None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reseed the GPUs too
        model: nn.Module = model_class(**config)
    if dtype != torch.float32:
        _lower_precision(model, dtype)
    settings = merge_preprocess_dict(PreprocessCfg(), source.preprocess)
    visual: Any = model.visual
    settings["size"] = visual.image_size
    open_clip.set_model_preprocess_cfg(model, settings)
    return model


def _model_class(config: Mapping[str, Any]) -> Any:
    """The class that `open_clip.create_model` would choose; calling that instead would configure the root logger."""
    if not (config.get("custom_text", False) or "hf_model_name" in config["text_cfg"]):
        return open_clip.CLIP
    return open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP


def _require_transformers(name: str, tower_name: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise PatchsaeError(
            f"the text tower of {name!r} is Hugging Face's {tower_name}, which needs the package transformers: "
            "pip install transformers"
        )


def _lower_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Linear layers and convolutions to ``dtype``; also the modules that open_clip's own conversion leaves mixed."""
    open_clip.convert_weights_to_lp(model, dtype)
    for module in model.modules():
        if isinstance(module, (LayerScale, AttentionalPooler)):
            module.to(dtype)
