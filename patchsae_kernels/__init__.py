"""Kernels for sparse autoencoders with many latents: tensors in, tensors out.

Dense latents ``[N, S]`` never exist beyond a bounded row chunk. `describe` tells which implementation of each op runs
on this machine; `patchsae_kernels.reference` is the definition of correct.
"""

from patchsae_kernels.api import decode, decode_masked, decode_sweep, encode, latent_stats, pool_tokens
from patchsae_kernels.describe import describe
from patchsae_kernels.latents import SparseLatents
from patchsae_kernels.prepare import PreparedWeights, prepare
from patchsae_kernels.stats import LatentStats
from patchsae_kernels.step import AdamState, StepTerms, adam_init, adam_step, sae_step

__all__ = [
    "AdamState",
    "LatentStats",
    "PreparedWeights",
    "SparseLatents",
    "StepTerms",
    "adam_init",
    "adam_step",
    "decode",
    "decode_masked",
    "decode_sweep",
    "describe",
    "encode",
    "latent_stats",
    "pool_tokens",
    "prepare",
    "sae_step",
]
