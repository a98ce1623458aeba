"""What ran, on what, and the two ceilings of the part: moving bytes and multiplying."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import benches.gpu
import patchsae
import patchsae_kernels as pk
from benches.gpu.bench import Bench
from benches.gpu.records import Item, Result
from patchsae.bench.findings import Finding, Findings
from patchsae.bench.timing import Pace, interleaved
from patchsae.disk import environment
from patchsae_kernels import servers

PACKAGES = (pk, patchsae, benches.gpu)
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def items(bench: Bench) -> Iterator[Item]:
    yield Item("machine", lambda: Result(_served(bench), machine(bench.device)))
    yield Item("copy ceiling", lambda: copy_ceiling(bench))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield Item(f"product ceiling, {str(dtype)[6:]}", functools.partial(product_ceiling, bench, dtype))


def machine(device: torch.device) -> dict[str, Any]:
    """Device, versions, switches, and which source this was."""
    return {
        "device": _device(device),
        "clocks as read": _clocks(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "triton": _version("triton"),
            "numpy": _version("numpy"),
            "open_clip": _version("open_clip_torch"),
        },
        "tf32": _tf32(),
        "interpreter": servers.interpreted,
        "ops": pk.describe()["ops"],
        "commit": environment.git_commit(),
        "source": source_hash(),
    }


def identity(device: torch.device) -> dict[str, str]:
    """What results of two runs must share to be joined."""
    return {"device": _device(device)["name"], "torch": torch.__version__, "triton": _version("triton")}


def _served(bench: Bench) -> Findings:
    """What is measured must be the kernels, not the reference, and of this tree, not an installed copy."""
    here = Path(__file__).resolve().parents[3]
    return (
        Finding("the reference serves this GPU", float(bench.on_gpu and not servers.has_triton(bench.device)), 0),
        Finding("TF32 is on, so float32 baselines are not", float(_tf32()), 0),
        Finding("packages of another tree", float(any(root != here for root in _roots())), 0),
    )


def _tf32() -> bool:
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


def source_hash() -> str:
    """SHA-256 over names and contents of all imported packages' Python files: identifies them where git does not."""
    digest = hashlib.sha256()
    for root, package in zip(_roots(), PACKAGES, strict=True):
        for path in sorted((root / package.__name__.split(".")[0]).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _roots() -> list[Path]:
    return [Path(package.__file__ or "").resolve().parents[package.__name__.count(".") + 1] for package in PACKAGES]


def copy_ceiling(bench: Bench) -> Result:
    """Copy within the device's memory; bytes read and bytes written both count."""
    source = torch.rand(bench.size.copy_mb << 18, device=bench.device)
    target = torch.empty_like(source)
    taken = interleaved({"copy": lambda _turn: target.copy_(source)}, bench.device, Pace(0.5, 5, 20, 2))["copy"].spread
    moved = 2 * source.numel() * source.element_size()
    return Result(data={"milliseconds": taken._asdict(), "gb_per_s": moved / taken.median / 1e6})


def product_ceiling(bench: Bench, dtype: torch.dtype) -> Result:
    """The vendor's square product on random data."""
    side = bench.size.product
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    taken = interleaved({"mm": lambda _turn: torch.mm(a, b, out=out)}, bench.device, Pace(0.7, 5, 50, 3))["mm"].spread
    rate = 2 * side**3 / taken.median / 1e9
    return Result(data={"milliseconds": taken._asdict(), "tflop_per_s": rate, "side": side})


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": "CPU", "threads": torch.get_num_threads()}
    part = torch.cuda.get_device_properties(device)
    return {
        "name": part.name,
        "capability": f"{part.major}.{part.minor}",
        "architecture": getattr(part, "gcnArchName", f"sm_{part.major}{part.minor}"),
        "multiprocessors": part.multi_processor_count,
        "l2_mb": part.L2_cache_size / 2**20,
        "memory_gb": part.total_memory / 2**30,
        "host_threads": torch.get_num_threads(),
    }


def _clocks() -> dict[str, str]:
    """What the driver's tool says now; nothing is set."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    fields = [field.strip() for field in done.stdout.splitlines()[0].split(",")]
    return dict(zip(QUERY.split(","), fields, strict=True))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(json.dumps(identity(torch.device(sys.argv[1]))))
