"""The Triton implementations, as the ops call them: loaded on first use, so that a machine without a GPU never does.

They serve CUDA and ROCm tensors (PyTorch calls both "CUDA"). With ``TRITON_INTERPRET=1`` in the environment Triton's
interpreter runs them, and they serve CPU tensors as well: this is how they are tested without a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from patchsae_kernels import reference
from patchsae_kernels.reference import checked

interpreted: bool = os.environ.get("TRITON_INTERPRET") == "1"
available: bool = importlib.util.find_spec("triton") is not None
KEYS: tuple[str, ...] = (("CUDA", "CPU") if interpreted else ("CUDA",)) if available else ()
"""Dispatch keys that these implementations are registered for."""


PACKED_ROWS = 5
"""Place of the rows of W_enc among the packed copies."""

Op = TypeVar("Op", bound=Callable[..., Any])


def on_its_device(op: Op) -> Op:
    """Kernels start on the current device: make that the one of the first argument."""

    @functools.wraps(op)
    def guarded(first: Tensor, *rest: Any, **options: Any) -> Any:
        with torch.cuda.device_of(first):
            return op(first, *rest, **options)

    return guarded  # type: ignore[return-value]


def serves(device: torch.device) -> bool:
    """Whether tensors of a device come here."""
    return device.type.upper() in KEYS


@on_its_device
def pack(W_enc: Tensor, b_enc: Tensor, precision: str) -> list[Tensor]:
    """Packed copies for `encode`; empty where the reference serves these weights."""
    from patchsae_kernels.triton import encode as fast
    from patchsae_kernels.triton import pack as packing

    return list(packing.pack(W_enc, b_enc, precision)) if fast.takes(W_enc, W_enc) else []


@on_its_device
def encode(x: Tensor, W_enc: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from patchsae_kernels.triton import encode as fast

    return fast.encode(x, W_enc, *rest) if fast.takes(x, W_enc) else checked.encode(x, W_enc, *rest)


@on_its_device
def encode_bounded(x: Tensor, W_enc: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from patchsae_kernels.triton import encode as fast

    return fast.encode_bounded(x, W_enc, *rest) if fast.takes(x, W_enc) else checked.encode_bounded(x, W_enc, *rest)


@on_its_device
def reconstruct(x: Tensor, W_enc: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from patchsae_kernels.triton import encode as fast
    from patchsae_kernels.triton import reconstruct as fused

    return fused.reconstruct(x, W_enc, *rest) if fast.takes(x, W_enc) else checked.reconstruct(x, W_enc, *rest)


@on_its_device
def decode(values: Tensor, indices: Tensor, indptr: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    from patchsae_kernels.triton import decode as fast

    chosen = fast.decode if fast.takes_decode(values, W_dec, b_dec) else reference.decode
    return chosen(values, indices, indptr, W_dec, b_dec)


@on_its_device
def decode_masked(
    values: Tensor, indices: Tensor, indptr: Tensor, keep: Tensor, W_dec: Tensor, b_dec: Tensor, ids: Tensor | None
) -> Tensor:
    from patchsae_kernels.triton import decode as fast

    chosen = fast.decode_masked if fast.takes_decode(values, W_dec, b_dec) else checked.decode_masked
    return chosen(values, indices, indptr, keep, W_dec, b_dec, ids)


@on_its_device
def decode_sweep(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rank: Tensor,
    ks: list[int],
    W_dec: Tensor,
    b_dec: Tensor,
    ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from patchsae_kernels.triton import decode, sweep

    chosen = sweep.decode_sweep if decode.takes_decode(values, W_dec, b_dec) else checked.decode_sweep
    return chosen(values, indices, indptr, rank, ks, W_dec, b_dec, ids)


@on_its_device
def latent_stats_(values: Tensor, indices: Tensor, indptr: Tensor, tokens_per_image: int, *rest: Any) -> None:
    from patchsae_kernels.triton import stats as fast

    chosen = fast.latent_stats_ if fast.can_latent_stats(values, tokens_per_image) else checked.latent_stats_
    chosen(values, indices, indptr, tokens_per_image, *rest)


@on_its_device
def encode_backward(grad_values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from patchsae_kernels.triton import backward

    return backward.encode_backward(grad_values, *rest)


@on_its_device
def decode_backward(grad_y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from patchsae_kernels.triton import backward

    return backward.decode_backward(grad_y, *rest)


@on_its_device
def sae_step(x: Tensor, *rest: Any) -> list[Tensor]:
    from patchsae_kernels.triton import step

    return step.sae_step(x, *rest)


@on_its_device
def adam_step_(p: Tensor, *rest: Any) -> None:
    from patchsae_kernels.triton import adam

    adam.adam_step_(p, *rest)


@on_its_device
def adam_and_pack_(p: Tensor, *rest: Any, packed: list[Tensor]) -> bool:
    """`adam_step_` on an encoder, whose packed rows are brought up to date in the same pass; False: nothing is done."""
    from patchsae_kernels.triton import adam
    from patchsae_kernels.triton.pack import Packed

    return adam.adam_with(adam.Extras(packed=Packed(*packed)), p, *rest)


@on_its_device
def pack_biases(b_enc: Tensor, packed: list[Tensor]) -> None:
    """Bring up to date what a packed encoder knows of its biases."""
    from patchsae_kernels.triton import pack as packing

    packing.pack_biases(packing.Packed(*packed), b_enc)


def next_is_dense(share: float, was_dense: bool | None, precision: str) -> bool:
    """Whether a step takes dense products at a share of active latents, after one that did or did not (None: first)."""
    from patchsae_kernels.triton import tuning

    return tuning.next_is_dense(share, was_dense, precision)


def takes_step(x: Tensor, *weights: Tensor) -> bool:
    """Whether `bounded_step` serves x ``[N, D]`` and W_enc, b_enc, W_dec, b_dec."""
    from patchsae_kernels.triton import step

    return serves(x.device) and step.takes_step(x, *weights)


@on_its_device
def bounded_step(x: Tensor, *rest: Any) -> tuple[list[Tensor], Tensor]:
    from patchsae_kernels.triton import step

    return step.bounded_step(x, *rest)


@on_its_device
def controlled_adam_(p: Tensor, *rest: Any, control: Tensor, packed: list[Tensor] | None) -> None:
    """`adam_step_` whose constants come from ``control`` on the device, see `patchsae_kernels.triton.adam.Extras`."""
    from patchsae_kernels.triton import adam
    from patchsae_kernels.triton.pack import Packed

    served = adam.adam_with(adam.Extras(control, Packed(*packed) if packed else None), p, *rest)
    assert served, "a step is captured only of parameters that are served"


def control_of(*settings: Any) -> Tensor:
    """``control`` for `controlled_adam_`, on the CPU."""
    from patchsae_kernels.triton import adam

    return adam.control_of(*settings)
