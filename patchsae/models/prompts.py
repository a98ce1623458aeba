"""Class names, prompt templates, and how they become a zero-shot classifier."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from patchsae import progress

_ROWS = 1024  # classes that are compared with all others together
_TWINS = 1e-6  # 1 - cosine: what rounding leaves between two embeddings of the same tokens
DEFAULT_TEMPLATE = "a photo of a {}."
IMAGENET = "imagenet"  # what `resolve` calls OpenAI's 80 templates
# The templates of CoOp, CoCoOp and MaPLe, as the adaptation experiments of PatchSAE use them.
TEMPLATES = {
    "oxfordpets": "a photo of a {}, a type of pet.",
    "oxfordflowers": "a photo of a {}, a type of flower.",
    "fgvcaircraft": "a photo of a {}, a type of aircraft.",
    "food101": "a photo of {}, a type of food.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}
ALIASES = {
    "pets": "oxfordpets",
    "oxfordiiitpet": "oxfordpets",
    "flowers": "oxfordflowers",
    "flowers102": "oxfordflowers",
    "oxfordflowers102": "oxfordflowers",
    "aircraft": "fgvcaircraft",
    "food": "food101",
    "describabletextures": "dtd",
    "ucf": "ucf101",
}


def imagenet_templates() -> list[str]:
    """The 80 templates that OpenAI used on ImageNet, with ``{}`` in the place of the class name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def imagenet_classnames() -> list[str]:
    """OpenAI's 1000 ImageNet class names by label. Two names occur twice: "missile" and "sunglasses"."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def __getattr__(name: str) -> list[str]:
    if name == "IMAGENET_TEMPLATES":
        return imagenet_templates()
    if name == "IMAGENET_CLASSNAMES":
        return imagenet_classnames()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def templates_for(dataset_name: str) -> list[str]:
    """The adaptation experiments' template of a dataset, whatever its spelling ("OxfordPets", "oxford_pets", "pets").

    The name may carry a split, as those of opened datasets do ("OxfordPets:test"). Datasets without a template of
    their own get "a photo of a {}.". Masking uses the 80 `imagenet_templates` on every dataset.
    """
    return [TEMPLATES.get(_plain(dataset_name.partition(":")[0]), DEFAULT_TEMPLATE)]


def resolve(templates: Sequence[str]) -> list[str]:
    """The prompts that a setting stands for, duplicates and order kept.

    "imagenet" stands for OpenAI's 80, the name of a dataset with a template of its own (`TEMPLATES`, in any spelling of
    `templates_for`) for that template, and a text with one "{}" for itself. None at all is "imagenet".

    Raises ValueError for anything else.
    """
    prompts: list[str] = []
    for given in templates or [IMAGENET]:
        if "{}" in given:
            _check_template(given)
            prompts.append(given)
        elif _plain(given) == IMAGENET:
            prompts += imagenet_templates()
        elif _plain(given) in TEMPLATES:
            prompts += templates_for(given)
        else:
            names = ", ".join((IMAGENET, *TEMPLATES))
            raise ValueError(f"templates has {given!r}; expected a text with '{{}}' for the class name, or of {names}")
    return prompts


def classifier(
    encode: Callable[[list[str]], Tensor],
    classnames: Sequence[str],
    templates: Sequence[str],
    renormalise: bool = True,
    batch_size: int = 256,
) -> Tensor:
    """Mean embedding of every class over the templates, ``[C, E]``, summed in float32.

    Args:
        encode: up to ``batch_size`` texts -> unit-norm ``[n, E]``; never called with more, so memory is bounded.
        renormalise: bring the means back to unit norm.

    Raises:
        ValueError: as `check_prompts`.
    """
    check_prompts(classnames, templates)
    total = len(classnames) * len(templates)
    sums: Tensor | None = None
    with progress.track(total, "prompts", "prompts", after=progress.PATIENCE) as bar:
        for start in range(0, total, batch_size):
            numbers = range(start, min(start + batch_size, total))
            texts = [templates[i % len(templates)].replace("{}", classnames[i // len(templates)]) for i in numbers]
            embeddings = encode(texts)
            if sums is None:
                sums = torch.zeros(len(classnames), embeddings.shape[1], device=embeddings.device)
            classes = torch.tensor([i // len(templates) for i in numbers], device=embeddings.device)
            sums = sums.index_add(0, classes, embeddings.float())
            bar.advance(len(numbers))
    assert sums is not None
    weights = F.normalize(sums, dim=-1) if renormalise else sums / len(templates)
    return weights.to(embeddings.dtype)


def refuse_cut(tokenise: Callable[[list[str]], Tensor], classnames: Sequence[str], templates: Sequence[str]) -> None:
    """Raise ValueError for two names that a text tower cannot tell apart because it cuts them off where they differ.

    Args:
        tokenise: n texts -> int64 ``[n, context]``, cut or padded to the context.
    """
    names = list(dict.fromkeys(classnames))
    latest = min(templates, key=lambda template: template.index("{}"))  # where most of a name is left
    padding = tokenise([""])[0, -1]
    tokens = tokenise([latest.replace("{}", name) for name in names])
    seen: dict[bytes, str] = {}
    for name, row in zip(names, tokens.cpu(), strict=True):
        twin = seen.setdefault(row.numpy().tobytes(), name)
        if twin != name and row[-1] != padding:
            labels = f"classnames[{classnames.index(twin)}] and classnames[{classnames.index(name)}]"
            raise ValueError(
                f"{labels} are {_short(twin)} and {_short(name)}, the same within the {len(row)} tokens of the text "
                "tower; shorten the names"
            )


def warn_of_twins(weights: Tensor, classnames: Sequence[str]) -> None:
    """Warn of classes that a classifier ``[C, E]`` cannot tell apart: of them the first is predicted.

    Their names are the same, or made of words that the text tower never learned.
    """
    unit = F.normalize(weights.detach().float(), dim=-1)
    groups: dict[int, list[int]] = {}
    for start in range(0, len(unit), _ROWS):
        same = unit[start : start + _ROWS] @ unit.T > 1 - _TWINS
        same.diagonal(start).fill_(True)  # a row of zeros too is its own
        first = same.int().argmax(dim=1).tolist()
        for label, other in enumerate(first, start):
            if other < label:
                groups.setdefault(other, [other]).append(label)
    if groups:
        shown = [", ".join(f"{label} {_short(classnames[label])}" for label in group[:5]) for group in groups.values()]
        count = sum(map(len, groups.values()))
        warnings.warn(
            f"{count} of {len(unit)} classes have the text embedding of another, which accuracy cannot tell apart: "
            f"{'; '.join(shown[:5])}{'; ...' if len(shown) > 5 else ''}",
            UserWarning,
            stacklevel=3,
        )


def check_prompts(classnames: Sequence[str], templates: Sequence[str]) -> None:
    """Raise ValueError for no classes, a blank class name, no templates, or a template without exactly one ``{}``."""
    for argument, values in (("classnames", classnames), ("templates", templates)):
        if isinstance(values, str):
            raise ValueError(f"{argument} is the text {values!r}; expected a list of texts")
        if len(values) == 0:
            raise ValueError(f"{argument} is empty; expected at least one")
    for label, name in enumerate(classnames):
        if not name.strip():
            raise ValueError(f"classnames[{label}] is {name!r}; expected a name")
    for template in templates:
        _check_template(template)


def _short(name: str) -> str:
    return repr(name) if len(name) <= 60 else repr(f"{name[:28]}...{name[-28:]}")


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} has {template.count('{}')} times '{{}}'; expected exactly one")


def _plain(dataset_name: str) -> str:
    """The key in `TEMPLATES` of a dataset that has one, whatever its spelling."""
    plain = "".join(letter for letter in dataset_name.lower() if letter.isalnum())
    return ALIASES.get(plain, plain)
