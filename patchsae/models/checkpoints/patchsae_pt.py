"""The released PatchSAE checkpoint: one ``.pt`` file, ``{"cfg" or "config": ..., "state_dict": ...}``.

The configuration is a pickled object of the released code. Its class is replaced by an inert stand-in that only holds
attributes; the file may ask for that class, for tensors, dtypes and devices, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from patchsae.disk import archives
from patchsae.disk.contents import what_is
from patchsae.models.checkpoints.format import Checkpoint, Format
from patchsae.models.sae_config import PARAMETERS, SAEConfig

CONFIG_CLASSES = ("src.sae_training.config.ViTSAERunnerConfig", "src.sae_training.config.Config")
CONFIG_KEYS = ("cfg", "config")
# The released code loads CLIP through Hugging Face; these are the same weights under open_clip's names.
OPEN_CLIP_NAMES = {
    "openai/clip-vit-base-patch16": "ViT-B-16-quickgelu",
    "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu",
    "openai/clip-vit-large-patch14": "ViT-L-14-quickgelu",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu",
}
KEPT = ("l1_coefficient", "lr", "batch_size", "total_training_tokens", "dataset_path", "seed", "mse_cls_coefficient")


def _matches(path: Path) -> bool:
    return _file(path) is not None


def _read(path: Path) -> Checkpoint:
    file = _file(path)
    assert file is not None
    content = archives.load_archive(file, dict.fromkeys(CONFIG_CLASSES, archives.Inert))
    settings, state = _parts(file, content)
    if settings.get("gated_sae"):
        raise ValueError(f"{file} holds a gated SAE (gated_sae is set), which this format does not read")
    try:
        return Checkpoint(file, _config(file, settings, state), state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _file(path: Path) -> Path | None:
    """The file itself, if it is called ``.pt`` or is a torch archive, or the only ``.pt`` of a directory."""
    if path.is_file():
        return path if path.suffix in (".pt", ".pth") or what_is(path).kind == "torch" else None
    files = list(path.glob("*.pt")) if path.is_dir() else []
    return files[0] if len(files) == 1 else None


def _parts(file: Path, content: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights, by name."""
    keys = list(content) if isinstance(content, Mapping) else []
    key = next((key for key in CONFIG_KEYS if key in keys), None)
    if not isinstance(content, Mapping) or key is None or not isinstance(content.get("state_dict"), Mapping):
        found = str(keys)[:200] if keys else type(content).__name__
        raise ValueError(f"{file} holds {found}; expected 'state_dict' and 'cfg' or 'config', as a SAE has them")
    state = dict(content["state_dict"])
    if set(state) != set(PARAMETERS) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        found = str([str(name)[:60] for name in list(state)[:6]])
        raise ValueError(f"{file}: state_dict holds {found}, {len(state)} in all; expected the tensors {PARAMETERS}")
    settings = content[key]
    if isinstance(settings, archives.Inert):
        settings = vars(settings)
    if not isinstance(settings, Mapping):
        raise ValueError(f"{file}: {key} is a {type(settings).__name__}; expected a configuration object or a dict")
    return dict(settings), state


def _config(file: Path, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> SAEConfig:
    """Sizes from the settings where they are there (so that a transposed file is noticed), else from the biases.

    Raises ValueError for settings that no SAE has.
    """
    d_in = settings.get("d_in", state["b_dec"].numel())
    d_sae = settings.get("d_sae", state["b_enc"].numel())
    model = settings.get("model_name", "")
    if not isinstance(model, str):
        raise ValueError(f"model_name is a {type(model).__name__}; expected text")
    metadata: dict[str, str | int | float] = {
        name: settings[name] for name in KEPT if isinstance(settings.get(name), (str, int, float))
    }
    if model in OPEN_CLIP_NAMES:
        metadata |= {"model": OPEN_CLIP_NAMES[model], "pretrained": "openai"}
    elif model:
        metadata["model"] = model
    if type(settings.get("block_layer")) is int:
        metadata["layer"] = settings["block_layer"]
    return SAEConfig(d_in=d_in, d_sae=d_sae, metadata={**metadata, "source": file.name})


FORMAT = Format("patchsae-pt", "the released .pt file with 'cfg' or 'config' and 'state_dict'", _matches, _read)
