"""From a SAE of ours to a format that other libraries read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from patchsae.models.checkpoints import formats

if TYPE_CHECKING:
    from patchsae.models.sae import SparseAutoencoder


def writable() -> list[str]:
    """The names of the formats that can be written."""
    return [format_.name for format_ in formats() if format_.write is not None]


def write(sae: SparseAutoencoder, directory: str | Path, to: str = "patchsae") -> None:
    """Write a SAE into a directory, made if missing, as another library reads it.

    Args:
        to: one of `writable`.

    Raises:
        ValueError: ``to`` is none of them, or cannot hold this SAE; the message says what of it.
    """
    format_ = next((format_ for format_ in formats() if format_.name == to and format_.write is not None), None)
    if format_ is None or format_.write is None:
        raise ValueError(f"to={to[:60]!r}; expected one of {', '.join(writable())}")
    folder = Path(directory)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    try:
        format_.write(sae.config, state, folder)
    except BaseException:
        if made:
            with suppress(OSError):  # what was written of it stays
                folder.rmdir()
        raise
