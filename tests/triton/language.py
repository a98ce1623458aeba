"""The interpreter's replacement of Triton's language made once for all launches, and what types say worked out once.

Triton replaces its language for every launch, and again for every call of one kernel's function by another: a third of
the time of these tests went into looking for what is to be replaced. Another seventh went into shapes of tensors, made
anew for each of them, and into a table of NumPy's types, made anew for each operation.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def replace() -> None:
    """From here on the language is the interpreter's in this process, between launches as well."""
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda _function: interpreter._LangPatchScope()
    interpreter._get_np_dtype = _remembered_dtypes(interpreter._get_np_dtype)
    tl.tensor.__init__ = _remembered_shapes(tl.tensor.__init__)


def _remembered_dtypes(look_up: Any) -> Any:
    """The same function of a type; it goes by the type of an element alone."""
    known: dict[str, np.dtype] = {}

    def dtype(of: tl.dtype) -> np.dtype:
        name = of.scalar.name
        if name not in known:
            known[name] = look_up(of)
        return known[name]

    return dtype


def _remembered_shapes(make: Any) -> Any:
    """The same initialiser of a tensor; those of one type share the shape that the first was given."""
    known: dict[str, tuple[Any, Any]] = {}

    def initialise(tensor: tl.tensor, handle: Any, of: tl.dtype) -> None:
        if of.name not in known:
            make(tensor, handle, of)
            known[of.name] = tensor.shape, tensor.numel
        tensor.shape, tensor.numel = known[of.name]
        tensor.handle, tensor.type, tensor.dtype = handle, of, of.scalar

    return initialise
