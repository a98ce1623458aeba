"""Validation of arguments: every error names the argument, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import plain
from patchsae_kernels.latents import SparseLatents

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WEIGHTS = (torch.float32, torch.float64)
DICTIONARIES = (torch.float32, torch.bfloat16, torch.float64)
ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
WITH_K = ("topk", "batchtopk")
PRECISIONS = ("exact", "bf16", "fp32")


def shape(name: str, tensor: Tensor, expected: tuple[int, ...], symbols: str) -> None:
    """``expected`` holds -1 where any size is right."""
    plain.tensor(name, tensor, symbols)
    actual = tuple(tensor.shape)
    if len(actual) == len(expected) and all(e in (-1, a) for a, e in zip(actual, expected, strict=True)):
        return
    wanted = symbols if -1 in expected else f"{symbols} = {expected}"
    hint = ": transpose it" if actual == expected[::-1] and len(expected) == 2 and actual != expected else ""
    raise ValueError(f"{name} has shape {actual}; expected {wanted}{hint}")


def dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(str(d) for d in allowed)
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {names}")


def same_device(**tensors: Tensor | None) -> None:
    """All given tensors share the device of the first."""
    present = {name: t.device for name, t in tensors.items() if t is not None}
    (first, device), *others = present.items()
    for name, other in others:
        if other != device:
            raise ValueError(f"{name} is on {other} and {first} on {device}; expected one device")


def option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


class NotFiniteError(ValueError):
    """A NaN or an infinity in the input of an op, or from an overflow in it."""


def finite_rows(name: str, x: Tensor) -> None:
    """Raise for the first row of ``x`` ``[N, D]`` that holds a NaN or an infinity."""
    bad = ~torch.isfinite(x).all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        count = int(bad.sum())
        raise NotFiniteError(f"{name} has a NaN or an infinity in row {row} ({count} such rows of {x.shape[0]})")


def finite_tokens(x: Tensor, b_dec: Tensor) -> None:
    """Raise for the first row of x, or else of x - b_dec, that is not finite."""
    finite_rows("x", x)
    finite_rows("x - b_dec", x.to(torch.promote_types(x.dtype, torch.float32)) - b_dec)


def finite_latents(values: Tensor, indptr: Tensor) -> None:
    """Raise for the first token that has an infinite latent, as encoders give where a product has overflowed."""
    if not values.numel() or float(values.amax()) < float("inf"):
        return
    entry = int((~values.isfinite()).nonzero()[0])
    row = int(torch.searchsorted(indptr, entry, right=True)) - 1
    raise NotFiniteError(f"(x - b_dec) W_enc passes the range of {values.dtype} in row {row}")


def in_range(name: str, ids: Tensor, low: int, end: int) -> None:
    """Every id lies in ``low..end-1``."""
    if not ids.numel():
        return
    smallest, largest = torch.stack(ids.aminmax()).tolist()  # one read of the device
    if not low <= smallest <= largest < end:
        raise ValueError(f"{name} reach {smallest}..{largest}; expected {low}..{end - 1}")


def non_negative(name: str, tensor: Tensor) -> None:
    if bool((~(tensor >= 0)).any()):
        raise ValueError(f"{name} holds a negative value or NaN; expected {name} >= 0")


def finite_weight(name: str, weight: Tensor) -> None:
    with torch.no_grad():
        # a sum in float64 makes a copy; one in float32 carries every NaN and infinity on, but may itself overflow
        if not bool(weight.sum().isfinite()) and not bool(weight.sum(dtype=torch.float64).isfinite()):
            raise ValueError(f"{name} holds a NaN or an infinity")


def encoder_weights(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> None:
    shape("W_enc", W_enc, (-1, -1), "[D, S]")
    shape("b_enc", b_enc, (W_enc.shape[1],), "[S]")
    shape("b_dec", b_dec, (W_enc.shape[0],), "[D]")
    dtype("W_enc", W_enc, WEIGHTS)
    dtype("b_enc", b_enc, (W_enc.dtype,))
    dtype("b_dec", b_dec, (W_enc.dtype,))
    same_device(W_enc=W_enc, b_enc=b_enc, b_dec=b_dec)


def encode_arguments(
    x: Tensor, W_enc: Tensor, activation: str, k: int | None, threshold: Tensor | None, precision: str
) -> None:
    d, s = W_enc.shape
    shape("x", x, (-1, d), f"[N, D] with D = {d}")
    dtype("x", x, FLOATS)
    option("activation", activation, ACTIVATIONS)
    option("precision", precision, PRECISIONS)
    if (k is not None) != (activation in WITH_K):
        raise ValueError(
            f"k is {k} with activation={activation!r}; expected k with 'topk' or 'batchtopk' and only there"
        )
    if k is not None and not 1 <= plain.whole_number("k", k) <= s:
        raise ValueError(f"k is {k}; expected 1 <= k <= S = {s}")
    if (threshold is not None) != (activation == "jumprelu"):
        given = "given" if threshold is not None else "missing"
        raise ValueError(
            f"threshold is {given} with activation={activation!r}; expected with 'jumprelu' and only there"
        )
    if threshold is not None:
        shape("threshold", threshold, (s,), "[S]")
        dtype("threshold", threshold, WEIGHTS)
    same_device(x=x, W_enc=W_enc, threshold=threshold)


def latents(z: SparseLatents) -> None:
    if not isinstance(z, SparseLatents):
        raise TypeError(f"z is a {type(z).__name__}; expected SparseLatents (SparseLatents.from_dense makes one)")
    plain.tensor("z.values", z.values, "[nnz]")


def decoder(z: SparseLatents, W_dec: Tensor, b_dec: Tensor) -> None:
    latents(z)
    shape("W_dec", W_dec, (z.shape[1], -1), f"[S, D] with S = {z.shape[1]}")
    shape("b_dec", b_dec, (W_dec.shape[1],), "[D]")
    dtype("W_dec", W_dec, DICTIONARIES)
    dtype("b_dec", b_dec, (torch.float32, torch.float64))
    same_device(z=z.values, W_dec=W_dec, b_dec=b_dec)


def per_latent_table(name: str, table: Tensor, z: SparseLatents, class_ids: Tensor | None, kind: torch.dtype) -> None:
    """``keep`` or ``rank``: ``[S]``, or ``[C, S]`` together with ``class_ids`` int64 ``[N]``."""
    n, s = z.shape
    if class_ids is None:
        shape(name, table, (s,), "[S] (or [C, S] with class_ids)")
        dtype(name, table, (kind,))
        same_device(z=z.values, **{name: table})
        return
    shape(name, table, (-1, s), f"[C, S] with S = {s}")
    dtype(name, table, (kind,))
    shape("class_ids", class_ids, (n,), f"[N] with N = {n}")
    dtype("class_ids", class_ids, (torch.int64,))
    same_device(z=z.values, class_ids=class_ids, **{name: table})


def whole_images(name: str, tokens: int, tokens_per_image: int) -> None:
    plain.whole_number("tokens_per_image", tokens_per_image, 1)
    if tokens % tokens_per_image:
        raise ValueError(f"{name} has {tokens} tokens, not whole images of tokens_per_image = {tokens_per_image}")


def budget_bytes(budget_mb: float) -> int:
    if not budget_mb > 0:
        raise ValueError(f"budget_mb is {budget_mb}; expected a positive number of megabytes")
    return int(budget_mb * 2**20)
