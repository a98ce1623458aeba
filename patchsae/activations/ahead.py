"""An iterator whose next item is made in a thread while the last one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The items in their order, each made while the one before it is used, and no sooner: two exist at a time.

    An exception comes out in the place of the item that raised it. Closing the iterator ends the thread, after the item
    that it is making.
    """
    maker = _Maker(items)
    maker.start()
    try:
        while (made := maker.take()) is not None:
            yield made[0]
    finally:
        maker.stop()


class _Maker(threading.Thread, Generic[T]):
    def __init__(self, items: Generator[T, None, None]) -> None:
        super().__init__(name="ahead", daemon=True)
        self._items = items
        self._made: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._stopped = False

    def run(self) -> None:
        try:
            with closing(self._items) as items:
                while self._wanted.acquire() and not self._stopped:
                    try:
                        self._made.put((next(items),))
                    except StopIteration:
                        self._made.put(None)
                        return
        except BaseException as error:  # whatever it is, it belongs to whoever waits for the item
            self._made.put(error)

    def take(self) -> tuple[T] | None:
        """The next item, None at the end."""
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        self._wanted.release()
        return made

    def stop(self) -> None:
        """Wait for the item that is being made, and make no other."""
        self._stopped = True
        self._wanted.release()
        self.join()
