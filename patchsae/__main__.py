"""``python -m patchsae``."""

from patchsae.cli import main

main()
