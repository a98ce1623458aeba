import io
import os
import pty
import threading

import pytest

from patchsae import progress


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Number:
    """A value on a device: reading it costs something."""

    def __init__(self):
        self.reads = 0

    def __float__(self):
        self.reads += 1
        return 0.25


def logged(total, seconds, per_second=10, start=0, **numbers):
    """The lines of a loop that finishes `per_second` units every second."""
    clock, stream = Clock(), io.StringIO()
    with progress.track(total, "train", start=start, stream=stream, clock=clock) as bar:
        for _ in range(seconds):
            clock.now += 1
            bar.advance(per_second, **numbers)
    return stream.getvalue().splitlines()


def test_a_line_at_once_then_every_ten_seconds_then_the_totals():
    lines = logged(500, 35)
    assert lines[0] == "train  10 / 500 img  2.0%  10 img/s  ETA 49 s"
    assert [line.split()[1] for line in lines[:-1]] == ["10", "110", "210", "310"]
    assert lines[-1] == "train  done: 350 img in 35 s (10 img/s)"


def test_an_unknown_total_has_no_end():
    lines = logged(None, 12)
    assert lines[0] == "train  10 img  10 img/s"
    assert not any("ETA" in line or "%" in line for line in lines)


def test_a_resumed_loop_counts_new_work_only():
    lines = logged(1000, 2, start=900)
    assert lines[0] == "train  910 / 1,000 img  91.0%  10 img/s  ETA 9.0 s"
    assert lines[-1] == "train  done: 20 img in 2.0 s (10 img/s), 920 / 1,000 img in all"


def test_the_time_left_follows_the_last_minute():
    clock, stream = Clock(), io.StringIO()
    with progress.track(10_000, "train", stream=stream, clock=clock) as bar:
        for rate in [1] * 100 + [50] * 70:
            clock.now += 1
            bar.advance(rate)
    last = stream.getvalue().splitlines()[-2]
    assert "50 img/s" in last


def test_numbers_are_read_only_when_shown():
    number = Number()
    lines = logged(500, 35, mse=number, latents=49152, l0=148.5612)
    assert lines[0].endswith("mse 0.25  latents 49,152  l0 148.6")
    assert number.reads == len(lines)


@pytest.mark.parametrize(("seconds", "shown"), [(1, False), (2, True), (30, True)])
def test_a_short_part_is_silent_and_a_long_one_is_not(monkeypatch, seconds, shown):
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        clock, stream = Clock(), io.StringIO()
        with progress.track(seconds, "prompts", "prompts", after=1.5, stream=stream, clock=clock) as bar:
            for _ in range(seconds):
                clock.now += 1
                bar.advance()
        lines = stream.getvalue().splitlines()
        assert bool(lines) == (shown and rank == 0)
        if lines:
            assert lines[0].startswith("prompts  2 / ")
            assert "ETA" in lines[0]
            assert lines[-1] == f"prompts  done: {seconds} prompts in {seconds} s (1 prompts/s)".replace(
                " 2 s", " 2.0 s"
            )


def test_a_loop_that_breaks_says_where():
    clock, stream = Clock(), io.StringIO()

    def broken():
        with progress.track(50, "train", stream=stream, clock=clock) as bar:
            clock.now += 2
            bar.advance(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert stream.getvalue().splitlines()[-1] == "train  stopped: 10 img in 2.0 s (5 img/s), of 10 / 50 img"


def test_an_empty_loop_has_no_rate():
    assert logged(0, 0) == ["train  done: 0 img in 0 s"]


@pytest.mark.parametrize("total", [300, None])
def test_a_terminal_gets_a_bar_and_no_thread_stays(monkeypatch, total):
    monkeypatch.setenv("TERM", "xterm-256color")
    threads = threading.active_count()
    master, slave = pty.openpty()
    clock = Clock()
    with os.fdopen(slave, "w") as stream, progress.track(total, "train", stream=stream, clock=clock) as bar:
        for _ in range(3):
            clock.now += 1
            bar.advance(100, mse=0.5)
            assert threading.active_count() == threads
    shown = _everything(master)
    assert "\x1b[" in shown
    assert "━" in shown
    assert "100 img/s" in shown
    assert shown.splitlines()[-1].endswith("train  done: 300 img in 3.0 s (100 img/s)  mse 0.5")


def _everything(master):
    """What was written to the other end of a terminal, now closed."""
    pieces = []
    try:
        while piece := os.read(master, 1 << 16):
            pieces.append(piece)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    return b"".join(pieces).decode()
