"""Compiles kernels into Triton's cache before anything is timed: ``python -m benches.gpu.warming --part P --out FILE``.

The launches come from the compile gate's list of calls, followed on meta tensors, so no process here needs a device.
Each distinct one is compiled as Triton itself would at its first launch, to the same key of its cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benches.gpu.sources import ROOT

GATE = ROOT / "tests" / "gate"
SLOWEST = 12
"""Kernels named with their seconds."""
LATE = "not compiled in time"


@dataclass(frozen=True)
class Outcome:
    """One kernel, compiled or not; ``message`` says why not."""

    kernel: str
    configuration: str
    seconds: float
    message: str = ""


def compiled(part: str, cores: int, until: float, words: Sequence[str] = ()) -> dict[str, Any]:
    """Compile every case of the gate's calls (of those whose names hold one of ``words``) on up to ``cores`` processes.

    Returns:
        How many cases were ``compiled``, how many were ended and how many calls were ``left`` at ``until`` (as
        ``time.time()`` says), the processes' ``seconds`` added up, the ``slowest`` and the ``failed`` as outcomes.
    """
    calls = deque(_calls(part, words))
    failed: list[Outcome] = []
    outcomes = list(_forked(_cases(part, calls, failed), cores, until))
    failed += [outcome for outcome in outcomes if outcome.message not in ("", LATE)]
    slowest = sorted(outcomes, key=lambda outcome: -outcome.seconds)[:SLOWEST]
    return {
        "compiled": sum(not outcome.message for outcome in outcomes),
        "ended": sum(outcome.message == LATE for outcome in outcomes),
        "left": len(calls),
        "seconds": sum(outcome.seconds for outcome in outcomes),
        "slowest": [asdict(outcome) for outcome in slowest],
        "failed": [asdict(outcome) for outcome in failed],
    }


def parts() -> tuple[Any, ...]:
    """The gate's parts. ``tests`` is this tree's, also where some distribution installed a package of that name."""
    package = ModuleType("tests")
    package.__path__ = [str(GATE.parent)]
    sys.modules.setdefault("tests", package)
    from tests.gate.parts import PARTS

    return PARTS


def _calls(part: str, words: Sequence[str]) -> list[Any]:
    """Those for ``part`` alone, which are the bench's, come first, then the paper's shapes."""
    parts()
    from tests.gate.calls import CALLS

    chosen = [call for call in CALLS if not words or any(word in call.name for word in words)]
    return sorted(chosen, key=lambda call: (call.part != part, call.slow))


def _cases(name: str, calls: deque[Any], failed: list[Outcome]) -> Iterator[Any]:
    """Distinct cases, while ``calls`` are followed and taken away; one that cannot be is added to ``failed``."""
    part = next(part for part in parts() if part.name == name)
    from tests.gate.cases import cases

    seen: set[Any] = set()
    while calls:
        call = calls.popleft()
        try:
            found = [case for case in cases(part, [call]) if case not in seen]
        except Exception as error:  # the other calls are worth compiling
            failed.append(Outcome("host code", call.name, 0.0, _words(error)))
            continue
        seen.update(found)
        yield from found


def _forked(work: Iterator[Any], cores: int, until: float) -> Iterator[Outcome]:
    """Each case in a process of its own, which a compiler that crashes ends; outcomes as they come."""
    running: dict[int, tuple[Any, Path, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in itertools.count():
            case = next(work, None) if time.time() < until else None
            if case is None and not running:
                return
            if case is not None:
                _prime(case)  # here once, not in every process
                path = Path(folder) / str(number)
                running[_start(case, path)] = case, path, time.time()
            while running and (case is None or len(running) >= cores):
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid:
                    case_of, path, started = running.pop(pid)
                    yield _outcome(case_of, path, time.time() - started, status)
                elif time.time() >= until:
                    _end(running)
                    yield from (Outcome(c.name, c.configuration, time.time() - t, LATE) for c, _, t in running.values())
                    return
                else:
                    time.sleep(0.005)


def _end(children: Iterable[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _start(case: Any, path: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    message = ""
    try:
        _compile(case)
    except BaseException as error:  # the parent tells
        message = _words(error)
    path.write_text(message)
    os._exit(0)


def _outcome(case: Any, path: Path, seconds: float, status: int) -> Outcome:
    message = path.read_text() if path.exists() else f"the compiler ended with status {status}"
    return Outcome(case.name, case.configuration, round(seconds, 3), message)


def _source(case: Any) -> Any:
    from triton.compiler import ASTSource

    return ASTSource(case.kernel, case.signature, case.constants, case.attributes)


def _compile(case: Any) -> None:
    from triton.compiler import compile as triton_compile

    kernel = triton_compile(_source(case), target=case.part.target, options=case.options)
    if case.part.target.backend == "cuda":
        with suppress(Exception):  # a launch that needs it says what is wrong
            _build_launcher(kernel)


def _build_launcher(kernel: Any) -> None:
    """Triton 3.6 also compiles a C function that starts the kernel, at its first launch; later versions have none."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher"):
        driver.CudaLauncher(kernel.src, kernel.metadata)


def _prime(case: Any) -> None:
    """Hash what all keys of the cache have in common (the compiler itself, for one), and this kernel's source."""
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_key

    backend = make_backend(case.part.target)
    get_cache_key(_source(case), backend, backend.parse_options(dict(case.options)), env_vars={})


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[-1000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only calls whose names hold one of these")
    parser.add_argument("--part", required=True, help="of the gate's parts")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--until", type=float, default=float("inf"), help="when to stop, as time.time() says")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.write_text(json.dumps(compiled(arguments.part, arguments.cores, arguments.until, arguments.words)))


if __name__ == "__main__":
    main()
