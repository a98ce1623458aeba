"""One writer per folder: an advisory lock that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from patchsae.errors import PatchsaeError

_ORPHAN_WAIT = 10.0  # seconds


class StageLocked(PatchsaeError):
    """Another process is writing the folder."""


class FolderLock:
    """Holds `folder` until `release` or the end of the process. Raises StageLocked, naming the holder.

    wait: block until the folder is free instead of raising.
    """

    FILE = ".lock"

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self._descriptor = os.open(folder / self.FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            self._acquire(folder, wait)
        except BaseException:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes hold locks on different files of one name."""
        os.ftruncate(self._descriptor, 0)
        # An explicit unlock: a worker forked meanwhile has its own copy of the descriptor
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def _acquire(self, folder: Path, wait: bool) -> None:
        if wait:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            return
        deadline = time.monotonic() + _ORPHAN_WAIT
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self._holder()
                # Data workers of a killed process keep its lock for the few seconds until they notice.
                if holder is None or _alive(holder) or time.monotonic() > deadline:
                    who = f"process {holder}" if holder is not None else "another process"
                    raise StageLocked(f"{folder} is being written by {who}; wait for it or use another run") from None
                time.sleep(0.1)

    def _holder(self) -> int | None:
        text = os.pread(self._descriptor, 32, 0)
        return int(text) if text.isdigit() and len(text) < 10 else None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
