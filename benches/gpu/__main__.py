"""Check and measure everything on one GPU in nine minutes: ``python -m benches.gpu --out DIR``.

The results are four files, written again every second or so, complete whenever the run is cut short: results.json,
table.txt (missed bars last), environment.json and log.txt. They go to DIR or, with --collect, to a folder that holds
nothing else. The exit status is 1 when a check failed or a stage did not finish, 2 when nothing was run; a bar that was
missed is in the table, and changes no exit status.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benches.gpu import supervisor
from benches.gpu.merging import Refused
from benches.gpu.sizes import SIZES
from benches.gpu.stages import GRACE, NAMES, chosen, total


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benches.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="where the results go instead")
    parser.add_argument("--seconds", type=float, help="all that may pass; cuts the schedule at its end")
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--merge", type=Path, metavar="results.json", help="take over what an earlier run measured")
    parser.add_argument("--size", choices=SIZES, default="paper", help="tiny proves the harness without a GPU")
    parser.add_argument("--device", default="cuda", help="cpu with --size tiny and TRITON_INTERPRET=1")
    arguments = parser.parse_args()
    names = tuple(stage.name for stage in chosen(arguments.stages))
    seconds = total(names) if arguments.seconds is None else arguments.seconds
    if seconds <= GRACE:
        parser.error(f"--seconds is {seconds:g}; expected more than {GRACE:g}, which the last item may run on")
    if arguments.collect and arguments.collect.resolve() == arguments.out.resolve():
        parser.error("--collect is --out; without it the results go there")
    folder = arguments.collect or arguments.out
    where = (arguments.out, folder, arguments.size, arguments.device)
    try:
        return supervisor.run(supervisor.Plan(*where, names, seconds, arguments.merge))
    except Refused as error:
        print(f"--merge: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
