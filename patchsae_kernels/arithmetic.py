"""What PyTorch's products inside of an op compute, whatever surrounds the call.

Autocast and the switches of the process (`torch.set_float32_matmul_precision`, ``allow_tf32``, ``fp32_precision``) are
about the layers of a model. An op has a ``precision`` of its own: its float32 products are float32, and only those of
``precision="fp32"`` on a GPU follow the switch for TF32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_REDUCED = ("tf32", "bf16")


def outside_of_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast of what happens on ``device``; it changes dtypes not of products alone, but of `torch.cat` too."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


@contextmanager
def as_said_by(precision: str, device: torch.device) -> Iterator[None]:
    """Products of tensors on ``device`` have the precision of an op, see above."""
    follows = precision == "fp32" and device.type == "cuda"
    switches = _switches.off() if not follows and _switches.are_reduced() else nullcontext()
    with outside_of_autocast(device), switches:
        yield


def tf32_is_allowed() -> bool:
    """Whether a GPU's float32 products outside of this package may take TF32."""
    precision: str = torch.backends.cuda.matmul.fp32_precision
    return precision == "tf32"


class _Switches:
    """The switches of the process, off from the first that asks until the last is done: other threads may be inside.

    One that has the value of the switch above it goes back to following that one.
    """

    def __init__(self) -> None:
        self._all = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[str] = []

    def are_reduced(self) -> bool:
        return self._inside > 0 or any(one.fp32_precision in _REDUCED for one in self._all)

    @contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                above = (torch.backends.fp32_precision, torch.backends.mkldnn.fp32_precision)  # type: ignore[attr-defined]
                now = [one.fp32_precision for one in self._all]
                self._before = ["none" if value == b else value for value, b in zip(now, above, strict=True)]
                self._set(["ieee"] * len(self._all))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._set(self._before)

    def _set(self, values: list[str]) -> None:
        for one, value in zip(self._all, values, strict=True):
            one.fp32_precision = value


_switches = _Switches()
