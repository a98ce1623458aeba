"""Kernels for sparse autoencoders with many latents: tensors in, tensors out.

Dense latents ``[N, S]`` never exist beyond a bounded row chunk. `describe` tells which implementation of each op runs
on this machine; `patchsae_kernels.reference` is the definition of correct.
"""

from patchsae_kernels.api import (
    Reconstruction,
    check_bounded,
    decode,
    decode_masked,
    decode_sweep,
    encode,
    encode_bounded,
    latent_stats,
    pool_tokens,
    reconstruct,
)
from patchsae_kernels.auxk import reconstruct_dead
from patchsae_kernels.describe import describe
from patchsae_kernels.graphed import StepGraph
from patchsae_kernels.jumprelu import JumpReLULatents, encode_jumprelu
from patchsae_kernels.latents import SparseLatents
from patchsae_kernels.prepare import PreparedWeights, prepare
from patchsae_kernels.stats import LatentStats
from patchsae_kernels.step import AdamState, StepChoice, StepTerms, adam_init, adam_step, sae_step

__all__ = [
    "AdamState",
    "JumpReLULatents",
    "LatentStats",
    "PreparedWeights",
    "Reconstruction",
    "SparseLatents",
    "StepChoice",
    "StepGraph",
    "StepTerms",
    "adam_init",
    "adam_step",
    "check_bounded",
    "decode",
    "decode_masked",
    "decode_sweep",
    "describe",
    "encode",
    "encode_bounded",
    "encode_jumprelu",
    "latent_stats",
    "pool_tokens",
    "prepare",
    "reconstruct",
    "reconstruct_dead",
    "sae_step",
]
