"""Processes that add up numbers until the last of them ends: `python -m tests.parallel.ending HOW PATIENCE`."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch

from patchsae.errors import PatchsaeError
from patchsae.parallel import open_parallel


def add_up(how: str, patience: float) -> None:
    """How: "exception", "exit", "sleep", the name of a signal to itself, or "never"; patience in seconds."""
    try:
        with open_parallel(1, "cpu", timedelta(seconds=patience)) as parallel:
            for step in range(1_000_000):
                parallel.sum_data_([torch.ones(4)])
                if step == 3 and parallel.data_rank == parallel.data_size - 1:
                    _end(how)
                if step == 3:
                    print("working", flush=True)
    except PatchsaeError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _end(how: str) -> None:
    if how == "exception":
        raise LookupError("image 17 is torn")
    if how == "exit":
        sys.exit(3)
    if how == "sleep":
        time.sleep(1000)
    if how != "never":
        os.kill(os.getpid(), signal.Signals[how])


if __name__ == "__main__":
    add_up(sys.argv[1], float(sys.argv[2]))
