from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from patchsae.activations.ahead import ahead


def wait_until(holds) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_items_come_in_their_order():
    assert list(ahead(i * i for i in range(50))) == [i * i for i in range(50)]


def test_the_next_item_is_made_while_one_is_used_and_no_other():
    begun = []

    def items() -> Iterator[int]:
        for i in range(5):
            begun.append(i)
            yield i

    found = ahead(items())
    for i in range(4):
        assert next(found) == i
        wait_until(lambda i=i: begun == list(range(i + 2)))
    time.sleep(0.02)
    assert begun == [0, 1, 2, 3, 4]
    found.close()


def test_items_are_made_in_another_thread():
    assert list(ahead(threading.current_thread() for _ in range(1))) != [threading.current_thread()]


def test_an_exception_comes_after_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no more")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(OSError, match="no more"):
        next(found)


def test_closing_ends_the_thread_and_closes_the_items():
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    before = threading.active_count()
    found = ahead(items())
    next(found)
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before
    assert closed == [True]
