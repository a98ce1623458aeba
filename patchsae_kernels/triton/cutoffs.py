"""What a product must exceed for its latent to be active, so that the accumulator itself can be asked.

Where products are the answer, a latent is active when ``round(a) + b > t``: a the accumulator, rounded to the dtype
that products are kept in, b its bias, t its threshold, the sum in float32. Rounding and the sum are monotone in a, so
there is one float32 number c with ``round(a) + b > t`` exactly where ``a > c``: if g is the least number of the dtype
with ``g + b > t``, then c is the middle between g and the number before it, or just below that where the middle rounds
to g (ties go to the even one). So nothing has to be rounded back in the product's epilogue, and hits agree to the bit
with the values that are read later.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch

BLOCK = 256


def cutoffs(bias: Tensor, threshold: Tensor | None, dtype: torch.dtype) -> Tensor:
    """float32 ``[Sp]``; +inf where no product suffices.

    Args:
        bias: ``[Sp]`` float32. threshold: ``[Sp]`` float32 or None (0). dtype: of the products, bfloat16 or float32.
    """
    found = torch.empty_like(bias)
    latents = bias.shape[0]
    launch(
        cutoffs_kernel,
        (triton.cdiv(latents, BLOCK),),
        bias,
        threshold,
        found,
        latents,
        SPACING=2**16 if dtype == torch.bfloat16 else 1,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return found


@triton.jit
def cutoffs_kernel(bias_ptr, threshold_ptr, found_ptr, latents, SPACING: tl.constexpr, BLOCK: tl.constexpr):
    """Bisection over the dtype's numbers by their place in order: SPACING places of float32 are one of the dtype."""
    latent = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = latent < latents
    bias = tl.load(bias_ptr + latent, inside, other=0.0)
    least = tl.zeros((BLOCK,), tl.float32)
    if threshold_ptr is not None:
        least = tl.load(threshold_ptr + latent, inside, other=0.0)
    infinity: tl.constexpr = 0x7F800000 // SPACING
    high = tl.zeros((BLOCK,), tl.int64) + (infinity + 1)  # the least that suffices is at most here
    low = tl.zeros((BLOCK,), tl.int64) - infinity - 1  # and above here
    for _ in range(33):
        middle = (low + high) >> 1
        enough = _number(middle * SPACING) + bias > least
        probed = (middle > low) & (middle < high)
        high = tl.where(probed & enough, middle, high)
        low = tl.where(probed & ~enough, middle, low)
    tie = tl.where(high % 2 == 0, 1, 0) if SPACING > 1 else 1  # neighbours in float32 have no middle
    place = high * SPACING - SPACING // 2 - tie
    cutoff = tl.where(high <= infinity, _number(place), float("inf"))
    tl.store(found_ptr + latent, cutoff, inside)


@triton.jit
def _number(place):
    """The float32 at a place in their order: 0 is zero, 1 the least positive, -1 the least negative number."""
    bits = tl.where(place < 0, -place | 0x80000000, place)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)
