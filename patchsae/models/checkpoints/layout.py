"""Tensors of a file held against the names, shapes and types that its format says, before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor

from patchsae.disk.tensor_files import require_float32

MOST_NUMBER = 1e30


class Taken(NamedTuple):
    """Attributes:

    tensors: float32, by name.
    sizes: of each symbol, such as {"D": 768, "S": 24576}.
    """

    tensors: dict[str, Tensor]
    sizes: dict[str, int]


def take(
    file: Path,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
    ignored: Iterable[str] = (),
) -> Taken:
    """The tensors of a format, float32, and the sizes that they agree on.

    Args:
        file: for messages.
        tensors: what the file holds, by name.
        shapes: name -> symbols of its dimensions ("S D"; "" for a number). The first that has a symbol says its size.
        optional: the same of tensors that may be missing.
        ignored: names that may be there and say nothing of inference.

    Raises:
        ValueError: a tensor is missing, left over, of another shape, or holds what is no finite real number.
    """
    known = {**shapes, **(optional or {})}
    asked = [*shapes, *(name for name in known if name in tensors)]
    missing = [name for name in asked if not isinstance(tensors.get(name), Tensor)]
    left = [str(name)[:60] for name in tensors if name not in known and name not in set(ignored)]
    if missing or left:
        said = f"has no {missing[0]}" if missing else f"also holds {', '.join(left[:4])}"
        raise ValueError(f"{file} {said}; expected {', '.join(known)}")
    present = {name: symbols.split() for name, symbols in known.items() if name in tensors}
    sizes: dict[str, int] = {}
    for name, symbols in present.items():
        _require_shape(file, name, tuple(tensors[name].shape), symbols, sizes)
    try:
        return Taken({name: require_float32(name, tensors[name]) for name in present}, sizes)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def require_said(file: Path, said: Mapping[str, Any], sizes: Mapping[str, int], keys: Mapping[str, str]) -> None:
    """Raise ValueError where a configuration says another size than the tensors have.

    keys: entry of the configuration -> symbol; entries that are missing or None say nothing.
    """
    for key, symbol in keys.items():
        value = said.get(key)
        if value is not None and (isinstance(value, bool) or value != sizes[symbol]):
            raise ValueError(f"{file}: {key} is {str(value)[:40]}, and the tensors have {symbol} = {sizes[symbol]}")


def text(file: Path, said: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """An entry of a configuration that is text. Raises ValueError for one that is something else."""
    value = said.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{file}: {key} is {str(value)[:40]}; expected text")
    return value


def flag(file: Path, said: Mapping[str, Any], key: str, default: bool) -> bool:
    """An entry of a configuration that is true or false. Raises ValueError for one that is something else."""
    value = said.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{file}: {key} is {str(value)[:40]}; expected true or false")
    return value


def is_number(value: object, least: float = -MOST_NUMBER) -> TypeGuard[int | float]:
    """Whether a value of a file is a number above ``least`` of a size that float32 can do arithmetic with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least < value < MOST_NUMBER


def _require_shape(file: Path, name: str, shape: tuple[int, ...], symbols: list[str], sizes: dict[str, int]) -> None:
    if len(shape) == len(symbols):
        for symbol, size in zip(symbols, shape, strict=True):
            sizes.setdefault(symbol, size)
    expected = tuple(sizes.get(symbol, -1) for symbol in symbols)
    if shape != expected:
        hint = ": transpose it" if shape == expected[::-1] else ""
        shown = tuple(size if size >= 0 else "?" for size in expected)
        raise ValueError(f"{file}: {name} has shape {shape}; expected [{', '.join(symbols)}] = {shown}{hint}")
