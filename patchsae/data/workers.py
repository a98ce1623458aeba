"""Numbered pieces of work, done in worker processes, handed back in order.

Each worker has a pipe of its own, so that one that dies can neither hold what another needs nor be waited for.
"""

from __future__ import annotations

import io
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing  # lets tensors travel through shared memory

from patchsae.interrupt import WorkerDied

T = TypeVar("T")

_AHEAD = 2  # pieces that a worker is asked for before the first of them is taken


def in_workers(work: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """work(0), work(1), ..., work(count - 1), in that order. The workers start here and not with the first piece.

    They end with the last piece, when the iterator is given up, and when this process ends; where it is killed, each
    after the piece that it is at.

    Args:
        work: picklable; called in `workers` processes, or in this one where `workers` is 0. Results do not depend on
            how many there are.

    Raises:
        WorkerDied: while iterating, as soon as any worker is gone.
        whatever `work` raises, with the worker's traceback as a note.
    """
    return _Pool(work, count, workers) if workers and count else map(work, range(count))


class _Pool(Iterator[T], Generic[T]):
    """Piece i is done by worker i modulo their number."""

    def __init__(self, work: Callable[[int], T], count: int, workers: int) -> None:
        self._count, self._next = count, 0
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # also run when this process ends, before multiprocessing would wait for its children
        self._end = util.Finalize(self, _end, (self._pipes, self._processes), exitpriority=100)
        for _ in range(min(workers, count)):
            self._start(work)
        for piece in range(min(_AHEAD * len(self._pipes), count)):
            self._ask(piece)

    def __next__(self) -> T:
        if self._next == self._count:
            self._end()
            raise StopIteration
        piece, self._next = self._next, self._next + 1
        try:
            result, error = self._answer(piece % len(self._pipes))
            if piece + _AHEAD * len(self._pipes) < self._count:
                self._ask(piece + _AHEAD * len(self._pipes))
        except BaseException:
            self._end()
            raise
        if error is not None:
            self._end()
            raise error
        return result

    def _start(self, work: Callable[[int], T]) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._pipes.append(ours)
        # a forked worker has to close its copies of our ends, or nobody would notice that we are gone
        copies = list(self._pipes) if multiprocessing.get_start_method() == "fork" else []
        process = multiprocessing.Process(target=_serve, args=(work, theirs, copies), name="data worker", daemon=True)
        process.start()
        self._processes.append(process)
        theirs.close()

    def _ask(self, piece: int) -> None:
        worker = piece % len(self._pipes)
        try:
            self._pipes[worker].send(piece)
        except OSError as error:
            raise self._death(worker, error) from None

    def _answer(self, worker: int) -> tuple[T, Exception | None]:
        pipe = self._pipes[worker]
        sentinels = [process.sentinel for process in self._processes]
        ready = connection.wait([pipe, *sentinels])
        if pipe in ready:
            try:
                answer: tuple[T, Exception | None] = pipe.recv()
                return answer
            except (OSError, EOFError) as error:  # amid its answer, or before the memory of a tensor was handed over
                raise self._death(worker, error) from None
        raise self._death(sentinels.index(next(one for one in ready if isinstance(one, int))))

    def _death(self, worker: int, seen: Exception | None = None) -> Exception:
        """How a worker died; `seen` where it did not."""
        process = self._processes[worker]
        process.join(5)
        if process.exitcode is None and seen is not None:
            return seen
        return WorkerDied(process.pid or 0, process.exitcode or 0)


def _end(pipes: list[Connection], processes: list[BaseProcess]) -> None:
    """Workers hold nothing that would be lost: they need not be asked."""
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _serve(work: Callable[[int], Any], pipe: Connection, copies: list[Connection]) -> None:
    """What a worker does until its parent closes the pipe or is gone.

    A terminal or a batch system signals the whole group: the parent answers, and its last step needs the workers.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    for copy in copies:
        copy.close()
    torch.set_num_threads(1)
    try:
        while True:
            pipe.send_bytes(_packed(work, pipe.recv()))
    except (EOFError, OSError):
        return


def _packed(work: Callable[[int], Any], piece: int) -> memoryview:
    """(result, None) or (None, what was raised), pickled."""
    try:
        return ForkingPickler.dumps((work(piece), None))
    except Exception as error:
        if hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(f"in a data worker:\n{traceback.format_exc()}")
        return ForkingPickler.dumps((None, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error itself, or where it does not survive pickling one that says the same."""
    try:
        pickle.load(io.BytesIO(ForkingPickler.dumps(error)))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
