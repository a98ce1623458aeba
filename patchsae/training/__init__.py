"""`patchsae train` and `sweep`: training autoencoders on a frozen CLIP's residual stream.

Losses, start, schedule, dead latents, variants, and the one loop, for one autoencoder or for those of a `sweep`. How
tokens are read is in `patchsae.activations`.
Submodules are imported on first use: reading the configuration (`patchsae.training.config`) needs no torch.
"""

from __future__ import annotations

from patchsae import lazy

__getattr__, __dir__ = lazy.names(__name__, {})
