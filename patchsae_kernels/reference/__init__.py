"""Every op in plain PyTorch: the definition of correct. One file per family; what is fast has no place here.

`checked` is what runs where nothing faster does: these ops behind those checks of arguments that read values, and the
ops that are made of others (masked and swept decodes, reconstruct, bounded encodes), each of which is defined there.
"""

from patchsae_kernels.reference.sparse import (
    add_in_order_,
    decode,
    decode_backward,
    encode,
    encode_backward,
    filter_entries,
    latent_stats_,
    per_entry,
    pool_tokens,
    rounded,
    row_chunks,
    sweep_segments,
    sweep_sums,
)
from patchsae_kernels.reference.training import adam_step_, mixed, round_stochastically, sae_step

__all__ = [
    "adam_step_",
    "add_in_order_",
    "decode",
    "decode_backward",
    "encode",
    "encode_backward",
    "filter_entries",
    "latent_stats_",
    "mixed",
    "per_entry",
    "pool_tokens",
    "round_stochastically",
    "rounded",
    "row_chunks",
    "sae_step",
    "sweep_segments",
    "sweep_sums",
]
