"""Class names, prompt templates, and how they become a zero-shot classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from patchsae import progress

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


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} has {template.count('{}')} times '{{}}'; expected exactly one")


def _plain(dataset_name: str) -> str:
    """The key in `TEMPLATES` of a dataset that has one, whatever its spelling."""
    plain = "".join(letter for letter in dataset_name.lower() if letter.isalnum())
    return ALIASES.get(plain, plain)
