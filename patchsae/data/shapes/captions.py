"""Words for scenes: noun phrases that name any of the factors, and the sentences around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchsae.data.shapes.factors import FACTORS, Scene, ShapeObject

SENTENCES = (
    "{}",
    "{}.",
    "a photo of {}.",
    "a picture of {}",
    "an image of {}.",
    "a drawing of {}",
    "a rendering of {}.",
    "there is {} in the picture.",
    "this is {}.",
    "we see {}",
)


def describe(scene: Scene, factors: Sequence[str] = tuple(FACTORS), second: bool = True) -> str:
    """A noun phrase that names the given factors of the main object and the picture, and no others.

    `second` adds the small object, if there is one, by those of its own factors that are asked for. With all factors:
    "a red striped circle and a small blue plain star on grass in flat style".
    """
    words = [_noun_phrase(scene.main, factors, "")]
    if second and len(scene.objects) > 1:
        words.append("and " + _noun_phrase(scene.objects[1], factors, "small"))
    if "background" in factors:
        words.append(f"on {scene.background}")
    if "style" in factors:
        words.append(f"in {scene.style} style")
    return " ".join(words)


def class_name(values: Mapping[str, str]) -> str:
    """What a combination of factor values is called as a class: "striped circle on grass", without an article.

    One value alone is its own name.
    """
    if len(values) == 1:
        return next(iter(values.values()))
    words = [values[f] for f in ("colour", "texture") if f in values] + [values.get("shape", "object")]
    words += [f"on {values['background']}"] if "background" in values else []
    words += [f"in {values['style']} style"] if "style" in values else []
    return " ".join(words)


def _noun_phrase(thing: ShapeObject, factors: Sequence[str], size: str) -> str:
    noun = thing.shape if "shape" in factors else "object"
    adjectives = [getattr(thing, f) for f in ("colour", "texture") if f in factors]
    words = " ".join(filter(None, [size, *adjectives, noun]))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
