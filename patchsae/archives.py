"""Torch files (a zip archive around a pickle) read without running anything that they contain.

Two gates, either of which would do. First the pickle is walked opcode by opcode, which executes nothing, and every
name that it asks for must be one that tensors need or one that the caller named. Then torch's own restricted
unpickler (``weights_only=True``) builds the objects, with the caller's names mapped to inert stand-ins.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

LOADING = threading.Lock()  # torch keeps the names that it may load in one set for the whole process
MALFORMED = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    struct.error,
)
TENSOR_PARTS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch.Size",
        "torch.device",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
MEMO_READS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class UnsafeFileError(ValueError):
    """The file asks for something that is neither a tensor nor one of the named classes; nothing of it was run."""


class Inert:
    """Stand-in for a class named in a file: takes attributes, does nothing."""


def load_archive(path: Path, stand_ins: Mapping[str, Callable[..., Any]]) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU.

    Args:
        path: a zip archive (torch >= 1.6). Older files, TorchScript archives and bare pickles are refused.
        stand_ins: dotted names that the file may ask for besides tensors, and what to build in their place.

    Raises:
        UnsafeFileError: naming the first thing that the file asks for and may not have.
        ValueError: the file is damaged or no archive.
    """
    with path.open("rb") as file:
        if not _is_zip(file):
            raise UnsafeFileError(_refuse_bare_pickle(path, stand_ins))
        refuse_unknown(path, _read_pickle(path, file), stand_ins)
        return _load(path, file, stand_ins)


def load_torchscript(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict of a TorchScript archive and the text of its code, which is never run.

    The archive is copied without its code, and its module tree is read as plain data.

    Raises:
        UnsafeFileError: naming what the file asks for besides tensors and TorchScript modules.
    """
    with path.open("rb") as file:
        pickled = _read_pickle(path, file)
        modules = {name: Inert for name in asked_for(pickled) if name.startswith("__torch__.")}
        stand_ins: dict[str, Callable[..., Any]] = {**modules, **_script_values()}
        refuse_unknown(path, pickled, stand_ins)
        with tempfile.TemporaryFile() as copy:
            code = _copy_data(file, copy)
            root = _load(path, copy, stand_ins)
    return dict(_flatten(root, "")), code


def is_torchscript(path: Path) -> bool:
    """Whether ``path`` is an archive written by ``torch.jit.save``."""
    with path.open("rb") as file:
        if not _is_zip(file):
            return False
        with zipfile.ZipFile(file) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def asked_for(pickled: bytes | IO[bytes]) -> Iterator[str]:
    """Every dotted name that a pickle would import, in order, found without executing it.

    Raises:
        ValueError: the bytes are no pickle.
    """
    strings: list[str] = []
    memo: dict[int, str | None] = {}
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":  # protocol 4: module and name are the two strings on the stack
            yield ".".join(strings[-2:])
        elif opcode.name.startswith("EXT"):
            yield f"copyreg.extension.{argument}"
        if opcode.name in MEMO_WRITES:
            memo[len(memo) if argument is None else int(argument)] = last
            continue
        last = memo.get(int(argument or 0)) if opcode.name in MEMO_READS else _text(opcode.name, argument)
        if last is not None:
            strings.append(last)


def refuse_unknown(path: Path, pickled: bytes, stand_ins: Mapping[str, Callable[..., Any]]) -> None:
    """Raise UnsafeFileError for the first name in ``pickled`` that is neither part of a tensor nor in ``stand_ins``."""
    try:
        unknown = [name for name in asked_for(pickled) if not (_is_tensor_part(name) or name in stand_ins)]
    except ValueError as error:
        raise UnsafeFileError(f"{path} holds a damaged pickle ({error}); nothing of it was run") from error
    if unknown:
        allowed = ", ".join(["torch tensors, dtypes and devices", *sorted(stand_ins)][:6])
        raise UnsafeFileError(
            f"{path} asks for {unknown[0]}, which it may not have (allowed: {allowed}); nothing of it was run"
        )


def _is_zip(file: IO[bytes]) -> bool:
    """Whether both Python and torch take the file for a zip archive: torch looks at the start, Python at the end."""
    file.seek(0)
    starts = file.read(4) == b"PK\x03\x04"
    return starts and zipfile.is_zipfile(file)


def _is_tensor_part(name: str) -> bool:
    """A piece of a pickled tensor, a torch dtype (``torch.float32``) or a typed storage (``torch.FloatStorage``)."""
    if name in TENSOR_PARTS:
        return True
    module, _, attribute = name.rpartition(".")
    known = getattr(torch, attribute, None) if module == "torch" else None
    return isinstance(known, torch.dtype) or (known is not None and attribute.endswith("Storage"))


def _text(opcode: str, argument: object) -> str | None:
    return argument if isinstance(argument, str) and ("UNICODE" in opcode or "STRING" in opcode) else None


def _read_pickle(path: Path, file: IO[bytes]) -> bytes:
    """The bytes of ``data.pkl``; an archive in which two readers could see different ones is refused."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        record = names[0].partition("/")[0] + "/data.pkl" if names else ""
        if len(set(names)) != len(names) or record not in names:
            raise UnsafeFileError(
                f"{path} is no torch archive (expected one data.pkl, found {names[:4]}); nothing was run"
            )
        return archive.read(record)


def _load(path: Path, file: IO[bytes], stand_ins: Mapping[str, Callable[..., Any]]) -> Any:
    file.seek(0)
    named: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (stand_in, name) for name, stand_in in stand_ins.items()
    ]
    try:
        with LOADING, torch.serialization.safe_globals(named):
            return torch.load(file, map_location="cpu", weights_only=True)
    except MALFORMED as error:
        lines = [line.strip() for line in str(error).splitlines() if "WeightsUnpickler error" in line] or [repr(error)]
        raise UnsafeFileError(
            f"{path} cannot be read as tensors and settings: {lines[0]}; nothing of it was run"
        ) from error


def _refuse_bare_pickle(path: Path, stand_ins: Mapping[str, Callable[..., Any]]) -> str:
    """Why a file that is no zip archive is refused, with the first name that it asks for where there is one."""
    asked: list[str] = []
    with path.open("rb") as file:
        try:
            while not asked:  # torch < 1.6 wrote several pickles one after the other
                asked = [name for name in asked_for(file) if not (_is_tensor_part(name) or name in stand_ins)]
        except (ValueError, RuntimeError):
            pass
    wants = f" and asks for {asked[0]}" if asked else ""
    return (
        f"{path} is not a zip archive as torch >= 1.6 writes{wants}; nothing of it was run. "
        "If you trust it, load it yourself and save it again with torch.save"
    )


def _script_values() -> dict[str, Callable[..., Any]]:
    """What TorchScript wraps lists and dicts in; all of them only hand on their first argument."""
    lists = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    return {f"torch.jit._pickle.{name}": _first for name in lists}


def _first(value: Any, *_: Any) -> Any:
    return value


def _copy_data(file: IO[bytes], copy: IO[bytes]) -> str:
    """Copy the tensors and the module tree of a TorchScript archive; return the text of its code."""
    code: list[str] = []
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as plain:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if inner.startswith("code/") and inner.endswith(".py"):
                code.append(archive.read(name).decode("utf-8", "replace"))
            elif inner.startswith("data/") or inner in ("data.pkl", "version", ".data/version", "byteorder"):
                plain.writestr(name, archive.read(name))
    return "\n".join(code)


def _flatten(module: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """``(dotted name, tensor)`` of every tensor attribute of a tree of stand-ins."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Inert):
            yield from _flatten(value, f"{prefix}{name}.")
