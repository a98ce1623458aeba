"""From any checkpoint to a SAE."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from patchsae.models.checkpoints import detect, hub
from patchsae.models.sae import SparseAutoencoder


def load_sae(source: str | Path, device: str | torch.device = "auto") -> SparseAutoencoder:
    """Load a SAE from a file or directory of any format in `patchsae.models.checkpoints`, or from the Hugging Face Hub.

    Args:
        source: a path, or where no such path exists a Hub id ``owner/name`` or ``owner/name/folder/in/it``.
        device: "auto" is CUDA where there is one, as for `load_clip`.

    Raises:
        FileNotFoundError: neither a path nor a Hub id.
        ValueError: no format fits, or the tensors do not; `archives.UnsafeFileError` for a file that asks for more
            than tensors and its configuration.
        ImportError: a Hub id, and huggingface_hub is not installed.
    """
    path = Path(os.path.expanduser(source))
    if not os.path.exists(path):
        path = hub.fetch(str(source))
    found = detect(path).read(path)
    try:
        sae = SparseAutoencoder.from_tensors(found.config, found.tensors)
    except ValueError as error:
        raise ValueError(f"{found.file}: {error}") from error
    there = "cuda" if torch.cuda.is_available() else "cpu"
    return sae.to(there if device == "auto" else device)
