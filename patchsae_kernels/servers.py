"""Who serves an op where: each op has the native extension's module, Triton's, or else the reference.

A module serves an op by a function of the op's name, for the calls of which its ``serves(call)`` is true. Triton's are
loaded on first use, so that a machine without a GPU never does. They serve CUDA and ROCm tensors (PyTorch calls both
"CUDA"). With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs them, and they serve CPU tensors in
the extension's place: this is how they are tested without a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from operator import itemgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from patchsae_kernels import cpu
from patchsae_kernels.arithmetic import as_said_by, outside_of_autocast

interpreted: bool = os.environ.get("TRITON_INTERPRET") == "1"
KEYS: tuple[str, ...] = ("CUDA", "CPU") if interpreted else ("CUDA",)
"""Dispatch keys that Triton's modules are registered for, where it is installed."""
if importlib.util.find_spec("triton") is None:
    KEYS = ()

REFERENCE = "CompositeExplicitAutograd"
"""The dispatch key of what runs where nothing faster does."""


@dataclass(frozen=True)
class Server:
    """A module that serves an op on some devices, and what `describe` says of it."""

    module: str
    words: str
    on_gpu: bool = False


@dataclass(frozen=True)
class Op:
    """A row of the table.

    Attributes:
        schema: in PyTorch's words.
        call: the record that carries the arguments, by their names in the schema.
        shapes: the results without their values, from a call with tensors that have none.
        reference: the module that serves what nothing else does.
        cpu: the extension's module, if any.
        triton: the module in `patchsae_kernels.triton`, if any: its name, for importing it needs Triton and takes long.
        multiplies: whether the op may take PyTorch's products, which then have the precision of the call.
    """

    schema: str
    call: type[Any]
    shapes: Callable[[Any], Any]
    reference: ModuleType
    cpu: ModuleType | None = None
    triton: str | None = None
    multiplies: bool = False

    @property
    def name(self) -> str:
        return self.schema[: self.schema.index("(")]

    def servers(self) -> dict[str, Server]:
        """By dispatch key; where there is none, the reference serves all calls."""
        found = {}
        if self.cpu is not None and cpu.available and "CPU" not in KEYS:
            found["CPU"] = Server(self.cpu.__name__, f"native C++ ({cpu.level()}); reference for float64")
        if self.triton is not None:
            words = {"CUDA": "Triton", "CPU": "Triton, in its interpreter (TRITON_INTERPRET=1)"}
            module = f"patchsae_kernels.triton.{self.triton}"
            found |= {key: Server(module, words[key], on_gpu=True) for key in KEYS}
        return found


def define(library: torch.library.Library, op: Op) -> None:
    """The op's schema, its shapes for tracing, and whoever serves it."""
    library.define(op.schema)
    record = _record(op)
    torch.library.register_fake(
        f"{library.ns}::{op.name}", lambda *arguments: op.shapes(record(*arguments)), lib=library
    )
    library.impl(op.name, _dispatched(op, record, None), REFERENCE)
    for key, server in op.servers().items():
        library.impl(op.name, _dispatched(op, record, server), key)


def _record(op: Op) -> Callable[..., Any]:
    """Makes the record of an op's arguments as the dispatcher gives them, without those that have their defaults."""
    arguments = [argument.name for argument in getattr(torch.ops.patchsae, op.name).default._schema.arguments]
    names = [field.name for field in fields(op.call)]
    if sorted(names) != sorted(arguments):
        raise TypeError(f"{op.name} has the arguments {arguments}, its record {names}; expected the same names")
    if names == arguments:
        return op.call
    in_order = itemgetter(*map(arguments.index, names))
    return lambda *given: op.call(*in_order(given))


def _dispatched(op: Op, record: Callable[..., Any], server: Server | None) -> Callable[..., Any]:
    """What the dispatcher calls: the server where it serves the call, the reference elsewhere."""
    name = op.name

    def serve(*arguments: Any) -> Any:
        call, device = record(*arguments), arguments[0].device
        with as_said_by(getattr(call, "precision", "exact"), device) if op.multiplies else outside_of_autocast(device):
            fast = None if server is None else _load(server.module)
            return getattr(fast if fast is not None and fast.serves(call) else op.reference, name)(call)

    return _on_its_device(serve) if server is not None and server.on_gpu else serve


@cache
def _load(module: str) -> ModuleType:
    return importlib.import_module(module)


def _on_its_device(serve: Callable[..., Any]) -> Callable[..., Any]:
    """Kernels start on the current device: make that the one of the first argument."""

    def guarded(first: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):
            return serve(first, *rest)

    return guarded


def has_triton(device: torch.device) -> bool:
    """Whether Triton's modules serve tensors of a device."""
    return device.type.upper() in KEYS


def pack(W_enc: Tensor, b_enc: Tensor, precision: str) -> list[Tensor]:
    """Packed copies for `encode`; empty where the reference serves these weights."""
    if not has_triton(W_enc.device):
        return cpu.pack(W_enc, b_enc, precision)
    from patchsae_kernels.triton import pack as packing

    with torch.cuda.device_of(W_enc):
        return list(packing.pack(W_enc, b_enc, precision)) if packing.packs(W_enc) else []


def pack_biases(b_enc: Tensor, packed: list[Tensor]) -> None:
    """Bring up to date what Triton's packed copies know of the biases."""
    from patchsae_kernels.triton import pack as packing

    with torch.cuda.device_of(b_enc):
        packing.pack_biases(packing.Packed(*packed), b_enc)
