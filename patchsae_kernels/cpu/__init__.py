"""The native CPU implementations: torch tensors in, addresses to the extension. One file per op family.

The extension may be absent (an unusual platform, or an import from the source tree); then `available` is False and the
reference runs. `implementations` names what is registered; each falls back by itself for what it does not take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from patchsae_kernels.cpu import adam, backward, decode, encode, stats, step
from patchsae_kernels.cpu.encode import pack
from patchsae_kernels.cpu.extension import available, level, missing, why

__all__ = ["available", "implementations", "level", "missing", "pack", "why"]


def implementations() -> dict[str, Callable[..., Any]]:
    """Op name -> native implementation; empty without the extension."""
    if not available:
        return {}
    return {
        "decode": decode.decode,
        "encode": encode.encode,
        "encode_backward": backward.encode_backward,
        "decode_backward": backward.decode_backward,
        "sae_step": step.sae_step,
        "adam_step_": adam.adam_step_,
        "decode_masked": decode.decode_masked,
        "decode_sweep": decode.decode_sweep,
        "latent_stats_": stats.latent_stats_,
        "pool_tokens": stats.pool_tokens,
    }
