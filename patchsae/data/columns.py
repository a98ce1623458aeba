"""Which columns of a table hold the image and the label, in Hugging Face's feature notation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from patchsae.data.base import DataError
from patchsae.disk.names import spoken

_IMAGE_NAMES = ("image", "img", "jpg", "png", "picture", "photo", "pixel_values")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls")
_MOST_CLASSES = 1_000_000


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
    label = label_column(features)
    names = _names(features[label], source) if label is not None else None
    return Columns(str(_preferred(images, _IMAGE_NAMES)), label, names)


def label_column(features: Mapping[str, object]) -> str | None:
    """The column that holds the classes."""
    classes = [name for name, feature in features.items() if _type(feature) == "ClassLabel"]
    plain = [name for name, feature in features.items() if _type(feature) != "Image" and name in _LABEL_NAMES]
    return _preferred(classes, _LABEL_NAMES) or _preferred(plain, _LABEL_NAMES)


def features_of_schema(schema: pa.Schema) -> dict[str, object]:
    """Feature notation for an Arrow schema without Hugging Face metadata: by column types and names."""
    return {field.name: {"_type": "Image" if _holds_images(field) else "Value"} for field in schema}


@dataclass(frozen=True)
class Labels:
    """A label column."""

    labels: np.ndarray
    """int64 [n], -1 where there is none."""
    classnames: list[str] | None
    """None where the column holds no classes."""
    notes: tuple[str, ...] = ()


def read_labels(values: pa.ChunkedArray, classnames: tuple[str, ...] | None, source: str) -> Labels:
    """A label column: null is no label; texts are classes in sorted order; whole numbers of any type are classes.

    A column of anything else (lists, fractions) says nothing that a class is: no labels, and a note.

    Raises:
        DataError: numbers that are no classes: negative but for -1, or more than there are names, or 1,000,000.
    """
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _of_texts(values)
    numbers = _whole_numbers(values, kind, source)
    if numbers is None:
        note = f"the label column of {source} holds {kind}, not one class an image: the images come without labels"
        return Labels(np.full(len(values), -1), None, (note,))
    most = (len(classnames) if classnames is not None else _MOST_CLASSES) - 1
    wrong = numbers[(numbers < -1) | (numbers > most)]
    if len(wrong):
        raise DataError(f"{source} has the label {wrong[0]}; expected -1 (none) or a class within 0 .. {most:,}")
    if classnames is not None:
        return Labels(numbers, [spoken(name) for name in classnames])
    return Labels(numbers, [str(i) for i in range(int(numbers.max(initial=-1)) + 1)])


def _of_texts(values: pa.ChunkedArray) -> Labels:
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    encoded = encoded.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.chunks) if encoded.num_chunks else pa.array([], encoded.type)
    held = encoded.dictionary.cast(pa.large_binary()).to_pylist()  # a text of strangers need not be UTF-8
    texts = [None if text is None else text.decode("utf-8", "surrogateescape") for text in held]
    indices = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    used = [i for i in np.unique(indices).tolist() if i >= 0 and texts[i] is not None]
    names = sorted({texts[i] for i in used})
    position = {name: i for i, name in enumerate(names)}
    place = np.full(len(texts) + 1, -1, np.int64)
    place[used] = [position[texts[i]] for i in used]
    return Labels(place[indices], [spoken(name) for name in names])


def _whole_numbers(values: pa.ChunkedArray, kind: pa.DataType, source: str) -> np.ndarray | None:
    """int64 [n], null as -1; None where these are no whole numbers."""
    try:
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
            cast = values.cast(pa.int8()) if pa.types.is_boolean(kind) else values
            numbers: np.ndarray = cast.cast(pa.int64()).fill_null(-1).to_numpy()
            return numbers
    except pa.ArrowInvalid as error:  # a fraction, NaN, or a number of more than 63 bits
        if pa.types.is_integer(kind):
            raise DataError(f"{source} has labels that are no classes: {error}") from None
    return None


def _type(feature: object) -> str | None:
    return feature.get("_type") if isinstance(feature, Mapping) else None


def _names(feature: object, source: str) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, Mapping) else None
    if not names:
        return None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DataError(f"source {source} has class names that are no list of texts: {str(names)[:80]}")
    return tuple(names)


def _preferred(present: list[str], order: tuple[str, ...]) -> str | None:
    named = [name for name in order if name in present]
    return (named + present + [None])[0]


def _holds_images(field: pa.Field) -> bool:
    if pa.types.is_struct(field.type):
        place: int = field.type.get_field_index("bytes")
        return place >= 0
    is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    return is_bytes and field.name in _IMAGE_NAMES
