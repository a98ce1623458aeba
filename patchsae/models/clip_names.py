"""What people call a CLIP, and what open_clip calls the same one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import open_clip

from patchsae.models.openai_names import OPENAI

HUB = "hf-hub:"
SHOWN = 8  # tags in a message
NOT_SAID = ""


def unknown_model(name: str) -> ValueError:
    """The error for a name that is no model of open_clip, with what may have been meant."""
    forms = "expected a model of open_clip, 'tiny' or 'local-dir:PATH'"
    return ValueError(f"name={name[:100]!r} is not known; {forms}{_meant(name.strip())}")


def without_weights(name: str, identifier: str) -> ValueError:
    """The error for a model of open_clip whose weights nobody named: random ones are for those who ask."""
    return ValueError(
        f"pretrained is not given for {name!r}; expected {tags_of(identifier)}, a file of weights, or 'random'"
    )


def tags_of(identifier: str) -> str:
    """The pretrained tags of a model of open_clip, in words."""
    tags = open_clip.list_pretrained_tags_by_model(identifier)
    more = f" and {len(tags) - SHOWN} more" if len(tags) > SHOWN else ""
    return f"a tag ({', '.join(tags[:SHOWN])}{more})" if tags else "a tag (it has none)"


def _meant(name: str) -> str:
    hub = name.removeprefix(HUB).strip("/")
    if hub.lower() in OPENAI:
        return _same(OPENAI[hub.lower()], "openai")
    for model, tag in open_clip.list_pretrained():
        source = str((open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub", ""))
        if "/" in hub and source.partition("/")[::2] == (hub.partition("/")[0], hub.partition("/")[2] + "/"):
            return _same(model, tag)
    if name.startswith(HUB):
        return ". Models of the Hub are not read under their names there; open_clip has most of them under its own"
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return f": a folder is named as 'local-dir:{name[:100]}'"
    if os.path.isfile(path):
        return ": a file of weights is named as pretrained, beside the model that it is of"
    close = _close(name.replace("/", "-"), open_clip.list_models())
    return f": did you mean {' or '.join(map(repr, close))}?" if close else ". `open_clip.list_models()` has them all"


def _same(model: str, tag: str) -> str:
    return f": the same weights are name={model!r} with pretrained={tag!r}"


def _close(name: str, known: Sequence[str]) -> list[str]:
    folded = {model.lower().replace("_", "-"): model for model in known}
    found = difflib.get_close_matches(name.lower().replace("_", "-"), folded, n=3, cutoff=0.6)
    return [folded[model] for model in found]
