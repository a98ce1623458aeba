"""Ctrl-C, SIGTERM and the death of a data worker as a request that long work answers between two steps."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

from patchsae.errors import PatchsaeError

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HINTS = {
    signal.SIGKILL: "the system kills processes so where memory runs out: fewer workers take less",
    signal.SIGBUS: "/dev/shm may be full: fewer workers or smaller batches take less",
}


class WorkerDied(PatchsaeError):
    """A worker process ended before its work was done.

    Attributes:
        pid: of the worker.
        signum: the signal that ended it; SIGCHLD where it was none.
    """

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.signum = signal.Signals(-status if status < 0 else signal.SIGCHLD)
        died = f"was ended by {self.signum.name}" if status < 0 else f"ended with status {status}"
        hint = f" ({_HINTS[self.signum]})" if self.signum in _HINTS else ""
        super().__init__(f"data worker {pid} {died}{hint}")


class Interrupted(SystemExit):
    """Long work stopped on a signal, after its state was saved.

    Uncaught it ends the process with the status 128 + `signum`, as shells expect, and without a traceback. Its message
    is for the caller to print.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.message = message
        """How far it came and how to go on."""

    def __str__(self) -> str:
        return self.message


def stopped_training(signum: int, label: str, step: int, steps: int, where: str) -> Interrupted:
    """A training that stopped. where: "the checkpoint is in FOLDER"."""
    reached = f"{label}: stopped after step {step:,} of {steps:,}"
    return Interrupted(signum, f"{reached}; {where}. The same command goes on from there.")


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is only noted in `.signum`; a second one acts as before.

    The signal that a data worker died of is noted there too: the work that lost it ends with the status that the
    worker had, as if it had been hit itself.

    Python delivers signals to the main thread alone: entered on another thread, nothing is installed.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._owner = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def until_workers_die(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of a data loader; where a worker dies it is named on standard error, noted, and is their end."""
        try:
            yield from batches
        except WorkerDied as death:
            print(death, file=sys.stderr)
            self.signum = self.signum or death.signum

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # A forked process inherits this handler, and Ctrl-C reaches the whole process group: the parent answers.
        if os.getpid() == self._owner:
            self.signum = signum
            self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
