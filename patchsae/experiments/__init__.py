"""The experiments: a folder or file for each verb that reads the latents, with a `run(...)` that takes plain objects.

What several of them need stands beside the folders; how images stream by, and how a result is written, is in `stream`.
Submodules are imported on first use: reading the options needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.stream.job import Job as Job

_HOMES = {"Job": "stream.job"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
