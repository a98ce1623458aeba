"""Real processes joined by gloo, started once and given many laws to check.

    pool = Pool(4)
    results = pool.run(law, 2, 2, *args)      # law(mesh, *args) in each process, on a mesh of data 2 and latents 2

`law` is a function of an importable module; results are by rank.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.parallel.launch import CONTEXT, environment, free_port

PATIENCE = timedelta(seconds=60)


class Pool:
    """`size` processes. After a failed law they are started anew: those that wait for the failed one are stuck."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def run(self, law: Callable[..., Any], data: int, latents: int, *args: Any) -> list[Any]:
        """law(mesh, *args) in every process; AssertionError with its traceback where one fails."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((law, data, latents, args))
        results: list[Any] = [None] * self.size
        waiting: dict[Any, int] = dict(zip(self._pipes, range(self.size), strict=True))
        while waiting:
            ready: list[Any] = wait(list(waiting), timeout=2 * PATIENCE.total_seconds())
            assert ready, f"processes {sorted(waiting.values())} gave no answer"
            for pipe in ready:
                rank = waiting.pop(pipe)
                failure, results[rank] = pipe.recv()
                if failure:
                    self.close()
                    raise AssertionError(f"process {rank} of {self.size}:\n{failure}")
        return results

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        port = free_port()
        for rank in range(self.size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(theirs, rank, self.size, port), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(pipe: Connection, rank: int, size: int, port: int) -> None:
    os.environ |= environment(rank, size, port)
    from patchsae.parallel import open_parallel
    from patchsae.parallel.mesh import Mesh

    meshes: dict[tuple[int, int], Mesh] = {}
    with open_parallel(1, "cpu", PATIENCE):
        while True:
            try:
                law, data, latents, args = pipe.recv()
            except EOFError:
                return
            try:
                if (data, latents) not in meshes:
                    meshes[data, latents] = Mesh(data, latents, patience=PATIENCE)
                pipe.send((None, law(meshes[data, latents], *args)))
            except BaseException:
                pipe.send((traceback.format_exc(), None))
