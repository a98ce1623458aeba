"""Progress of a long loop: a live bar on a terminal, a plain line now and then anywhere else. No threads."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from patchsae import words

PATIENCE = 1.0
"""Seconds that a part of a verb may take in silence (`track(after=...)`)."""
_LINE_EVERY = 10.0  # seconds between plain lines
_BAR_EVERY = 0.1  # seconds between redraws of the bar
_WINDOW = 60.0  # seconds that the current rate looks back


class Progress:
    """Counts finished units and shows them. Made by `track`."""

    def __init__(self, display: _Display, tally: _Tally) -> None:
        self._display = display
        self._tally = tally

    @property
    def done(self) -> int:
        """Units finished so far, those before a resume included."""
        return self._tally.done

    def advance(self, n: int = 1, **numbers: Any) -> None:
        """Count `n` more units. numbers: current values (loss=...), anything `float` takes; read only when shown."""
        self._tally.add(n, numbers)
        self._display.update(self._tally)


@contextmanager
def track(
    total: int | None,
    label: str,
    unit: str = "img",
    *,
    start: int = 0,
    after: float = 0.0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show the progress of a block on `stream` (default: standard error): rate, time left, current numbers.

    total: units in all, None if unknown. start: units done before a resume; rate and time left count new work only.
    after: seconds before anything is shown; of a block that takes no longer, nothing is, nor by any but the first of
    the processes of torchrun.
    """
    shown_on = sys.stderr if stream is None else stream
    tally = _Tally(total, label, unit, start, clock)

    def begin() -> _Display:
        return _Bar(shown_on, tally) if _is_terminal(shown_on) else _Lines(shown_on)

    display: _Display = _Late(after, begin) if after else begin()
    try:
        yield Progress(display, tally)
    except BaseException:
        display.close(tally, complete=False)
        raise
    display.close(tally, complete=True)


class _Tally:
    """What has been done and how fast."""

    def __init__(self, total: int | None, label: str, unit: str, start: int, clock: Callable[[], float]) -> None:
        self.total, self.label, self.unit, self.start, self.done = total, label, unit, start, start
        self.numbers: dict[str, Any] = {}
        self.clock = clock
        self.began = clock()
        self._recent: deque[tuple[float, int]] = deque([(self.began, start)])  # (time, done), about one a second

    def add(self, n: int, numbers: dict[str, Any]) -> None:
        self.done += n
        self.numbers |= numbers
        now = self.clock()
        if now - self._recent[-1][0] >= 1.0:
            self._recent.append((now, self.done))
            while len(self._recent) > 2 and now - self._recent[1][0] >= _WINDOW:
                self._recent.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the block began."""
        return self.clock() - self.began

    @property
    def mean_rate(self) -> float | None:
        """Units a second over the whole block; None before any time or work."""
        return _rate(self.done - self.start, self.elapsed)

    @property
    def rate(self) -> float | None:
        """Units a second over about the last minute."""
        then, done_then = self._recent[0]
        return _rate(self.done - done_then, self.clock() - then)

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the current rate; None if the total or the rate is unknown."""
        rate = self.rate
        return None if self.total is None or not rate else max(0, self.total - self.done) / rate

    def amount(self) -> str:
        return f"{self.done:,}" + ("" if self.total is None else f" / {self.total:,}") + f" {self.unit}"

    def speed(self) -> str:
        rate = self.rate
        return "" if rate is None else f"{words.number(rate)} {self.unit}/s"

    def shown_numbers(self) -> str:
        return "  ".join(f"{name} {words.number(_read(value))}" for name, value in self.numbers.items())


class _Display(Protocol):
    def update(self, tally: _Tally) -> None: ...

    def close(self, tally: _Tally, complete: bool) -> None: ...


class _Late:
    """Nothing for a while, then another display."""

    def __init__(self, after: float, begin: Callable[[], _Display]) -> None:
        self._after = after if os.environ.get("RANK", "0") == "0" else math.inf
        self._begin = begin
        self._begun: _Display | None = None

    def update(self, tally: _Tally) -> None:
        if self._begun is None and tally.elapsed >= self._after:
            self._begun = self._begin()
        if self._begun is not None:
            self._begun.update(tally)

    def close(self, tally: _Tally, complete: bool) -> None:
        if self._begun is not None:
            self._begun.close(tally, complete)


class _Lines:
    """A line at the first advance, one every ten seconds, one at the end: readable in a log file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: float | None = None

    def update(self, tally: _Tally) -> None:
        now = tally.clock()
        if self._last is None or now - self._last >= _LINE_EVERY:
            self._last = now
            left = tally.seconds_left
            share = words.percent(tally.done / tally.total) if tally.total else ""
            eta = "" if left is None else f"ETA {words.duration(left)}"
            self._print(tally.label, tally.amount(), share, tally.speed(), eta, tally.shown_numbers())

    def close(self, tally: _Tally, complete: bool) -> None:
        self._print(_last_line(tally, complete))

    def _print(self, *parts: str) -> None:
        with suppress(BrokenPipeError):  # whoever read this is gone; the work is not
            print("  ".join(part for part in parts if part), file=self._stream, flush=True)


class _Bar:
    """A bar drawn by rich, redrawn from `update` itself so that no thread runs beside the work."""

    def __init__(self, stream: TextIO, tally: _Tally) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=Console(file=stream, force_terminal=True),
            auto_refresh=False,
            transient=True,
        )
        self._stream = stream
        self._task = self._bar.add_task(tally.label, total=tally.total, completed=tally.start, status=tally.amount())
        self._last = tally.clock()
        self._bar.start()
        self._bar.refresh()

    def update(self, tally: _Tally) -> None:
        now = tally.clock()
        if now - self._last < _BAR_EVERY:
            return
        self._last = now
        left = tally.seconds_left
        eta = "" if left is None else f"ETA {words.duration(left)}"
        parts = (tally.amount(), tally.speed(), eta, tally.shown_numbers())
        self._bar.update(self._task, completed=tally.done, status="  ".join(part for part in parts if part))
        self._bar.refresh()

    def close(self, tally: _Tally, complete: bool) -> None:
        self._bar.stop()
        print(_last_line(tally, complete), file=self._stream, flush=True)


def _last_line(tally: _Tally, complete: bool) -> str:
    rate = tally.mean_rate
    did = f"{tally.done - tally.start:,} {tally.unit} in {words.duration(tally.elapsed)}"
    speed = "" if rate is None else f" ({words.number(rate)} {tally.unit}/s)"
    reached = f", {tally.amount()} in all" if tally.start else ("" if complete else f", of {tally.amount()}")
    parts = (tally.label, f"{'done' if complete else 'stopped'}: {did}{speed}{reached}", tally.shown_numbers())
    return "  ".join(part for part in parts if part)


def _rate(units: int, seconds: float) -> float | None:
    return units / seconds if seconds > 0 and units > 0 else None


def _read(value: Any) -> int | float | str:
    return value if isinstance(value, int | str) else float(value)


def _is_terminal(stream: TextIO) -> bool:
    # TERM is what a dumb terminal (an editor's shell) says about itself
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
