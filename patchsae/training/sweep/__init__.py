"""The training half of `patchsae sweep`: a grid of autoencoders on one stream of tokens. The judging half, which reads
latents, is `patchsae.experiments.frontier`.

Reading the options (`grid`, `options`) needs no torch.
"""

from __future__ import annotations

from patchsae import lazy

__getattr__, __dir__ = lazy.names(__name__, {})
