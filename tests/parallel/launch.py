"""Processes for tests, forked from one that has imported torch already: alone, or such as find each other as torchrun's
do; and torchrun itself.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.parallel.preload"])


class Ended(NamedTuple):
    """How one process ended."""

    status: int
    """Its exit code; minus the signal that killed it."""
    errors: str
    """What it wrote to standard error."""


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alone(work: Callable[..., Any], *arguments: Any, log: Path = Path(os.devnull)) -> BaseProcess:
    """work(*arguments), of an importable module, in a process group of its own, as a shell starts it.

    Its standard error goes to `log`.
    """
    process = CONTEXT.Process(target=_alone, args=(log, work, arguments))
    process.start()
    return process


def launch(size: int, logs: Path, work: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """work(*arguments), of an importable module, in `size` processes; their standard error goes to `logs`."""
    port = free_port()
    processes: list[BaseProcess] = [
        CONTEXT.Process(target=_work, args=(environment(rank, size, port), logs / f"{rank}.log", work, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def ends(processes: list[BaseProcess], logs: Path, timeout: float) -> list[Ended]:
    """Wait for all; AssertionError where one is still there `timeout` seconds after the first of them ended."""
    first: float | None = None
    try:
        while any(process.is_alive() for process in processes):
            if first is None and not all(process.is_alive() for process in processes):
                first = time.monotonic()
            assert first is None or time.monotonic() - first < timeout, f"{_alive(processes)} are still there"
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [Ended(process.exitcode or 0, (logs / f"{rank}.log").read_text()) for rank, process in enumerate(processes)]


def torchrun(size: int, *arguments: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node SIZE ARGUMENTS`, with piped output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *arguments]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=threads)


def _alive(processes: list[BaseProcess]) -> str:
    return f"{sum(process.is_alive() for process in processes)} of {len(processes)} processes"


def _alone(log: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as from a command line
    _errors_to(log)
    work(*arguments)


def _work(variables: dict[str, str], log: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _errors_to(log)
    os.environ |= variables
    work(*arguments)


def _errors_to(log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
