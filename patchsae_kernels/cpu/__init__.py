"""The native CPU implementations: torch tensors in, addresses to the extension. One file per op family.

The extension may be absent (an unusual platform, or an import from the source tree); then `available` is False and the
reference runs.
"""

from patchsae_kernels.cpu import adam, backward, decode, encode, stats, step
from patchsae_kernels.cpu.encode import pack
from patchsae_kernels.cpu.extension import available, level, missing, why

__all__ = [
    "adam",
    "available",
    "backward",
    "decode",
    "encode",
    "level",
    "missing",
    "pack",
    "stats",
    "step",
    "why",
]
