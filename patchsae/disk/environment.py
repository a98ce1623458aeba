"""What a run was made with: versions, platform, the commit of this code. Imports none of the libraries it names."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_DISTRIBUTIONS = {"patchsae": "patchsae", "torch": "torch", "numpy": "numpy", "open_clip": "open_clip_torch"}


def versions() -> dict[str, str]:
    """Import name -> version of what decides the numbers; a library that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path | None = None) -> str | None:
    """The commit of this package's checkout, with "-dirty" where files differ from it; None outside a checkout."""
    folder = folder or Path(__file__).parent
    # An installed copy may lie inside somebody else's repository (a .venv): only a tracked file says it is ours.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
