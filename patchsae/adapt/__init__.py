"""`patchsae adapt`: a frozen CLIP adapted with few images: published recipes, training, evaluation.

What is trained is in `patchsae.adapters`. Reading the options (`patchsae.adapt.options`) needs no torch.
"""

from __future__ import annotations

from patchsae import lazy

__getattr__, __dir__ = lazy.names(__name__, {})
