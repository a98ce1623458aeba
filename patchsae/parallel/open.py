"""The processes that torchrun started, found; one alone is found without torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from patchsae.parallel.base import PATIENCE, Alone, Parallel


@contextmanager
def open_parallel(
    latent_shards: int = 1, device: torch.device | str = "cpu", patience: timedelta = PATIENCE
) -> Iterator[Parallel]:
    """The processes that `torchrun` started, or this one alone.

    A process that leaves the block with an exception tells the others why, and their next wait ends in `ProcessLost`.

    Args:
        latent_shards: processes that share the latents; the others share the images. Must divide their number.
        device: "cuda" without a number is this process's GPU of its machine; `.device` of the result has the number.
        patience: how long to wait for another process before giving up.

    Raises:
        ValueError: latent_shards does not divide the number of processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if latent_shards < 1 or processes % latent_shards:
        raise ValueError(
            f"latent_shards is {latent_shards} with {processes} process(es); expected a divisor of their number: "
            f"start them with `torchrun --nproc-per-node {max(latent_shards, 1)} -m -- patchsae ...`"
        )
    if processes == 1:
        yield Alone(device)
        return
    from patchsae.parallel.mesh import joined  # torch's DTensor takes a second to import

    with joined(processes // latent_shards, latent_shards, torch.device(device), patience) as mesh:
        yield mesh
