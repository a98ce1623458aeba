"""What the methods of a CLIP and of an autoencoder are given: tensors, in whatever mode of autograd they are called."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def require_tensor(name: str, value: Any, expected: str) -> None:
    """Raise TypeError unless `value`, given as `name`, is a tensor of real floating point numbers.

    expected: what it should be, in words.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {described(value)}; expected {expected}, a tensor{_way(value)}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} has dtype {str(value.dtype).removeprefix('torch.')}; expected {expected}, of floats")


def described(value: object) -> str:
    """A value of the wrong type in words, with its shape where it has one."""
    module = type(value).__module__.partition(".")[0]
    if module == "PIL":
        return "a PIL picture"
    if isinstance(value, str | os.PathLike):
        return f"the text {os.fspath(value)[:60]!r}" if isinstance(value, str) else f"the path {str(value)[:60]!r}"
    shape = getattr(value, "shape", None)
    size = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    return "None" if value is None else f"a {type(value).__name__}{size}"


def outside_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """What the function makes is made of ordinary tensors, which autograd takes later, wherever it is called."""

    @wraps(function)
    def ordinary(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return ordinary


def _way(value: object) -> str:
    """How to come from a value to a tensor."""
    if type(value).__module__.partition(".")[0] == "PIL":
        return ": clip.preprocess(picture)[None] makes pixels of a picture"
    if isinstance(value, str | os.PathLike):
        return ": clip.preprocess(patchsae.load_image(path))[None] makes pixels of a file"
    return ": torch.as_tensor makes one" if hasattr(value, "__array__") or isinstance(value, list | tuple) else ""
