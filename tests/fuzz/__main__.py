"""Attack everything for as long as one likes: `python -m tests.fuzz --minutes 60`.

Every attack gets an equal share of the time, in a process of its own, so that one that crashes is a finding too. The
last lines are a table of cases and findings, of which the first few of each attack are printed with the command that
shows them again. Exits with 1 where there is any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback

from tests.fuzz.attacks import attacks, try_case

_SHOWN = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="time for all attacks together")
    parser.add_argument("--only", default="", help="one attack, or those whose names begin so")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="other seeds are other cases")
    parser.add_argument("--case", type=int, help="one case of the one attack named by --only")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = attacks()
    names = [options.only] if options.only in known else [name for name in known if name.startswith(options.only)]
    chosen = {name: known[name] for name in names}
    if not chosen:
        parser.error(f"--only is {options.only!r}; expected the beginning of one of {', '.join(known)}")
    if options.case is not None:
        for name, attack in chosen.items():
            try_case(name, options.seed, options.case, attack)
    elif options.child:
        (name,) = chosen
        _child(name, options.seed, 60 * options.minutes)
    else:
        sys.exit(_parent(list(chosen), options.seed, options.minutes))


def _child(name: str, seed: int, seconds: float) -> None:
    """Cases until the time is over, a line before each, and one more where it found something."""
    attack, end, number = attacks()[name], time.monotonic() + seconds, 0
    while time.monotonic() < end:
        print(json.dumps({"case": number}), flush=True)
        try:
            try_case(name, seed, number, attack)
        except Exception:
            print(json.dumps({"found": traceback.format_exc()}), flush=True)
        number += 1


def _parent(names: list[str], seed: int, minutes: float) -> int:
    counts, findings = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    share = minutes / len(names)
    try:
        for name in names:
            counts[name], findings[name] = _attack(name, seed, share)
            print(f"{name}: {counts[name]:,} cases, {findings[name]} findings", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {counts[name]:>10,}  {findings[name]:>4}")
    print(f"{'all':<{width}}  {sum(counts.values()):>10,}  {sum(findings.values()):>4}")
    return int(any(findings.values()))


def _attack(name: str, seed: int, minutes: float) -> tuple[int, int]:
    """(cases, findings) of one attack; goes on with the next case where a process crashed."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", "--only", name, "--minutes", str(minutes)]
    case, found = -1, 0
    with subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith('{"'):  # what an attacked verb prints
                continue
            record = json.loads(line)
            case = record.get("case", case)
            if "found" in record:
                found += 1
                if found <= _SHOWN:
                    _show(name, seed, case, record["found"])
    if process.returncode:
        found += 1
        _show(name, seed, case, f"the process ended with {process.returncode}")
    return case + 1, found


def _show(name: str, seed: int, case: int, what: str) -> None:
    print(f"\n{what}\npython -m tests.fuzz --only {name} --seed {seed} --case {case}\n", file=sys.stderr)


if __name__ == "__main__":
    main()
