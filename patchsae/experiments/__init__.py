"""The experiments: a folder or file for each verb that reads the latents, with a `run(...)` that takes plain objects.

What several of them need stands beside the folders, how images stream by is in `stream`. Submodules are imported on
first use: reading the options needs no torch.
"""

from __future__ import annotations

from patchsae import lazy

__getattr__, __dir__ = lazy.names(__name__, {})
