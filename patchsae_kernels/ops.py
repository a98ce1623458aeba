"""Each op once: schema, shapes for tracing, gradient, and the choice of implementation by device.

The reference serves every device (CompositeExplicitAutograd); a faster implementation is registered for its own
dispatch key and takes over there. All arguments are tensors and plain numbers here; the public functions are in
`patchsae_kernels.api` and `patchsae_kernels.step`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchsae_kernels import checks, cpu, reference, reference_training

_lib = torch.library.Library("patchsae", "DEF")
_REFERENCE = "CompositeExplicitAutograd"

_SCHEMAS = (
    "encode(Tensor x, Tensor W_enc, Tensor b_enc, Tensor b_dec, Tensor? threshold, str activation, int k, "
    "str precision, int budget) -> (Tensor, Tensor, Tensor)",
    "encode_backward(Tensor grad_values, Tensor indices, Tensor indptr, Tensor x, Tensor W_enc, Tensor b_dec) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "decode(Tensor values, Tensor indices, Tensor indptr, Tensor W_dec, Tensor b_dec) -> Tensor",
    "decode_backward(Tensor grad_y, Tensor values, Tensor indices, Tensor indptr, Tensor W_dec, int budget) "
    "-> (Tensor, Tensor, Tensor)",
    "decode_masked(Tensor values, Tensor indices, Tensor indptr, Tensor keep, Tensor W_dec, Tensor b_dec, "
    "Tensor? class_ids) -> Tensor",
    "decode_sweep(Tensor values, Tensor indices, Tensor indptr, Tensor rank, int[] ks, Tensor W_dec, Tensor b_dec, "
    "Tensor? class_ids) -> (Tensor, Tensor)",
    "latent_stats_(Tensor values, Tensor indices, Tensor indptr, int tokens_per_image, float threshold, "
    "Tensor? labels, int first_image, Tensor(a!) sums, Tensor(b!) counts, Tensor(c!) image_counts, "
    "Tensor(d!) max_values, Tensor(e!) max_position, Tensor(f!)? class_counts) -> ()",
    "pool_tokens(Tensor values, Tensor indices, Tensor indptr, int latents, int tokens_per_image, int budget) "
    "-> (Tensor, Tensor, Tensor)",
    "sae_step(Tensor x, Tensor W_enc, Tensor b_enc, Tensor W_dec, Tensor b_dec, Tensor? dead, float l1, "
    "float cls_weight, int tokens_per_image, int budget) -> Tensor[]",
    "adam_step_(Tensor(a!) p, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, int step, float lr, "
    "float beta1, float beta2, float eps, bool unit_rows) -> ()",
)
for _schema in _SCHEMAS:
    _lib.define(_schema)

BACKWARD_BUDGET = 256 * 2**20


def _encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    threshold: Tensor | None,
    activation: str,
    k: int,
    precision: str,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.finite_rows("x", x)
    if threshold is not None:
        checks.non_negative("threshold", threshold)
    return reference.encode(x, W_enc, b_enc, b_dec, threshold, activation, k, precision, budget)


def _decode_masked(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    keep: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    class_ids: Tensor | None,
) -> Tensor:
    if class_ids is not None:
        checks.in_range("class_ids", class_ids, 0, keep.shape[0])
    kept = reference.filter_entries(values, indices, indptr, reference.per_entry(keep, indices, indptr, class_ids))
    return torch.ops.patchsae.decode(*kept, W_dec, b_dec)


def _decode_sweep(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rank: Tensor,
    ks: list[int],
    W_dec: Tensor,
    b_dec: Tensor,
    class_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if class_ids is not None:
        checks.in_range("class_ids", class_ids, 0, rank.shape[0])
    order = sorted(range(len(ks)), key=ks.__getitem__)
    segments = reference.sweep_segments(values, indices, indptr, rank, [ks[i] for i in order], class_ids)
    parts = torch.ops.patchsae.decode(*segments, W_dec, torch.zeros_like(b_dec))
    on, off = reference.sweep_sums(parts.view(-1, len(ks) + 1, W_dec.shape[1]), b_dec)
    if order != list(range(len(ks))):
        back = torch.argsort(torch.tensor(order, device=on.device))
        return on[back], off[back]
    return on, off


def _latent_stats_(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    tokens_per_image: int,
    threshold: float,
    labels: Tensor | None,
    first_image: int,
    sums: Tensor,
    counts: Tensor,
    image_counts: Tensor,
    max_values: Tensor,
    max_position: Tensor,
    class_counts: Tensor | None,
) -> None:
    if labels is not None and class_counts is not None:
        checks.in_range("labels", labels, -1, class_counts.shape[0])
    totals = (sums, counts, image_counts, max_values, max_position, class_counts)
    reference.latent_stats_(values, indices, indptr, tokens_per_image, threshold, labels, first_image, *totals)


def _decode_cpu(values: Tensor, indices: Tensor, indptr: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    implementation = cpu.decode if cpu.can_decode(values, W_dec, b_dec) else reference.decode
    return implementation(values, indices, indptr, W_dec, b_dec)


_lib.impl("encode", _encode, _REFERENCE)
_lib.impl("decode_masked", _decode_masked, _REFERENCE)
_lib.impl("decode_sweep", _decode_sweep, _REFERENCE)
_lib.impl("latent_stats_", _latent_stats_, _REFERENCE)
for _name in ("encode_backward", "decode", "decode_backward", "pool_tokens"):
    _lib.impl(_name, getattr(reference, _name), _REFERENCE)
_lib.impl("sae_step", reference_training.sae_step, _REFERENCE)
_lib.impl("adam_step_", reference_training.adam_step_, _REFERENCE)
if cpu.available:
    _lib.impl("decode", _decode_cpu, "CPU")


def _csr_fake(template: Tensor, rows: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor]:
    """An unknown number of entries; never specialised to 0 or 1."""
    nnz = torch.library.get_ctx().new_dynamic_size()
    dtype = torch.promote_types(template.dtype, torch.float32)
    return (
        template.new_empty(nnz, dtype=dtype),
        template.new_empty(nnz, dtype=torch.int32),
        template.new_empty(rows + 1, dtype=torch.int64),
    )


@torch.library.register_fake("patchsae::encode", lib=_lib)
def _encode_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _csr_fake(x, x.shape[0])


@torch.library.register_fake("patchsae::encode_backward", lib=_lib)
def _encode_backward_fake(
    grad_values: Tensor, indices: Tensor, indptr: Tensor, x: Tensor, W_enc: Tensor, b_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_W = W_enc.new_empty(W_enc.shape[1], W_enc.shape[0]).t()
    return torch.empty_like(x), grad_W, b_dec.new_empty(W_enc.shape[1]), torch.empty_like(b_dec)


@torch.library.register_fake("patchsae::decode", lib=_lib)
def _decode_fake(values: Tensor, indices: Tensor, indptr: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.new_empty(indptr.shape[0] - 1, W_dec.shape[1], dtype=dtype)


@torch.library.register_fake("patchsae::decode_backward", lib=_lib)
def _decode_backward_fake(
    grad_y: Tensor, values: Tensor, indices: Tensor, indptr: Tensor, W_dec: Tensor, budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(values), W_dec.new_empty(W_dec.shape), grad_y.new_empty(grad_y.shape[1])


@torch.library.register_fake("patchsae::decode_masked", lib=_lib)
def _decode_masked_fake(
    values: Tensor, indices: Tensor, indptr: Tensor, keep: Tensor, W_dec: Tensor, b_dec: Tensor, *_: Any
) -> Tensor:
    return _decode_fake(values, indices, indptr, W_dec, b_dec)


@torch.library.register_fake("patchsae::decode_sweep", lib=_lib)
def _decode_sweep_fake(
    values: Tensor, indices: Tensor, indptr: Tensor, rank: Tensor, ks: list[int], W_dec: Tensor, b_dec: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    one = _decode_fake(values, indices, indptr, W_dec, b_dec)
    shape = (len(ks), *one.shape)
    return one.new_empty(shape), one.new_empty(shape)


@torch.library.register_fake("patchsae::latent_stats_", lib=_lib)
def _latent_stats_fake(*_: Any) -> None:
    return None


@torch.library.register_fake("patchsae::pool_tokens", lib=_lib)
def _pool_tokens_fake(
    values: Tensor, indices: Tensor, indptr: Tensor, latents: int, tokens_per_image: int, budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    pooled, index, pointers = _csr_fake(values, (indptr.shape[0] - 1) // tokens_per_image)
    return pooled.to(values.dtype), index, pointers


@torch.library.register_fake("patchsae::sae_step", lib=_lib)
def _sae_step_fake(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, *_: Any) -> list[Tensor]:
    scalars = [x.new_empty(()) for _ in range(6)]
    fired = x.new_empty(W_enc.shape[1], dtype=torch.bool)
    return [*scalars, fired, *(torch.empty_like(p) for p in (W_enc, b_enc, W_dec, b_dec))]


@torch.library.register_fake("patchsae::adam_step_", lib=_lib)
def _adam_step_fake(*_: Any) -> None:
    return None


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, W_enc, _, b_dec = inputs[:4]
    _, indices, indptr = output
    ctx.mark_non_differentiable(indices, indptr)
    ctx.save_for_backward(indices, indptr, x, W_enc, b_dec)


def _encode_backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.patchsae.encode_backward(grad_values.contiguous(), *ctx.saved_tensors)
    return (*grads, None, None, None, None, None)


def _decode_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _decode_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.patchsae.decode_backward(grad_y.contiguous(), *ctx.saved_tensors, BACKWARD_BUDGET)
    grad_values, grad_W, grad_b = grads
    return grad_values, None, None, grad_W, grad_b


def _decode_masked_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, indptr, keep, W_dec, _, class_ids = inputs
    ctx.save_for_backward(values, indices, indptr, keep, W_dec, class_ids)


def _decode_masked_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, indptr, keep, W_dec, class_ids = ctx.saved_tensors
    kept = reference.per_entry(keep, indices, indptr, class_ids)
    grads = torch.ops.patchsae.decode_backward(
        grad_y.contiguous(), values * kept, indices, indptr, W_dec, BACKWARD_BUDGET
    )
    grad_values, grad_W, grad_b = grads
    return grad_values * kept, None, None, None, grad_W, grad_b, None


torch.library.register_autograd("patchsae::encode", _encode_backward, setup_context=_encode_setup, lib=_lib)
torch.library.register_autograd("patchsae::decode", _decode_backward, setup_context=_decode_setup, lib=_lib)
torch.library.register_autograd(
    "patchsae::decode_masked", _decode_masked_backward, setup_context=_decode_masked_setup, lib=_lib
)


def implementations() -> dict[str, str]:
    """What serves each op on the CPU, with the reason where it is the reference."""
    names = [schema[: schema.index("(")] for schema in _SCHEMAS]
    table = dict.fromkeys(names, "reference (PyTorch): no native implementation yet")
    if cpu.available:
        table["decode"] = f"native C++ ({cpu.isa()}), float32 and bfloat16 rows; reference for float64"
    else:
        table["decode"] = f"reference (PyTorch): the extension is not here ({cpu.missing})"
    return table
