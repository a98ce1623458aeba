"""Packed encoder weights: rows in low precision, and what the exact bound needs to know of every latent and bucket.

The bound. A token is centred and scaled by a power of two, t = scale (x - b_dec), and rounded to float16, t' ; a
latent's row likewise, w = tau W_enc[:, s], w'. By Cauchy-Schwarz |t.w - t'.w'| <= |t - t'| |w| + |t'| |w - w'|. Sums
of D products in float32, here and when a candidate is scored again, are each off by at most about D 2^-23 |t| |w|
(tensor cores may truncate: twice the unit roundoff); both are covered by GAMMA. So for a latent's screened value a =
t'.w' / (scale tau),

    |pre - (a + b)| <= R u_s + Q v_s + (rounding of a to float16),
    R = |t - t'| / (scale tau),  Q = |t'| / (scale tau),  u_s = |w| (1 + GAMMA),  v_s = |w - w'| + GAMMA |w|.

float16 rather than bfloat16: the same speed on tensor cores at eight times the precision. On residuals of a ViT-B/16
with random weights at L0 149 the bound leaves 157 candidates a token in float16 and 202 in bfloat16 (157 and 206 with
four channels thirty times as large; computed in float32 on a CPU). float16's short range does not matter, because
rows are scaled first and the residuals are computed, not assumed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch
from patchsae_kernels.triton.product import BUCKET

PACKED_ELEMENTS = 4096  # of one program, which has 4 warps: twice as many spill
DEPTH_MULTIPLE = 64  # depth is padded with zeros, so that no product has a tail
MAX_DEPTH = 16384  # float16 products of rows scaled to below 2 and 1 cannot overflow up to here
_LOW = {"exact": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Packed(NamedTuple):
    """Encoder weights as the encode kernels take them. Sp and Dp: S and D rounded up to multiples of 32 and 64."""

    low: Tensor  # [Sp, Dp] float16, bfloat16 or float32, times tau
    bias: Tensor  # [Sp] float32; -inf for padding latents, which therefore never fire
    tau: Tensor  # [1] float32, a power of two
    terms: Tensor  # [2, Sp] float32: u, v
    bucket_terms: Tensor  # [3, Sp / 32] float32: the largest u, v and |b_enc| of the bucket
    rows: Tensor  # [S, D] float32, contiguous: to score candidates again
    next_tau: Tensor  # [1] float32, for whoever changes the rows and packs them in one pass


def packs(W_enc: Tensor) -> bool:
    """Whether `pack` serves these weights: not float64, nor too deep for float16 products."""
    return W_enc.dtype != torch.float64 and 0 < W_enc.shape[0] <= MAX_DEPTH


def pack(W_enc: Tensor, b_enc: Tensor, precision: str) -> Packed:
    """Pack ``W_enc [D, S]`` and ``b_enc [S]`` (float32) for one precision. Nothing is read back to the host."""
    depth, latents = W_enc.shape
    rows = W_enc.detach().t().contiguous()
    if not rows.is_meta and rows.data_ptr() % 16:  # a view at an odd place: what loads tiles wants whole units
        rows = rows.clone()
    Dp, Sp = triton.cdiv(depth, DEPTH_MULTIPLE) * DEPTH_MULTIPLE, triton.cdiv(latents, BUCKET) * BUCKET
    bias = b_enc.new_full((Sp,), float("-inf"))
    bias[:latents] = b_enc.detach()
    tau = power_of_two(rows) if precision == "exact" else rows.new_ones(1)
    terms = rows.new_zeros(2, Sp)
    if precision == "fp32" and (Dp, Sp) == (depth, latents):
        low = rows
    else:
        low = rows.new_empty(Sp, Dp, dtype=_LOW[precision])
        block = triton.next_power_of_2(Dp)
        together = min(max(PACKED_ELEMENTS // block, 1), 4)
        launch(
            pack_kernel,
            (triton.cdiv(Sp, together),),
            rows,
            tau,
            low,
            terms,
            latents,
            Sp,
            *norm_factors(depth),
            DEPTH=depth,
            PADDED=Dp,
            BLOCK=block,
            ROWS=together,
            SCALED=precision == "exact",
            num_warps=4,
        )
    return Packed(low, bias, tau, terms, _bucket_terms(terms, b_enc), rows, tau.clone())


def pack_biases(packed: Packed, b_enc: Tensor) -> None:
    """Bring up to date, in place, what depends on new biases and on rows whose ``terms`` are new."""
    packed.bias[: b_enc.shape[0]] = b_enc.detach()
    packed.bucket_terms.copy_(_bucket_terms(packed.terms, b_enc))


def norm_factors(depth: int) -> tuple[float, float]:
    """What covers the rounding of a norm of ``depth`` elements itself, and GAMMA."""
    return 1.0 + (depth + 64) * 2.0**-23, 2.0 * (depth + 8) * 2.0**-23


def power_of_two(rows: Tensor) -> Tensor:
    """tau ``[1]``: brings the largest weight into [1/2, 1)."""
    largest = torch.linalg.vector_norm(rows, float("inf")).clamp(2.0**-60, 2.0**60).reshape(1)
    return torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)


def _bucket_terms(terms: Tensor, b_enc: Tensor) -> Tensor:
    magnitude = terms.new_zeros(terms.shape[1])
    magnitude[: b_enc.shape[0]] = b_enc.detach().abs()
    return torch.cat([terms, magnitude[None]]).view(3, -1, BUCKET).amax(2)


@triton.jit
def normal_or_zero(low):
    """float16 numbers, with 0 for subnormal ones and those beyond what scaling leaves (2): sums cannot overflow."""
    size = tl.abs(low.to(tl.float32))
    return tl.where((size >= 2.0**-14) & (size <= 2.0), low, 0.0).to(low.dtype)


@triton.jit
def round_rows(w, dtype: tl.constexpr, slack, gamma, SCALED: tl.constexpr, AXIS: tl.constexpr):
    """Scaled rows in low precision, and their u and v; see the top of this file."""
    low = w.to(dtype)
    if SCALED:
        low = normal_or_zero(low)
    lost = w - low.to(tl.float32)
    norm = tl.sqrt(tl.sum(w * w, AXIS)) * slack
    residual = tl.sqrt(tl.sum(lost * lost, AXIS)) * slack
    return low, norm * (1.0 + gamma), residual + norm * gamma


@triton.jit
def pack_kernel(
    rows_ptr,  # [latents, DEPTH]
    tau_ptr,
    low_ptr,  # [padded latents, PADDED]
    terms_ptr,  # [2, padded latents]
    latents,
    padded_latents,
    slack,  # covers the rounding of the norms themselves
    gamma,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SCALED: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)[None, :]
    inside = (latent < latents)[:, None] & (d < DEPTH)
    w = tl.load(rows_ptr + latent[:, None] * DEPTH + d, inside, other=0.0) * tl.load(tau_ptr)
    low, u, v = round_rows(w, low_ptr.dtype.element_ty, slack, gamma, SCALED, 1)
    exists = latent < padded_latents
    tl.store(low_ptr + latent[:, None] * PADDED + d, low, exists[:, None] & (d < PADDED))
    tl.store(terms_ptr + latent, u, exists)
    tl.store(terms_ptr + padded_latents + latent, v, exists)
