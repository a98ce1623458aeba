"""Compiles kernels into Triton's cache before anything is timed: ``python -m benches.gpu.warming --part P --out FILE``.

The launches come from the compile gate's list of calls, followed on meta tensors, so no process here needs a device.
Each distinct one is compiled as Triton itself would at its first launch, to the same key of its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benches.gpu.sources import ROOT

GATE = ROOT / "tests" / "gate"
SLOWEST = 12
"""Kernels named with their seconds."""


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
        Numbers of ``cases``, of those ``compiled``, and of those ``left`` at ``until`` (as ``time.time()`` says), the
        processes' ``seconds`` added up, the ``slowest`` and the ``failed`` as outcomes.
    """
    work, failed = _cases(part, words)
    outcomes = list(_forked(work, cores, until))
    failed += [outcome for outcome in outcomes if outcome.message]
    slowest = sorted(outcomes, key=lambda outcome: -outcome.seconds)[:SLOWEST]
    return {
        "cases": len(work),
        "compiled": sum(not outcome.message for outcome in outcomes),
        "left": len(work) - len(outcomes),
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


def _cases(name: str, words: Sequence[str]) -> tuple[list[Any], list[Outcome]]:
    """Distinct cases, the paper's shapes first, and the calls that could not be followed."""
    part = next(part for part in parts() if part.name == name)
    from tests.gate.calls import CALLS
    from tests.gate.cases import cases

    found: dict[Any, None] = {}
    failed = []
    for call in sorted(CALLS, key=lambda call: call.slow):
        if words and not any(word in call.name for word in words):
            continue
        try:
            found.update(dict.fromkeys(cases(part, [call])))
        except Exception as error:  # the other calls are worth compiling
            failed.append(Outcome("host code", call.name, 0.0, _words(error)))
    return list(found), failed


def _forked(work: Sequence[Any], cores: int, until: float) -> Iterator[Outcome]:
    """Each case in a process of its own, which a compiler that crashes ends; outcomes as they come."""
    for case in work:
        _prime(case)  # here once, not in every process
    waiting = list(reversed(work))
    running: dict[int, tuple[Any, Path, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while running or (waiting and time.time() < until):
            while waiting and len(running) < cores and time.time() < until:
                case = waiting.pop()
                path = Path(folder) / str(len(waiting))
                running[_start(case, path)] = case, path, time.time()
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                case, path, started = running.pop(pid)
                yield _outcome(case, path, time.time() - started, status)
            elif time.time() >= until:
                for child in running:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                return
            else:
                time.sleep(0.005)


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
