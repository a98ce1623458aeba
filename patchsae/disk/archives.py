"""Torch files (a zip archive around a pickle) read without running anything that they contain.

Two gates, either of which would do. First the pickle is walked opcode by opcode, which executes nothing, and every
name that it asks for must be one that tensors need or one that the caller named. Then torch's own restricted
unpickler (``weights_only=True``) builds the objects, with the caller's names mapped to inert stand-ins.

And no memory by what a file claims: its entries are held against its bytes before any is read, its tuples (which are
hashed whole) are counted in the walk, and its tensors may together be no more than its storages.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from patchsae.disk import contents
from patchsae.disk.claims import FalseClaim, require_held
from patchsae.errors import brief

_NO_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    LookupError,
    OverflowError,
    UnicodeError,
)
LOADING = threading.Lock()  # torch keeps the names that it may load in one set for the whole process
TENSOR_PARTS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch.Size",
        "torch.device",
    }
)
EXPECTED = "what torch.save (1.6 or newer) writes"
MOST_PICKLE = 4 * 2**20  # bytes; that of the largest CLIP is a tenth of it
MOST_CODE = 64 * 2**20  # bytes of compressed entries unpacked: TorchScript compresses its code, and nothing else is
MOST_IN_TUPLES = 100_000  # entries of a tuple, those of the tuples in it included
MOST_LEVELS = 100  # of tuples in tuples, and of modules in modules
VIEWS = 4  # how often tensors may view a byte of their storages on average: tied weights are stored once
MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
MEMO_READS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class UnsafeFileError(ValueError):
    """The file asks for something that is neither a tensor nor one of the named classes; nothing of it was run."""


class Inert:
    """Stand-in for a class named in a file: takes attributes, does nothing."""


def inert(name: str) -> type[Inert]:
    """An inert class of its own in the place of the class of this dotted name, which is its `__name__`."""
    return type(name, (Inert,), {})


def load_archive(
    path: Path, stand_ins: Mapping[str, Callable[..., Any]], packages: tuple[str, ...] = (), start: int = 0
) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU.

    Args:
        path: a zip archive (torch >= 1.6). Older files, TorchScript archives and bare pickles are refused.
        stand_ins: dotted names that the file may ask for besides tensors, and what to build in their place.
        packages: beginnings of dotted names ("overcomplete.") that the file may ask for: each becomes an inert class
            of its own, whose `__name__` is that name.
        start: where in the file the archive begins.

    Raises:
        UnsafeFileError: naming the first thing that the file asks for and may not have.
        UnexpectedContent: the file is something else, or damaged.
        FalseClaim: it claims more than it holds.
    """
    kind = contents.what_is(path).kind
    if not start and kind not in ("torch", "torchscript", "zip"):
        refuse_asking(path, stand_ins)
        raise contents.unexpected(path, EXPECTED)
    with path.open("rb") as whole:
        file: IO[bytes] = io.BufferedReader(_Tail(whole, start)) if start else whole
        pickled = _read_pickle(path, file)
        named = [name for name in _asked_for(path, pickled) if name.startswith(packages) and _is_class(name)]
        allowed: dict[str, Callable[..., Any]] = {
            **stand_ins,
            **{name: inert(name) for name in named if name not in stand_ins},
        }
        refuse_unknown(path, pickled, allowed)
        return _load(path, file, allowed)


def load_torchscript(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict of a TorchScript archive and the text of its code, which is never run.

    The archive is copied without its code, and its module tree is read as plain data.

    Raises:
        UnsafeFileError: naming what the file asks for besides tensors and TorchScript modules.
    """
    with path.open("rb") as file:
        pickled = _read_pickle(path, file)
        modules = {name: Inert for name in _asked_for(path, pickled) if name.startswith("__torch__.")}
        stand_ins: dict[str, Callable[..., Any]] = {**modules, **_script_values()}
        refuse_unknown(path, pickled, stand_ins)
        with tempfile.TemporaryFile() as copy:
            code = _copy_data(path, file, copy)
            root = _load(path, copy, stand_ins)
    return dict(_flatten(path, root)), code


# torch.serialization.get_unsafe_globals_in_checkpoint (2.15) names what is asked for in 13 of the 20 attacks of
# tests/malice.py: of INST, OBJ, STACK_GLOBAL and extensions it says "unsupported operand", it counts _codecs.encode as
# safe, and it reads no bare pickle. The walk stays for tuples anyway.
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
    """Raise UnsafeFileError for the first name in ``pickled`` that is neither part of a tensor nor in ``stand_ins``.

    Raises FalseClaim for tuples in tuples beyond what anybody saves.
    """
    asked = _asked_for(path, pickled)
    unknown = next((name for name in asked if not (_is_tensor_part(name) or name in stand_ins)), None)
    if unknown is not None:
        allowed = ", ".join(["torch tensors, dtypes and devices", *sorted(stand_ins)][:6])
        raise UnsafeFileError(
            f"{path} asks for {unknown[:100]}, which it may not have (allowed: {allowed}); nothing of it was run"
        )
    try:
        _require_small_tuples(path, pickled)
    except LookupError as error:
        raise UnsafeFileError(f"{path} holds a damaged pickle ({brief(error)}); nothing of it was run") from error


def _asked_for(path: Path, pickled: bytes) -> list[str]:
    """The names of `asked_for`. UnsafeFileError, which names the file, for what is no pickle."""
    try:
        return list(asked_for(pickled))
    except ValueError as error:
        raise UnsafeFileError(f"{path} holds a damaged pickle ({str(error)[:200]}); nothing of it was run") from error


def _require_small_tuples(path: Path, pickled: bytes) -> None:
    """Tuples hold each other by reference, so that sixty opcodes make one of 2^60 entries, to be hashed one by one.

    The stack is followed with (entries, levels) of a tuple in place of each object.
    """
    stack: list[tuple[int, int] | None] = []  # None is a mark
    memo: dict[int, tuple[int, int]] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in MEMO_WRITES:
            memo[len(memo) if argument is None else int(argument)] = stack[-1] or (0, 0)
            continue
        if opcode.name in MEMO_READS or opcode.name in ("MARK", "DUP"):
            known = {"MARK": None, "DUP": stack[-1] if stack else None}
            stack.append(known[opcode.name] if opcode.name in known else memo.get(int(argument or 0), (0, 0)))
            continue
        taken = _take(stack, opcode)
        if not opcode.stack_after:
            continue
        made = (0, 0)
        if "TUPLE" in opcode.name:
            made = (1 + sum(entries for entries, _ in taken), 1 + max((levels for _, levels in taken), default=0))
        elif opcode.name in ("REDUCE", "NEWOBJ"):  # torch.Size(tuple) is one
            made = max(taken, default=made)
        if made[0] > MOST_IN_TUPLES or made[1] > MOST_LEVELS:
            raise FalseClaim(f"{path} claims a tuple of {made[0]:,} entries in {made[1]} levels; nothing of it was run")
        stack.append(made)


def _take(stack: list[tuple[int, int] | None], opcode: pickletools.OpcodeInfo) -> list[tuple[int, int]]:
    """Pop what an opcode takes from the stack."""
    taken: list[tuple[int, int]] = []
    below = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        while (top := stack.pop()) is not None:
            taken.append(top)
        below = opcode.stack_before.index(pickletools.markobject)
    taken += [stack.pop() or (0, 0) for _ in range(below)]
    return taken


def _is_tensor_part(name: str) -> bool:
    """A piece of a pickled tensor, a torch dtype (``torch.float32``) or a typed storage (``torch.FloatStorage``)."""
    if name in TENSOR_PARTS:
        return True
    module, _, attribute = name.rpartition(".")
    known = getattr(torch, attribute, None) if module == "torch" else None
    return isinstance(known, torch.dtype) or (known is not None and attribute.endswith("Storage"))


def _is_class(name: str) -> bool:
    """Whether Python could have a class of this dotted name."""
    return all(part.isidentifier() for part in name.split("."))


def _text(opcode: str, argument: object) -> str | None:
    return argument if isinstance(argument, str) and ("UNICODE" in opcode or "STRING" in opcode) else None


def _read_pickle(path: Path, file: IO[bytes]) -> bytes:
    """The bytes of ``data.pkl``; an archive in which two readers could see different ones is refused."""
    with _opened(path, file) as archive:
        names = archive.namelist()
        record = names[0].partition("/")[0] + "/data.pkl" if names else ""
        if len(set(names)) != len(names) or record not in names:
            raise UnsafeFileError(
                f"{path} is no torch archive (expected one data.pkl, found {str(names[:4])[:200]}); nothing was run"
            )
        require_held(path, "its pickle", archive.getinfo(record).file_size, MOST_PICKLE)
        return archive.read(record)


@contextmanager
def _opened(path: Path, file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """The archive, whose entries hold no more than the file does: neither compressed much nor the same bytes twice."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":  # torch looks at the start of a file, Python at its end
        raise contents.unexpected(path, EXPECTED)
    try:
        with zipfile.ZipFile(file) as archive:
            stored = packed = 0
            for entry in archive.infolist():
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnsafeFileError(
                        f"{path}: {entry.filename[:100]} is compressed in a way that torch never does"
                    )
                if entry.compress_type == zipfile.ZIP_STORED:
                    stored += entry.file_size
                else:
                    packed += entry.file_size
            require_held(path, "the archive", stored, size)
            if packed > MOST_CODE:
                raise FalseClaim(
                    f"{path} claims {packed:,} bytes of compressed entries; torch stores tensors as they are: unpack "
                    "it and pack it again without compression (zip -0)"
                )
            yield archive
    except (*_NO_ARCHIVE, OSError) as error:
        raise UnsafeFileError(f"{path} is a damaged zip archive ({brief(error)}): download or copy it again") from error


def _load(path: Path, file: IO[bytes], stand_ins: Mapping[str, Callable[..., Any]]) -> Any:
    file.seek(0)
    named: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (stand_in, name) for name, stand_in in stand_ins.items()
    ]
    try:
        with LOADING, torch.serialization.safe_globals(named):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle misuses what it may have in any way it likes
        lines = [line.strip() for line in str(error).splitlines() if "WeightsUnpickler error" in line] or [repr(error)]
        raise UnsafeFileError(
            f"{path} cannot be read as tensors and settings: {lines[0][:300]}; nothing of it was run"
        ) from error
    _require_own_bytes(path, content)
    return content


def _require_own_bytes(path: Path, content: object) -> None:
    """Raise FalseClaim where tensors have more entries than were stored: a stride of 0, many views of one storage."""
    claimed, held = 0, {}
    todo, known = [content], set()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            claimed += value.numel() * value.element_size()
            storage = value.untyped_storage()
            held[storage._cdata] = storage.nbytes()
            continue
        if id(value) in known:
            continue
        known.add(id(value))
        if isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
        if isinstance(value, Inert):
            todo += vars(value).values()
    if claimed > VIEWS * sum(held.values()):
        raise FalseClaim(
            f"{path} claims {claimed:,} bytes of tensors and stores {sum(held.values()):,} for them; expected no "
            "tensor that repeats what is stored (call .contiguous() before saving)"
        )


def refuse_asking(path: Path, stand_ins: Mapping[str, Callable[..., Any]]) -> None:
    """Raise UnsafeFileError for a file that is no archive and asks for something as a pickle does."""
    if not path.is_file():
        return
    asked: list[str] = []
    with path.open("rb") as whole:
        file = io.BytesIO(whole.read(MOST_PICKLE))
    try:
        while not asked:  # torch < 1.6 wrote several pickles one after the other
            asked = [name for name in asked_for(file) if not (_is_tensor_part(name) or name in stand_ins)]
    except (ValueError, LookupError, RuntimeError):
        pass
    if asked:
        raise UnsafeFileError(
            f"{path} is {contents.what_is(path).said} and asks for {asked[0][:100]}; expected {EXPECTED}; "
            "nothing of it was run"
        )


class _Tail(io.RawIOBase):
    """A file from ``start`` on, as a file of its own."""

    def __init__(self, file: IO[bytes], start: int) -> None:
        self._file, self._start = file, start
        self._file.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + self._start if whence == os.SEEK_SET else offset
        return self._file.seek(max(self._start, self._file.seek(place, whence))) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start


def _script_values() -> dict[str, Callable[..., Any]]:
    """What TorchScript wraps lists and dicts in; all of them only hand on their first argument."""
    lists = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    return {f"torch.jit._pickle.{name}": _first for name in lists}


def _first(value: Any, *_: Any) -> Any:
    return value


def _copy_data(path: Path, file: IO[bytes], copy: IO[bytes]) -> str:
    """Copy the tensors and the module tree of a TorchScript archive; return the text of its code."""
    code: list[str] = []
    with _opened(path, file) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as plain:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if inner.startswith("code/") and inner.endswith(".py"):
                code.append(archive.read(name).decode("utf-8", "replace"))
            elif inner.startswith("data/") or inner in ("data.pkl", "version", ".data/version", "byteorder"):
                plain.writestr(name, archive.read(name))
    return "\n".join(code)


def _flatten(path: Path, root: object) -> Iterator[tuple[str, Tensor]]:
    """``(dotted name, tensor)`` of every tensor attribute of a tree of stand-ins."""
    if not isinstance(root, Inert):
        raise UnsafeFileError(f"{path} holds a {type(root).__name__}; expected a module of TorchScript")
    todo, modules = [("", root)], 0
    while todo:
        prefix, module = todo.pop()
        modules += 1
        if modules > MOST_IN_TUPLES or prefix.count(".") > MOST_LEVELS:
            raise FalseClaim(f"{path} claims modules in modules without end, such as {prefix[:60]!r}")
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, Inert):
                todo.append((f"{prefix}{name}.", value))
