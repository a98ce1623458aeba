"""Check and measure everything on one GPU in under eight minutes: ``python -m benches.gpu --out DIR``.

DIR gets results.json (rewritten after every stage), table.txt and one file a stage. The exit status is 1 when a check
failed or a stage did not finish; a bar that was missed is in the table, and changes no exit status.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benches.gpu import supervisor
from benches.gpu.sizes import SIZES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--size", choices=SIZES, default="paper", help="tiny proves the harness without a GPU")
    parser.add_argument("--device", default="cuda", help="cpu with --size tiny and TRITON_INTERPRET=1")
    arguments = parser.parse_args()
    return supervisor.run(arguments.out, arguments.size, arguments.device)


if __name__ == "__main__":
    raise SystemExit(main())
