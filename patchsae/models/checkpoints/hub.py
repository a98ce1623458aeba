"""Checkpoints from the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")


def fetch(source: str) -> Path:
    """Download ``owner/name`` or ``owner/name/folder`` and return the local directory or file.

    Raises:
        FileNotFoundError: ``source`` cannot be a Hub id, or the Hub has no such folder.
        ImportError: huggingface_hub is not installed.
    """
    if not HUB_ID.fullmatch(source) or source.startswith(("./", "../")):
        raise FileNotFoundError(f"{source[:300]} does not exist, and is no Hugging Face Hub id (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{source} does not exist here; to load it from the Hugging Face Hub: pip install 'patchsae[hub]'"
        ) from error
    owner, name, *inside = source.split("/")
    folder = "/".join(inside)
    patterns = [folder, f"{folder}/*"] if folder else None
    try:
        root = Path(snapshot_download(f"{owner}/{name}", allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{source} does not exist here, and could not be had from the Hugging Face Hub: {str(error)[:300]}"
        ) from error
    if not (root / folder).exists():
        raise FileNotFoundError(f"{owner}/{name} on the Hugging Face Hub has no {folder}")
    return root / folder
