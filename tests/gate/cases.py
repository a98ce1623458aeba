"""What has to be compiled: host code runs on meta tensors, and each distinct launch becomes one case."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from patchsae_kernels.triton import tuning
from patchsae_kernels.triton.launch import Launch, record
from tests.gate.arguments import Call
from tests.gate.parts import Part

GRID_LIMITS = (2**31 - 1, 65_535, 65_535)
"""CUDA's; HIP's are 2^32 threads along the first axis and the same on the others."""


@dataclass(frozen=True)
class Case:
    """One kernel as Triton specialises it for one part. Equal cases compile to the same code."""

    part: Part
    kernel: JITFunction
    configuration: str
    """Types (with /16 where divisibility is compiled in), constants and options, in words."""
    signature: dict[str, str] = field(compare=False)
    constants: dict[tuple[int, ...], Any] = field(compare=False)
    attributes: dict[tuple[int, ...], Any] = field(compare=False)
    options: dict[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def width(self) -> int | None:
        """D, where it is compiled in."""
        named = {self.kernel.arg_names[place[0]]: value for place, value in self.constants.items()}
        return named.get("D", named.get("DEPTH"))


_known: dict[tuple[Any, ...], Case] = {}


def cases(part: Part, calls: Iterable[Call]) -> list[Case]:
    """The distinct cases of ``calls`` on ``part``, in the order of their first launch."""
    found: dict[Case, None] = {}
    for call in calls:
        if call.part not in ("", part.name):
            continue
        for launch in launches(part, call):
            found.setdefault(specialise(part, launch))
    return list(found)


def launches(part: Part, call: Call) -> list[Launch]:
    """What ``call`` starts on ``part``; nothing is run."""
    with tuning.assume(part.name), record() as recorded:
        call.function(*call.arguments, **call.options)
    return recorded


def specialise(part: Part, launch: Launch) -> Case:
    """Triton's own specialisation of a launch: types, divisibility by 16, arguments equal to 1, constants."""
    check_grid(launch, part)
    backend, bind = binder(part, launch.kernel)
    bound, specialisation, _ = bind(*launch.args, **launch.options)
    key = part, launch.kernel, repr(specialisation), repr(launch.options)
    if key not in _known:
        options, signature, constants, attributes = launch.kernel._pack_args(
            backend, dict(launch.options), bound, specialisation, launch.options
        )
        words = configuration(signature, constants, attributes, options)
        _known[key] = Case(part, launch.kernel, words, signature, constants, attributes, options.__dict__)
    return _known[key]


@cache
def binder(part: Part, kernel: JITFunction) -> tuple[Any, Callable[..., Any]]:
    """Triton's compiler for a part, and what binds the arguments of a launch to a kernel's parameters."""
    backend = make_backend(part.target)
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def configuration(
    signature: dict[str, str],
    constants: dict[tuple[int, ...], Any],
    attributes: dict[tuple[int, ...], Any],
    options: Any,
) -> str:
    words = []
    for i, (name, kind) in enumerate(signature.items()):
        if kind == "constexpr":
            words.append(f"{name}={constants[(i,)]}")
        else:
            hints = re.findall(r"'tt\.(\w+)', (\d+)", str(attributes.get((i,), "")))
            words.append(f"{name}:{kind}" + "".join("/16" if hint == "divisibility" else "/2GB" for hint, _ in hints))
    return " ".join([*words, f"warps={options.num_warps}", f"stages={options.num_stages}"])


def check_grid(launch: Launch, part: Part) -> None:
    name, grid = launch.kernel.fn.__name__, launch.grid
    if not 1 <= len(grid) <= 3 or any(not 0 < n <= limit for n, limit in zip(grid, GRID_LIMITS, strict=False)):
        raise ValueError(f"{name} is started on grid {grid}; expected 1 to 3 axes within {GRID_LIMITS}")
    threads = grid[0] * launch.options.get("num_warps", 4) * part.target.warp_size
    if part.target.backend == "hip" and threads >= 2**32:
        raise ValueError(f"{name} is started on {threads} threads along the first axis; HIP takes fewer than 2^32")
