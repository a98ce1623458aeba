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
from patchsae.models.checkpoints import origin
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import PARAMETERS, SAEConfig

CONFIG_CLASSES = ("src.sae_training.config.ViTSAERunnerConfig", "src.sae_training.config.Config")
CONFIG_KEYS = ("cfg", "config")
PLAIN: dict[str, tuple[object, ...]] = {  # what settings of other projects say, which this one has not
    **dict.fromkeys(("activation", "activation_fn", "activation_fn_str"), ("relu", "ReLU", None)),
    "activation_fn_kwargs": ({}, None),
    "k": (None,),
    "architecture": ("standard", None),
    "normalize_activations": ("none", None, False),
    "apply_b_dec_to_input": (True, None),
}
KEPT = ("l1_coefficient", "lr", "batch_size", "total_training_tokens", "dataset_path", "seed", "mse_cls_coefficient")


def _matches(opened: Opened) -> bool:
    table = opened.table
    key = next((key for key in CONFIG_KEYS if key in table), None)
    if key is None or not isinstance(table.get("state_dict"), Mapping):
        return False
    return type(table[key]).__name__ in CONFIG_CLASSES or isinstance(table[key], Mapping)


def _read(opened: Opened, _: Answers) -> Checkpoint:
    file, state = opened.file, dict(opened.table["state_dict"])
    key = next(key for key in CONFIG_KEYS if key in opened.table)
    settings = opened.table[key]
    of_the_class = isinstance(settings, archives.Inert)
    settings = vars(settings) if of_the_class else settings
    settings = {name: value for name, value in settings.items() if not isinstance(value, Tensor)}
    if settings.get("gated_sae") not in (None, False):
        raise ValueError(f"{file} holds a gated SAE (gated_sae is set), which this format does not read")
    if not of_the_class:
        _refuse_other_projects(file, settings)
    if set(state) != set(PARAMETERS) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        found = str([str(name)[:60] for name in list(state)[:6]])
        raise ValueError(f"{file}: state_dict holds {found}, {len(state)} in all; expected the tensors {PARAMETERS}")
    return Checkpoint(file, _config(file, settings, state), state)


def _refuse_other_projects(file: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a table of settings, such as many projects save, with one that no released SAE has."""
    for name, plain in PLAIN.items():
        if name in settings and settings[name] not in plain:
            raise ValueError(
                f"{file}: {name} is {str(settings[name])[:40]}, which no released SAE has (expected {plain[0]}): it is "
                "of another project"
            )


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
    metadata |= origin.tower(model)
    if type(settings.get("block_layer")) is int:
        metadata["layer"] = settings["block_layer"]
    return SAEConfig(d_in=d_in, d_sae=d_sae, metadata={**metadata, "source": file.name})


FORMAT = Format(
    "patchsae-pt",
    _matches,
    _read,
    stand_ins={name: archives.inert(name) for name in CONFIG_CLASSES},
)
