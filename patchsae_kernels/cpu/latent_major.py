"""CSR entries sorted by latent, and the sums over the tokens of every latent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patchsae_kernels.cpu.extension import native

TOKEN_LIMIT = 2**31 - 1
"""Tokens are counted in int32."""


class ByLatent(NamedTuple):
    """The entries of a CSR sorted by latent, stably, so that the tokens of every latent ascend."""

    indptr: Tensor  # int64 [S + 1]
    tokens: Tensor  # int32 [nnz]
    order: Tensor  # int64 [nnz], the place of each in the CSR


def sort_by_latent(indices: Tensor, indptr: Tensor, latents: int) -> ByLatent:
    """The CSR pattern by latent.

    Raises:
        ValueError: indptr does not ascend from 0 to nnz, or an index lies outside of 0..latents-1.
    """
    nnz = indices.shape[0]
    indices, indptr = indices.contiguous(), indptr.contiguous()
    sorted_ = ByLatent(
        indptr.new_empty(latents + 1),
        indices.new_empty(nnz),
        indptr.new_empty(nnz),
    )
    native.sort_by_latent(
        indices.data_ptr(),
        indptr.data_ptr(),
        indptr.shape[0] - 1,
        nnz,
        latents,
        *(t.data_ptr() for t in sorted_),
        torch.get_num_threads(),
    )
    return sorted_


def gradients(
    by_latent: ByLatent,
    width: int,
    *,
    dots: Tensor,
    g: Tensor | None = None,
    W: Tensor | None = None,
    constant: float = 0.0,
    values: Tensor | None = None,
    sum_g: Tensor | None = None,
    x: Tensor | None = None,
    sum_x: Tensor | None = None,
    sum_dots: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """One traversal of the latents; all float32 and contiguous, what is None is left out.

    Args:
        dots: ``[nnz]``, becomes ``<g[token], W[latent]> + constant``; an input if there is no ``W``.
        g, x: ``[N, width]``. W: ``[S, width]``. values: ``[nnz]``, sorted by latent as ``dots`` is.
        sum_g: ``[S, width]``, becomes the sum of ``values * g[token]`` over the entries of each latent.
        sum_x: ``[S, width]``, becomes the sum of ``dots * x[token]``. sum_dots: ``[S]``.
        accumulate: continue the sums that are there.
    """
    addresses = [0 if t is None else t.data_ptr() for t in (g, W, dots, values, sum_g, x, sum_x, sum_dots)]
    native.latent_gradients(
        by_latent.indptr.data_ptr(),
        by_latent.tokens.data_ptr(),
        by_latent.indptr.shape[0] - 1,
        width,
        *addresses[:2],
        constant,
        *addresses[2:],
        accumulate,
        torch.get_num_threads(),
    )


def add_column_sums(totals: Tensor, matrix: Tensor, sign: float = 1.0) -> None:
    """``totals`` float64 ``[D]`` += sign * the sum over the rows of ``matrix`` float32 ``[N, D]``, row by row."""
    matrix = matrix.contiguous()
    native.column_sums(matrix.data_ptr(), *matrix.shape, sign, totals.data_ptr(), torch.get_num_threads())
