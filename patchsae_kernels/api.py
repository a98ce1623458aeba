"""The public ops on SparseLatents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from patchsae_kernels import checks, plain
from patchsae_kernels.latents import SparseLatents
from patchsae_kernels.prepare import PreparedWeights, as_prepared
from patchsae_kernels.shortfall import complete
from patchsae_kernels.stats import LatentStats


def encode(
    x: Tensor,
    weights: PreparedWeights | Tensor,
    b_enc: Tensor | None = None,
    b_dec: Tensor | None = None,
    *,
    activation: str = "relu",
    k: int | None = None,
    threshold: Tensor | None = None,
    precision: str = "exact",
    budget_mb: float = 256,
) -> SparseLatents:
    """Latents of tokens: ``act((x - b_dec) W_enc + b_enc)``, Lim et al. (arXiv 2412.05276), equation 1.

    Differentiable once with respect to x and the weights; the active set is held fixed and a JumpReLU threshold gets
    no gradient.

    Args:
        x: ``[N, D]`` float32, bfloat16 or float16; N = 0 gives an empty result.
        weights: what `prepare` returned, or a raw ``W_enc [D, S]`` followed by ``b_enc [S]`` and ``b_dec [D]``.
        activation: ``"relu"``; ``"topk"``: the k largest positive pre-activations, ties towards the lower latent;
            ``"batchtopk"``: the N * k largest positive ones of the whole batch, ties towards the earlier token, then
            the lower latent; ``"jumprelu"``: the pre-activation where it is above ``threshold [S]`` (>= 0); or
            ``"topk_no_relu"``: the k largest pre-activations, negative ones too where a token has fewer than k that
            are positive (those in plain float32, at any precision).
        precision: ``"exact"``: float32 answers; ``"bf16"``: inputs and weights rounded to bfloat16, float32
            accumulation; ``"fp32"``: plain float32 (on a GPU TF32 where PyTorch's switch allows it).
        budget_mb: the most memory for dense pre-activations and their temporaries at any time, in MB.

    Returns:
        SparseLatents ``(N, S)`` with float32 values.

    Raises:
        ValueError: a shape, device, k or option is wrong, or x, x - b_dec or what is computed from them holds a NaN or
            an infinity (the row is named).
        TypeError: a dtype is wrong, or what is given is no plain tensor (sparse, meta, inside of `torch.func`, ...).
        RuntimeError: in a second derivative.
    """
    w = as_prepared(weights, b_enc, b_dec)
    selection = "topk" if activation == "topk_no_relu" else activation
    checks.encode_arguments(x, w.W_enc, selection, k, threshold, precision)
    packed, budget = w.packed(precision), checks.budget_bytes(budget_mb)
    values, indices, indptr = torch.ops.patchsae.encode(
        x, w.W_enc, w.b_enc, w.b_dec, packed, threshold, selection, k or 0, precision, budget
    )
    z = SparseLatents(values, indices, indptr, (x.shape[0], w.W_enc.shape[1]))
    return z if selection == activation else complete(z, x, w, k or 0, budget)


def encode_bounded(
    x: Tensor,
    weights: PreparedWeights,
    *,
    capacity: int,
    activation: str = "relu",
    k: int | None = None,
    threshold: Tensor | None = None,
    precision: str = "exact",
    budget_mb: float = 256,
) -> tuple[SparseLatents, Tensor]:
    """`encode` into a fixed number of places, for CUDA graphs: nothing is read from the device. Not differentiable.

    Args:
        capacity: places for entries. The other arguments are `encode`'s; ``"batchtopk"`` is not offered, because what
            it keeps is only known after reading the device.

    Returns:
        latents: values and indices ``[capacity]``, of which the first ``indptr[-1]`` count
            (at most capacity, whatever was needed).
        status: int64 ``[4]`` on x's device. Read it with `check_bounded` once the graph has run: until then the latents
            may be incomplete.
    """
    w = as_prepared(weights, None, None)
    checks.encode_arguments(x, w.W_enc, activation, k, threshold, precision)
    checks.option("activation", activation, ("relu", "topk", "jumprelu"))
    plain.whole_number("capacity", capacity)
    packed, budget = w.packed(precision), checks.budget_bytes(budget_mb)
    with torch.no_grad():
        *csr, status = torch.ops.patchsae.encode_bounded(
            x, w.W_enc, w.b_enc, w.b_dec, packed, threshold, activation, k or 0, precision, budget, capacity
        )
    return SparseLatents(csr[0], csr[1], csr[2], (x.shape[0], w.W_enc.shape[1])), status


def check_bounded(z: SparseLatents, status: Tensor) -> SparseLatents:
    """What `encode_bounded` left, without the unused places. Reads the device twice.

    Raises:
        OverflowError: entries were left out: the message says how many places are needed, or how many tokens have too
            many candidates for a bounded encode (`encode` repairs those).
        ValueError: x or what is computed from it held a NaN or an infinity (the first row is named), or the threshold a
            negative value.
    """
    entries, over, bad, wrong = status.tolist()
    if bad < z.shape[0]:
        raise ValueError(f"x has a NaN or an infinity in row {bad}")
    if wrong:
        raise ValueError("threshold holds a negative value or NaN; expected threshold >= 0")
    if over:
        raise OverflowError(f"{over} of {z.shape[0]} tokens have too many candidates for a bounded encode; use encode")
    if entries > z.nnz:
        raise OverflowError(f"capacity is {z.nnz}; {entries} entries need a place")
    checks.finite_latents(z.values[:entries], z.indptr)
    return SparseLatents(z.values[:entries], z.indices[:entries], z.indptr, z.shape)


class Reconstruction(NamedTuple):
    """Attributes:

    y: float32 ``[N, D]``, the reconstruction.
    squared_error: float32 ``[N]``, sum over D of (y - x)^2.
    l1: float32 ``[N]``, sum of the latents.
    l0: int64 ``[N]``, number of active latents.
    """

    y: Tensor
    squared_error: Tensor
    l1: Tensor
    l0: Tensor


def reconstruct(
    x: Tensor,
    weights: PreparedWeights,
    W_dec: Tensor,
    *,
    activation: str = "relu",
    k: int | None = None,
    threshold: Tensor | None = None,
    precision: str = "exact",
    budget_mb: float = 256,
) -> Reconstruction:
    """``decode(encode(x))`` with the terms of a loss, for callers that do not want the latents. Not differentiable.

    The latents exist for one chunk of tokens at a time. Training wants `sae_step`.

    Args:
        W_dec: ``[S, D]`` float32 or bfloat16; the decoder's bias is the ``b_dec`` of the weights. The other arguments
            are `encode`'s.
    """
    w = as_prepared(weights, None, None)
    checks.encode_arguments(x, w.W_enc, activation, k, threshold, precision)
    checks.shape("W_dec", W_dec, (w.shape[1], w.shape[0]), "[S, D]")
    checks.dtype("W_dec", W_dec, checks.DICTIONARIES)
    checks.same_device(x=x, W_dec=W_dec)
    packed, budget = w.packed(precision), checks.budget_bytes(budget_mb)
    with torch.no_grad():
        return Reconstruction(
            *torch.ops.patchsae.reconstruct(
                x, w.W_enc, w.b_enc, w.b_dec, packed, threshold, W_dec, activation, k or 0, precision, budget
            )
        )


def decode(z: SparseLatents, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Reconstruction ``z W_dec + b_dec`` ``[N, D]`` float32. Differentiable once in z.values, W_dec and b_dec.

    Where z is of normalised tokens (`SparseLatents.token_scale`), that is undone: y is of the tokens as they came.

    Args:
        z: latents ``(N, S)``.
        W_dec: ``[S, D]`` float32 or bfloat16 (accumulated in float32).
        b_dec: ``[D]`` float32.
    """
    checks.decoder(z, W_dec, b_dec)
    y: Tensor = torch.ops.patchsae.decode(z.values, z.indices, z.indptr, W_dec, b_dec)
    return z.restore(y)


def decode_masked(
    z: SparseLatents, keep: Tensor, W_dec: Tensor, b_dec: Tensor, class_ids: Tensor | None = None
) -> Tensor:
    """`decode` of the latents in a keep set, ``[N, D]``. Differentiable as `decode` is.

    Args:
        keep: bool ``[S]``, or ``[C, S]`` with ``class_ids`` int64 ``[N]`` choosing the row for every token.
    """
    checks.decoder(z, W_dec, b_dec)
    checks.per_latent_table("keep", keep, z, class_ids, torch.bool)
    y: Tensor = torch.ops.patchsae.decode_masked(z.values, z.indices, z.indptr, keep, W_dec, b_dec, class_ids)
    return z.restore(y)


def decode_sweep(
    z: SparseLatents,
    rank: Tensor,
    ks: Sequence[int],
    W_dec: Tensor,
    b_dec: Tensor,
    class_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All reconstructions of a top-k masking sweep in one pass over the non-zeros. Not differentiable.

    Args:
        rank: int32 ``[S]``, or ``[C, S]`` with ``class_ids`` int64 ``[N]``: the position of each latent in an order.
        ks: K sizes >= 0, in any order.

    Returns:
        ``on, off``, each ``[K, N, D]`` float32: ``on[i]`` keeps latents with ``rank < ks[i]``, ``off[i]`` drops them.
        b_dec stays in both; ``off`` where all is dropped is exactly b_dec. Normalised tokens are restored as in
        `decode`. The outputs are large: 2 K N D floats.
    """
    checks.decoder(z, W_dec, b_dec)
    checks.per_latent_table("rank", rank, z, class_ids, torch.int32)
    sizes = [plain.whole_number("ks", k) for k in ks]
    with torch.no_grad():
        on, off = torch.ops.patchsae.decode_sweep(z.values, z.indices, z.indptr, rank, sizes, W_dec, b_dec, class_ids)
        return z.restore_(on), z.restore_(off)


def latent_stats(
    z: SparseLatents,
    tokens_per_image: int,
    threshold: float = 0.2,
    labels: Tensor | None = None,
    num_classes: int | None = None,
    first_image: int = 0,
    previous: LatentStats | None = None,
) -> LatentStats:
    """Statistics of every latent over whole images (see `LatentStats`).

    Args:
        z: latents of B images, ``(B * tokens_per_image, S)``, image by image.
        threshold: tau; counts take activations above it.
        labels: int64 ``[B]``, class of every image (-1: none), with ``num_classes``; gives class_counts.
        first_image: number of the first image, for the position of the maxima.
        previous: continue this fold. Its tensors are updated in place, so it must not be used afterwards; in return the
            result does not depend on how the images were cut into batches, bit for bit.
    """
    checks.latents(z)
    n, s = z.shape
    checks.whole_images("z", n, tokens_per_image)
    plain.whole_number("first_image", first_image)
    images = n // tokens_per_image
    if (labels is None) != (num_classes is None):
        raise ValueError("labels and num_classes belong together; one of them is missing")
    if labels is not None and num_classes is not None:
        _check_labels(labels, images, num_classes)
        checks.same_device(z=z.values, labels=labels)
    start = previous or LatentStats.empty(s, tokens_per_image, num_classes, z.device)
    if start.sums.shape[0] != s or start.tokens_per_image != tokens_per_image:
        raise ValueError(
            f"previous has {start.sums.shape[0]} latents and {start.tokens_per_image} tokens an image; "
            f"expected {s} and {tokens_per_image}"
        )
    if (start.class_counts is None) != (labels is None):
        raise ValueError("previous was folded " + ("with" if labels is None else "without") + " labels")
    torch.ops.patchsae.latent_stats_(
        z.values.detach(),
        z.indices,
        z.indptr,
        tokens_per_image,
        threshold,
        labels,
        first_image,
        start.sums,
        start.counts,
        start.image_counts,
        start.max_values,
        start.max_position,
        start.class_counts,
    )
    return replace(start, images=start.images + images)


def pool_tokens(z: SparseLatents, tokens_per_image: int, budget_mb: float = 256) -> SparseLatents:
    """Sum of every latent over the tokens of an image, ``(B, S)``; divide by tokens_per_image for the token mean.

    An image holds an entry for each latent that any of its tokens holds. Not differentiable.
    """
    checks.latents(z)
    n, s = z.shape
    checks.whole_images("z", n, tokens_per_image)
    with torch.no_grad():
        values, indices, indptr = torch.ops.patchsae.pool_tokens(
            z.values, z.indices, z.indptr, s, tokens_per_image, checks.budget_bytes(budget_mb)
        )
    return SparseLatents(values, indices, indptr, (n // tokens_per_image, s))


def _check_labels(labels: Tensor, images: int, num_classes: int) -> None:
    checks.shape("labels", labels, (images,), "[B]")
    checks.dtype("labels", labels, (torch.int64,))
    plain.whole_number("num_classes", num_classes, 1)
