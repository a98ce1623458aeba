"""Which columns of a table hold the image and the label, in Hugging Face's feature notation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from patchsae.data.base import DataError

_IMAGE_NAMES = ("image", "img", "jpg", "png", "picture", "photo", "pixel_values")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls")


@dataclass(frozen=True)
class Columns:
    """The columns of an image table."""

    image: str
    label: str | None
    classnames: tuple[str, ...] | None
    """ClassLabel names; None where the label column, if any, carries none."""


def choose_columns(features: Mapping[str, object], source: str) -> Columns:
    """Reads `features`, {column: {"_type": "Image" | "ClassLabel" | "Value", ...}}, as Hugging Face stores it.

    Of several label columns the first of label, labels, fine_label, ... counts, else the first ClassLabel.

    Raises:
        DataError: no image column.
    """
    images = [name for name, feature in features.items() if _type(feature) == "Image"]
    if not images:
        raise DataError(f"source {source} has columns {', '.join(features)}; expected one that holds images")
    classes = [name for name, feature in features.items() if _type(feature) == "ClassLabel"]
    plain = [name for name, feature in features.items() if _type(feature) == "Value" and name in _LABEL_NAMES]
    label = _preferred(classes, _LABEL_NAMES) or _preferred(plain, _LABEL_NAMES)
    names = _names(features[label]) if label is not None else None
    return Columns(str(_preferred(images, _IMAGE_NAMES)), label, names)


def features_of_schema(schema: pa.Schema) -> dict[str, object]:
    """Feature notation for an Arrow schema without Hugging Face metadata: by column types and names."""
    features: dict[str, object] = {}
    for field in schema:
        if _holds_images(field):
            features[field.name] = {"_type": "Image"}
        elif pa.types.is_integer(field.type) or pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            features[field.name] = {"_type": "Value"}
        else:
            features[field.name] = {"_type": "Other"}
    return features


def labels_and_names(
    values: pa.ChunkedArray, classnames: tuple[str, ...] | None, source: str
) -> tuple[np.ndarray, list[str]]:
    """Label column to (labels int64 [n], classnames): null is -1; texts are classes in sorted order.

    Raises:
        DataError: a column that holds neither integers nor texts.
    """
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        texts = values.to_pylist()
        names = sorted({text for text in texts if text is not None})
        position = {name: i for i, name in enumerate(names)}
        return np.array([position.get(text, -1) for text in texts], np.int64), names
    if not pa.types.is_integer(values.type):
        raise DataError(f"source {source} has labels of type {values.type}; expected integers or texts")
    labels = values.cast(pa.int64()).fill_null(-1).to_numpy()
    if classnames is not None:
        return labels, list(classnames)
    return labels, [str(i) for i in range(int(labels.max(initial=-1)) + 1)]


def _type(feature: object) -> str | None:
    return feature.get("_type") if isinstance(feature, Mapping) else None


def _names(feature: object) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return tuple(names) if names else None


def _preferred(present: list[str], order: tuple[str, ...]) -> str | None:
    named = [name for name in order if name in present]
    return (named + present + [None])[0]


def _holds_images(field: pa.Field) -> bool:
    if pa.types.is_struct(field.type):
        return field.type.get_field_index("bytes") >= 0
    is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    return is_bytes and field.name in _IMAGE_NAMES
