"""Safetensors files of strangers, and which of their numbers may be weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchsae.disk import contents
from patchsae.disk.claims import require_held

MOST_HEADER = 16 * 2**20  # bytes of names and shapes: a thousand times that of a large CLIP


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises:
        UnexpectedContent: the file is something else, or cut off.
        FalseClaim: its header claims more than anybody writes.
        ValueError: it is damaged.
    """
    if contents.what_is(path).kind != "safetensors":
        raise contents.unexpected(path, "a safetensors file")
    with path.open("rb") as file:
        require_held(path, "its header", int.from_bytes(file.read(8), "little"), MOST_HEADER)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{path} is a safetensors file that is cut off or damaged ({str(error)[:200]}): download or copy it again"
        ) from error


def require_float32(name: str, values: Tensor) -> Tensor:
    """`values` as float32, on their device.

    Raises ValueError unless they are real floating point numbers, finite in float32 too.
    """
    if not values.dtype.is_floating_point:
        raise ValueError(f"{name} has dtype {_name(values.dtype)}; expected real floating point numbers")
    if values.is_sparse or values.layout is not torch.strided:
        raise ValueError(f"{name} is {values.layout}; expected a dense tensor")
    converted = values.to(torch.float32)
    # a sum carries every NaN and infinity on in one pass, 28 times as fast as a count; finite numbers may overflow it
    seen = converted.detach()
    wrong = 0 if bool(seen.sum().isfinite()) else int((~seen.isfinite()).sum())
    if wrong:
        beyond = ", in float32" if bool(values.isfinite().all()) else ""
        raise ValueError(f"{name} has {wrong:,} entries that are NaN or infinite{beyond}; expected finite numbers")
    return converted


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
