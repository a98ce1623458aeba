"""What the tensors of a stage must look like before anything is made of them: a run's files are untrusted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def require_shapes(tensors: Mapping[str, Tensor | None], expected: Mapping[str, str], **sizes: int) -> None:
    """Raise ValueError unless every tensor has its dtype and shape.

    Args:
        expected: name -> dtype and dimensions, as in ``"int64 C S"``; a tensor that is None is left out. A letter
            stands for one size throughout, a number for itself.
        sizes: letters whose size is known.
    """
    known = dict(sizes)
    for name, description in expected.items():
        tensor = tensors[name]
        if tensor is None:
            continue
        dtype, *dimensions = description.split()
        found = tuple(tensor.shape)
        if len(found) == len(dimensions):
            for letter, size in zip(dimensions, found, strict=True):
                known.setdefault(letter, size)
        wanted = tuple(int(d) if d.isdecimal() else known.get(d, d) for d in dimensions)
        if str(tensor.dtype) != f"torch.{dtype}" or found != wanted:
            raise ValueError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(found)}; expected {dtype} "
                f"[{', '.join(dimensions)}] = {list(wanted)}"
            )


def require_range(name: str, tensor: Tensor | None, least: int, most: int) -> None:
    """Raise ValueError unless all integers of a tensor (None: none) lie in least..most."""
    if tensor is not None and tensor.numel():
        low, high = (int(value) for value in tensor.aminmax())
        if low < least or high > most:
            raise ValueError(f"{name} holds {low} .. {high}; expected {least} .. {most}")
