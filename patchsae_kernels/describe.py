"""What runs here, and why."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from patchsae_kernels import cpu, ops


def describe() -> dict[str, Any]:
    """Devices, versions, threads, and the implementation of each op with the reason for it."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "native": {
            "available": cpu.available,
            "level": cpu.level(),
            "why": f"{cpu.level()}: {cpu.why()}",
        },
        "versions": {name: _version(name) for name in ("torch", "triton", "numpy", "open_clip_torch", "patchsae")},
        "python": platform.python_version(),
        "ops": ops.implementations(),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
