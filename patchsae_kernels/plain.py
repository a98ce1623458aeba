"""What the ops take: tensors with values in memory that their addresses lead to, and whole numbers."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad


def tensor(name: str, value: object, symbols: str = "") -> None:
    """Raise TypeError unless ``value`` is a dense tensor with values that no transform of PyTorch has wrapped.

    While a graph is traced its tensors are stand-ins, and only a tangent is refused.
    """
    expected = f"expected a tensor {symbols}".rstrip()
    if not isinstance(value, Tensor):
        hint = "" if value is None else ": torch.as_tensor makes one of numbers and arrays"
        raise TypeError(f"{name} is a {type(value).__name__}; {expected}{hint}")
    tracing = torch.compiler.is_compiling()
    if not tracing and torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise TypeError(
            f"{name} is inside of a transform of torch.func (grad, vjp, jvp, vmap); {expected} outside of it: "
            "torch.autograd.grad gives gradients, and tokens of all samples can be one [N, D]"
        )
    if forward_ad.unpack_dual(value).tangent is not None:
        raise TypeError(f"{name} has a tangent of forward-mode differentiation; {expected} without: use backward()")
    if tracing:
        return
    what = _without_values(value)
    if what:
        raise TypeError(f"{name} is {what}; {expected} that is dense and holds its values")


def _without_values(value: Tensor) -> str:
    """What kind of tensor this is, if its memory is not that of its values."""
    if value.is_nested:
        return "a nested tensor"
    if value.layout is not torch.strided:
        return f"a tensor of layout {value.layout}"
    if value.is_quantized:
        return f"a quantized tensor ({value.dtype})"
    if value.is_meta or isinstance(value, FakeTensor):
        return "a tensor without values (meta or fake)"
    if value.is_neg():
        return "a view whose sign is turned on reading (resolve_neg makes it plain)"
    return ""


def whole_number(name: str, value: object, least: int = 0) -> int:
    """``value`` as an int.

    Raises:
        TypeError: it is no whole number. ValueError: it is below ``least``.
    """
    try:
        number = value if isinstance(value, int) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {number}; expected at least {least}")
    return number
