"""`patchsae train` and `sweep`: training autoencoders on a frozen CLIP's residual stream.

Losses, start, schedule, dead latents, variants, the trainer. Where tokens come from is in `patchsae.activations`.
Submodules are imported on first use: reading the configuration (`patchsae.training.config`) needs no torch.
"""

from __future__ import annotations

from patchsae import lazy

__getattr__, __dir__ = lazy.names(__name__, {})
