"""Files that would create a marker file if anything in them ran, and files that claim what they do not hold."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Reduced:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def command(marker: Path) -> str:
    return f"touch {marker}"


def text(value: str) -> bytes:
    """Opcode BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def config_with_state(state: bytes) -> bytes:
    """A configuration object of the released class whose state is ``state`` (opcodes)."""
    return b"csrc.sae_training.config\nViTSAERunnerConfig\n)\x81" + state + b"b"


def payloads(marker: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> (dotted name that the refusal must give, pickle)."""
    run = command(marker)
    system = b"cposix\nsystem\n" + text(run) + b"\x85R"
    return {
        "os.system": ("posix.system", pickle.dumps(Reduced(os.system, run), protocol=2)),
        "eval": ("__builtin__.eval", pickle.dumps(Reduced(eval, f"__import__('os').system({run!r})"), protocol=2)),
        "exec": ("__builtin__.exec", pickle.dumps(Reduced(exec, f"import os; os.system({run!r})"), protocol=2)),
        "python 3 eval": (
            "builtins.eval",
            b"\x80\x02cbuiltins\neval\n" + text(f"__import__('os').system({run!r})") + b"\x85R.",
        ),
        "getattr": (
            "builtins.__import__",
            b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\n"
            + text("os")
            + b"\x85R"
            + text("system")
            + b"\x86R"
            + text(run)
            + b"\x85R.",
        ),
        "import before getattr": (
            "builtins.getattr",
            b"\x80\x02cbuiltins\ngetattr\ncos\n__dict__\n" + text("system") + b"\x86R.",
        ),
        "subprocess": ("subprocess.Popen", b"\x80\x02csubprocess\nPopen\n" + text(run) + b"\x85\x81."),
        "INST": ("os.system", b"(S'" + run.encode() + b"'\nios\nsystem\n."),
        "OBJ": ("os.system", b"(cos\nsystem\n" + text(run) + b"o."),
        "STACK_GLOBAL": ("posix.system", pickle.dumps(Reduced(os.system, run), protocol=4)),
        "extension": ("copyreg.extension.7", b"\x80\x02\x82\x07."),
        "reconstructor": ("copyreg._reconstructor", b"\x80\x02ccopyreg\n_reconstructor\n" + b")R."),
        "nested pickle": (
            "torch.storage._load_from_bytes",
            b"\x80\x02ctorch.storage\n_load_from_bytes\n" + text("x") + b"\x85R.",
        ),
        "torch.load": ("torch.load", b"\x80\x02ctorch\nload\n" + text(str(marker)) + b"\x85R."),
        "torch.hub": ("torch.hub.load", b"\x80\x02ctorch.hub\nload\n" + text("evil/repo") + b"\x85R."),
        "codecs": ("_codecs.encode", b"\x80\x02c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R."),
        "config state": ("posix.system", b"\x80\x02" + config_with_state(system) + b"."),
        "config argument": (
            "posix.system",
            b"\x80\x02csrc.sae_training.config\nConfig\n" + system + b"\x85R.",
        ),
        "other class of the module": (
            "src.sae_training.config.os",
            b"\x80\x02csrc.sae_training.config\nos\n" + text("system") + b"\x86R.",
        ),
        "dotted into the class": (
            "src.sae_training.config.Config.__init__",
            b"\x80\x02csrc.sae_training.config\nConfig.__init__\n)R.",
        ),
    }


def harmless_names(marker: Path) -> dict[str, bytes]:
    """Pickles that ask only for allowed names and misuse them."""
    return {
        "build on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text("evil") + text("x") + b"sb.",
        "build with slots on a function": (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__defaults__") + b"Ns\x86b."
        ),
        "config called with arguments": b"\x80\x02csrc.sae_training.config\nConfig\n" + text("x") + b"\x85R.",
        "call of a string": b"\x80\x02" + text("os.system") + text(command(marker)) + b"\x85R.",
        "truncated": b"\x80\x02csrc.sae_training.config\nConfig\n",
        "storage out of bounds": (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
            + b"("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text("0")
            + text("cpu")
            + b"K\x01tQK\x00(M\x00\x10t(K\x01t\x89ccollections\nOrderedDict\n)RtR."
        ),
    }


def archive(pickled: bytes, *, twice: bytes | None = None, shared: tuple[int, int] | None = None) -> bytes:
    """A torch zip archive around a pickle, with one storage of four bytes.

    twice: a second data.pkl. shared: (entries, bytes) of storages that are all the same bytes of the file.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        if twice is not None:
            file.writestr("archive/data.pkl", twice)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", b"\0\0\0\0")
        file.writestr("archive/version", "3\n")
        if shared is not None:
            file.writestr("archive/data/1", bytes(shared[1]))
            one = file.getinfo("archive/data/1")
            for number in range(2, shared[0] + 1):
                other = copy.copy(one)
                other.filename = f"archive/data/{number}"
                file.filelist.append(other)
    return buffer.getvalue()


@contextmanager
def little_memory(most: int = 200 * 2**20) -> Iterator[None]:
    """A block that may take no more than `most` bytes of addresses beyond what the process has: MemoryError else."""
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
