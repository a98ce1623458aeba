"""Of which tower a SAE is, and where in it, by the names that other projects give: entries of its metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from patchsae.models.checkpoints.understood import TOKENS
from patchsae.models.openai_names import OPENAI

RESIDUAL = re.compile(r"blocks\.(\d{1,4})\.hook_resid_(pre|post)")  # TransformerLens's names, which many took over
# Of laion's CLIPs on the Hugging Face Hub, whose names say what open_clip calls them
LAION = re.compile(
    r"open-clip:laion/CLIP-(ViT-(?:[BLH]-\d\d|g-14))-((?:DataComp|CommonPool|laion2B)[\w.]*-s\d+[BM]-b\d+K)"
)
MOST = 200  # characters of a name
OURS = {**dict.fromkeys(("model", "pretrained", "tokens", "hook"), (str,)), "layer": (int,), "l0": (int, float)}


def tower(name: object) -> dict[str, str]:
    """``model``, by open_clip's name with its ``pretrained`` where these are the same weights; nothing for no name."""
    if not isinstance(name, str) or not name:
        return {}
    laion = LAION.fullmatch(name)
    if laion is not None:
        return {"model": laion[1], "pretrained": re.sub(r"[-.]", "_", laion[2].lower())}
    return {"model": OPENAI[name], "pretrained": "openai"} if name in OPENAI else {"model": name[:MOST]}


def ours(said: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Of a table, what our metadata say of a SAE's origin: writers leave it in files, and readers find it there."""
    found = {key: said[key] for key, kinds in OURS.items() if type(said.get(key)) in kinds}
    if found.get("tokens") not in TOKENS:
        found.pop("tokens", None)
    return {key: value[:MOST] if isinstance(value, str) else value for key, value in found.items()}


def place(hook: object) -> dict[str, str | int]:
    """``layer``, the block whose output a hook is; or ``hook``, its name, where it is no residual stream after a block.

    The input of block n is the output of block n - 1.
    """
    if not isinstance(hook, str) or not hook:
        return {}
    residual = RESIDUAL.fullmatch(hook)
    layer = -1 if residual is None else int(residual[1]) - (residual[2] == "pre")
    return {"hook": hook[:MOST]} if layer < 0 else {"layer": layer}
