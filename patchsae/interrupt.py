"""Ctrl-C and SIGTERM as a request that long work answers between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is only noted in `.signum`; a second one acts as before.

    Python delivers signals to the main thread alone: entered on another thread, nothing is installed.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._owner = os.getpid()
        self._previous: dict[int, Any] = {}
        self._child_handler: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self._child_handler is not None:
            signal.signal(signal.SIGCHLD, self._child_handler)

    def until_workers_die(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of a data loader opened while this is entered; after a noted signal its failure is their end.

        The signal may have ended the data workers too, and the loader stumbles over that with one of three errors.
        """
        try:
            yield from batches
        except (RuntimeError, OSError, EOFError):
            if self.signum is None:
                raise

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # A forked data worker inherits this handler, and Ctrl-C reaches the whole process group: the parent answers.
        # (For SIGTERM torch gives its workers a handler of their own, and they die of it.)
        if os.getpid() == self._owner:
            self.signum = signum
            self._restore()
            # torch raises "DataLoader worker is killed" from SIGCHLD, wherever the main thread is, amid a step or save
            self._child_handler = signal.signal(signal.SIGCHLD, _disregard)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


def _disregard(signum: int, frame: FrameType | None) -> None:
    """SIG_DFL would not do: Python complains about a signal that is pending while its handler is taken away."""
