"""Where a CLIP comes from: its open_clip configuration, its weights file, and the activation it was trained with.

OpenAI's models use QuickGELU (x * sigmoid(1.702 x)); open_clip's plain names mean GELU. The two load into each other
without an error and give wrong embeddings, so the activation is decided here, from evidence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from patchsae.disk import archives, contents
from patchsae.disk.tensor_files import read_tensors, require_float32
from patchsae.errors import PatchsaeError
from patchsae.models import clip_config
from patchsae.models.clip_names import NOT_SAID, tags_of, unknown_model, without_weights

LOCAL_DIR = "local-dir:"
RANDOM = "random"
MOST_LETTERS = 1000
TINY = Path(__file__).parents[1] / "assets" / "tiny-clip"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
OPENAI_KEYS = frozenset({"input_resolution", "context_length", "vocab_size"})  # only OpenAI's own files carry them
# Made anew by the model: TorchScript archives and transformers < 4.31 store them all the same.
RECOMPUTED = frozenset({"attn_mask", "text.attn_mask", "text.transformer.embeddings.position_ids"})
HALF_NAMES = (".attn.in_proj_weight", ".attn.out_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


@dataclass(frozen=True)
class Source:
    """A CLIP before it is built.

    Attributes:
        name: what the user called it.
        identifier: open_clip's name for it, or ``local-dir:PATH``.
        config: open_clip's model configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``, ...).
        preprocess: open_clip's preprocessing settings that differ from its defaults.
        weights: the weights file, or None for random weights.
        pretrained: the tag or path asked for; None where the folder's own weights, or random ones, were.
        tag: open_clip's record of the pretrained tag; empty for files.
        own_config: the configuration that lies next to the weights, so it says what they were trained with.
    """

    name: str
    identifier: str
    config: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    pretrained: str | None = None
    tag: dict[str, Any] = field(default_factory=dict)
    own_config: Path | None = None


@dataclass(frozen=True)
class Activation:
    """The activation a model is built with, and how it is known."""

    quick_gelu: bool
    known_from: str
    warning: str | None = None


@dataclass(frozen=True)
class Weights:
    """A state dict in open_clip's names, and what the file says about the activation (None: nothing).

    Attributes:
        half_linear: the linear layers hold fp16 values while the embeddings do not, which is how OpenAI stored its
            models, also when they were saved again in fp32.
    """

    state: dict[str, Tensor]
    quick_gelu: bool | None
    known_from: str
    half_linear: bool


def resolve(name: str, pretrained: str | None = NOT_SAID) -> Source:
    """Find configuration and weights of ``name``: a file, or a pretrained tag that `downloaded` makes one of.

    Args:
        pretrained: as for `load_clip`: the one place that says what weights are meant where none are named.

    Raises:
        ValueError: unknown name or tag, no weights named for a model of open_clip, or an image tower that is not
            open_clip's own VisionTransformer.
        FileNotFoundError: a local directory or file is missing.
    """
    for argument, value in (("name", name), ("pretrained", pretrained or "")):
        if len(value) > MOST_LETTERS:
            raise ValueError(f"{argument} has {len(value):,} letters, {value[:40]!r}...; expected a name or a path")
    source = _resolve_directory(name, pretrained) if _is_directory(name) else _resolve_builtin(name, pretrained)
    refuse_other_towers(name, source.config)
    return source


def downloaded(source: Source) -> Source:
    """The source with the weights of its pretrained tag, downloaded by open_clip. PatchsaeError where that fails."""
    if source.weights or not source.tag:
        return source
    try:
        path = open_clip.download_pretrained(source.tag)
    except (OSError, RuntimeError) as error:
        raise PatchsaeError(
            f"pretrained={source.pretrained!r} of {source.name!r} could not be downloaded ({str(error)[:300]}); "
            "download the weights elsewhere and give the file's path"
        ) from error
    return replace(source, weights=Path(path))


def refuse_other_towers(name: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError unless the image tower that ``config`` describes is open_clip's own VisionTransformer."""
    vision = config["vision_cfg"]
    tower = None
    if vision.get("timm_model_name"):
        tower = f"timm's {vision['timm_model_name']}"
    elif isinstance(vision.get("layers", 12), (list, tuple)):
        tower = "a ModifiedResNet"
    if tower:
        raise ValueError(
            f"name={name!r} has {tower} as its image tower; "
            "expected open_clip's own VisionTransformer (such as 'ViT-B-16')"
        )


def read_weights(path: Path) -> Weights:
    """Read a weights file (safetensors, torch zip archive or TorchScript archive) without running anything in it."""
    quick_gelu, known_from = None, ""
    kind = contents.what_is(path).kind
    if kind == "safetensors":
        state, _ = read_tensors(path)
    elif kind == "torchscript":
        state, code = archives.load_torchscript(path)
        quick_gelu, known_from = _activation_in_code(code), "the code of the TorchScript archive"
    else:
        state = _state_dict(path, archives.load_archive(path, {}))
    if OPENAI_KEYS & state.keys():
        quick_gelu, known_from = True, f"the file's OpenAI entries {sorted(OPENAI_KEYS & state.keys())}"
    state = {key: value for key, value in state.items() if key not in OPENAI_KEYS}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return Weights(state, quick_gelu, known_from, _is_half_linear(state))


def decide_activation(source: Source, weights: Weights | None) -> Activation:
    """QuickGELU or GELU, from the pretrained tag, the file, the configuration next to it, or the name, in this order.

    Raises:
        ValueError: the values of the file look like OpenAI's while the name says GELU, and nothing proves either.
    """
    named = bool(source.config.get("quick_gelu", False))
    if weights is None:
        return Activation(named, "the name; the weights are random")
    if source.tag:
        return _proven(source, bool(source.tag.get("quick_gelu", False)), f"pretrained tag {source.pretrained!r}")
    if weights.quick_gelu is not None:
        return _proven(source, weights.quick_gelu, weights.known_from)
    if source.own_config:
        return Activation(named, "the configuration next to the weights")
    if weights.half_linear and not named:
        raise ValueError(
            f"pretrained={source.pretrained!r} holds fp16 values in its linear layers only, as OpenAI's models do, "
            f"which were trained with QuickGELU; name={source.name!r} means GELU. Use "
            f"name={source.identifier + '-quickgelu'!r}, or state the activation in the open_clip_config.json of a "
            "'local-dir:PATH'"
        )
    if weights.half_linear:
        return Activation(True, "the name, and fp16 values as in OpenAI's files")
    warning = (
        f"pretrained={source.pretrained!r} does not say its activation; "
        f"assuming {_activation_name(named)} from name={source.name!r}"
    )
    return Activation(named, "assumed from the name", warning)


def assign(model: nn.Module, state: dict[str, Tensor], source: Source) -> None:
    """Load ``state`` into ``model``, every name and shape of it.

    Raises:
        ValueError: naming the entries that are missing, left over or of another shape, or that hold no weights.
    """
    state = fitted(model, state, source)
    for name, value in state.items():
        try:
            require_float32(name, value)
        except ValueError as error:
            raise ValueError(f"{source.weights}: {error}") from error
    model.load_state_dict(state)


def fitted(model: nn.Module, state: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """``state`` under the names and in the shapes of ``model``, which may be without memory.

    Raises:
        ValueError: naming some of the entries that are missing, left over or of another shape.
    """
    state = {key: value for key, value in state.items() if key not in RECOMPUTED}
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    for scalar in ("logit_scale", "logit_bias"):  # stored as [] or [1]
        if scalar in state and scalar in own and own[scalar].numel() == state[scalar].numel():
            state[scalar] = state[scalar].reshape(own[scalar].shape)
    missing, extra = ([name for name in a if name not in b] for a, b in ((own, state), (state, own)))
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or extra or other:
        found = [f"{said} {_some(names)}" for said, names in (("lack", missing), ("have also", extra)) if names]
        if other:
            shapes = f"{tuple(state[other[0]].shape)}; expected {tuple(own[other[0]].shape)}"
            found.append(f"have {len(other)} of other shapes, such as {other[0]} {shapes}")
        told = f"the weights {source.weights} do not fit name={source.name!r}: they {', '.join(found)}"
        raise ValueError(told + _instead(state))
    return state


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(name[:60] for name in names[:2]) + more


def _instead(state: Mapping[str, Tensor]) -> str:
    """What a state dict is that does not fit, by the names in it."""
    for beginning, said in _OTHERS.items():
        if any(name.startswith(beginning) for name in state):
            return f". It is {said}"
    return ""


_OTHERS = {
    "vision_model.": "a CLIP in the layout of Hugging Face's transformers, which is not read: give open_clip's "
    "weights of it (for OpenAI's, pretrained='openai')",
    "prompt_learner.": "a checkpoint of prompts (MaPLe, CoOp), which is an adapter and no CLIP",
    "W_enc": "a sparse autoencoder and no CLIP",
    "blocks.": "an image tower in timm's layout, without the text side of a CLIP",
}


def _proven(source: Source, quick_gelu: bool, known_from: str) -> Activation:
    """The activation that the weights prove, with a warning where the configuration says otherwise."""
    named = bool(source.config.get("quick_gelu", False))
    if quick_gelu == named:
        return Activation(quick_gelu, known_from)
    warning = (
        f"name={source.name!r} means {_activation_name(named)}, but {known_from} means {_activation_name(quick_gelu)}: "
        f"using {_activation_name(quick_gelu)}"
    )
    return Activation(quick_gelu, known_from, warning)


def _activation_name(quick_gelu: bool) -> str:
    return "QuickGELU" if quick_gelu else "GELU"


def _is_directory(name: str) -> bool:
    return name == "tiny" or name.startswith(LOCAL_DIR)


def _resolve_directory(name: str, pretrained: str | None) -> Source:
    directory = TINY if name == "tiny" else Path(os.path.expanduser(name.removeprefix(LOCAL_DIR)))
    path = directory / clip_config.FILE
    if not os.path.isfile(path):  # also for a name that no file could have
        raise FileNotFoundError(f"{path} does not exist; expected open_clip's directory layout")
    described = clip_config.read_config(path)
    asked = pretrained if pretrained not in (None, NOT_SAID, RANDOM) else None
    weights = None if pretrained == RANDOM else _local_file(asked) if asked else _weights_in(directory)
    return Source(
        name=name,
        identifier=f"{LOCAL_DIR}{directory}",
        config=described.model,
        preprocess=described.preprocess,
        weights=weights,
        pretrained=asked,
        own_config=path,
    )


def _resolve_builtin(name: str, pretrained: str | None) -> Source:
    identifier = name.replace("/", "-")
    if identifier not in open_clip.list_models():
        raise unknown_model(name)
    source = Source(name=name, identifier=identifier, config=open_clip.get_model_config(identifier))
    if pretrained is None or pretrained == RANDOM:
        return source
    refuse_other_towers(name, source.config)
    if pretrained == NOT_SAID:
        raise without_weights(name, identifier)
    tag = open_clip.get_pretrained_cfg(identifier, pretrained)
    if tag:
        return Source(name, identifier, source.config, tag, None, pretrained, tag)
    if not os.path.exists(os.path.expanduser(pretrained)):
        raise ValueError(
            f"pretrained={pretrained[:100]!r} is neither a file nor a tag of {name!r}; expected "
            f"{tags_of(identifier)}, a file of weights, or 'random'"
        )
    return Source(name, identifier, source.config, weights=_local_file(pretrained), pretrained=pretrained)


def _local_file(pretrained: str) -> Path:
    path = Path(os.path.expanduser(pretrained))
    if path.is_dir():
        return _weights_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained={pretrained!r} does not exist; expected a weights file")
    return path


def _weights_in(directory: Path) -> Path:
    found = [directory / file for file in WEIGHT_FILES if (directory / file).is_file()]
    if not found:
        raise FileNotFoundError(f"{directory} holds none of {', '.join(WEIGHT_FILES)}")
    return found[0]


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    """The state dict in what torch.save wrote: itself, or under "state_dict" as training scripts write it."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    state = state if isinstance(state, Mapping) else None
    found = {str(key): value for key, value in state.items() if isinstance(value, Tensor)} if state is not None else {}
    if not found:
        raise ValueError(f"{path} holds {type(content).__name__}; expected a state dict, or one under 'state_dict'")
    return found


def _activation_in_code(code: str) -> bool | None:
    """QuickGELU is the one place where CLIP's code calls a sigmoid."""
    quick, plain = "torch.sigmoid(" in code, "torch.gelu(" in code
    return quick if quick != plain else None


def _is_half_linear(state: Mapping[str, Tensor]) -> bool:
    linear = [value for key, value in state.items() if key.startswith("visual.") and key.endswith(HALF_NAMES)]
    other = [state[key] for key in ("visual.positional_embedding", "visual.class_embedding") if key in state]
    return bool(linear and other) and all(map(_is_half, linear)) and not any(map(_is_half, other))


def _is_half(values: Tensor) -> bool:
    return torch.equal(values.to(torch.float16).to(values.dtype), values)
