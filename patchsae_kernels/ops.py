"""Each op once: schema, shapes for tracing, gradient, and the choice of implementation by device.

The reference serves every device (CompositeExplicitAutograd); a faster implementation is registered for its own
dispatch key and takes over there. All arguments are tensors and plain numbers here; the public functions are in
`patchsae_kernels.api` and `patchsae_kernels.step`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patchsae_kernels import cpu, gpu, reference
from patchsae_kernels.arithmetic import as_it_is, of_its_precision
from patchsae_kernels.once import no_second_derivative
from patchsae_kernels.reference import checked

_lib = torch.library.Library("patchsae", "DEF")
_REFERENCE = "CompositeExplicitAutograd"

_SCHEMAS = (
    "encode(Tensor x, Tensor W_enc, Tensor b_enc, Tensor b_dec, Tensor[] packed, Tensor? threshold, str activation, "
    "int k, str precision, int budget) -> (Tensor, Tensor, Tensor)",
    "encode_bounded(Tensor x, Tensor W_enc, Tensor b_enc, Tensor b_dec, Tensor[] packed, Tensor? threshold, "
    "str activation, int k, str precision, int budget, int capacity) -> (Tensor, Tensor, Tensor, Tensor)",
    "reconstruct(Tensor x, Tensor W_enc, Tensor b_enc, Tensor b_dec, Tensor[] packed, Tensor? threshold, Tensor W_dec, "
    "str activation, int k, str precision, int budget) -> (Tensor, Tensor, Tensor, Tensor)",
    "encode_backward(Tensor grad_values, Tensor indices, Tensor indptr, Tensor x, Tensor W_enc, Tensor b_dec, "
    "bool with_x=True) -> (Tensor, Tensor, Tensor, Tensor)",
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
    "float cls_weight, int tokens_per_image, int budget, str precision='exact', Tensor[]? packed=None, "
    "float share=-1., str path='') -> Tensor[]",
    "adam_step_(Tensor(a!) p, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, int step, float lr, "
    "float beta1, float beta2, float eps, bool unit_rows, int seed=0) -> ()",
)
for _schema in _SCHEMAS:
    _lib.define(_schema)

BACKWARD_BUDGET = 256 * 2**20


_MULTIPLY = ("encode", "encode_bounded", "reconstruct", "encode_backward", "sae_step")
"""The ops that may take PyTorch's products."""


def _register(name: str, implementation: Callable[..., Any], key: str) -> None:
    if name in _MULTIPLY:
        arguments = [a.name for a in getattr(torch.ops.patchsae, name).default._schema.arguments]
        place = arguments.index("precision") if "precision" in arguments else None
        implementation = of_its_precision(implementation, place)
    else:
        implementation = as_it_is(implementation)
    _lib.impl(name, implementation, key)


for _name in ("encode", "encode_bounded", "reconstruct", "decode_masked", "decode_sweep", "latent_stats_"):
    _register(_name, getattr(checked, _name), _REFERENCE)
for _name in ("encode_backward", "decode", "decode_backward", "pool_tokens"):
    _register(_name, getattr(reference, _name), _REFERENCE)
_register("sae_step", reference.sae_step, _REFERENCE)
_register("adam_step_", reference.adam_step_, _REFERENCE)
_NATIVE = {} if "CPU" in gpu.KEYS else cpu.implementations()
for _name, _implementation in _NATIVE.items():
    _register(_name, _implementation, "CPU")
_ON_GPU = (
    "encode",
    "encode_bounded",
    "reconstruct",
    "encode_backward",
    "decode",
    "decode_backward",
    "decode_masked",
    "decode_sweep",
    "latent_stats_",
    "sae_step",
    "adam_step_",
)
for _key in gpu.KEYS:
    for _name in _ON_GPU:
        _register(_name, getattr(gpu, _name), _key)


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


@torch.library.register_fake("patchsae::encode_bounded", lib=_lib)
def _encode_bounded_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    capacity, tokens = rest[-1], x.shape[0]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(capacity, dtype=dtype),
        x.new_empty(capacity, dtype=torch.int32),
        x.new_empty(tokens + 1, dtype=torch.int64),
        x.new_empty(4, dtype=torch.int64),
    )


@torch.library.register_fake("patchsae::reconstruct", lib=_lib)
def _reconstruct_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    tokens = x.shape[0]
    squared_error, l1 = (x.new_empty(tokens, dtype=dtype) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), squared_error, l1, x.new_empty(tokens, dtype=torch.int64)


@torch.library.register_fake("patchsae::encode_backward", lib=_lib)
def _encode_backward_fake(
    grad_values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    x: Tensor,
    W_enc: Tensor,
    b_dec: Tensor,
    with_x: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_W = W_enc.new_empty(W_enc.shape[1], W_enc.shape[0]).t()
    grad_x = torch.empty_like(x) if with_x else x.new_empty(0, x.shape[1])
    return grad_x, grad_W, b_dec.new_empty(W_enc.shape[1]), torch.empty_like(b_dec)


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


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """``ctx.save_for_backward``, which refuses tensors made in inference mode: their copies are saved."""
    ctx.save_for_backward(*(t.clone() if t is not None and t.is_inference() else t for t in tensors))


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, W_enc, _, b_dec = inputs[:4]
    _, indices, indptr = output
    ctx.mark_non_differentiable(indices, indptr)
    save(ctx, indices, indptr, x, W_enc, b_dec)
    ctx.packed = len(inputs[4])


def _encode_backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Any, ...]:
    with_x = ctx.needs_input_grad[0]
    grads = torch.ops.patchsae.encode_backward(grad_values.contiguous(), *ctx.saved_tensors, with_x)
    return (grads[0] if with_x else None, *grads[1:], [None] * ctx.packed, None, None, None, None, None)


def _decode_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    save(ctx, *inputs[:4])


def _decode_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.patchsae.decode_backward(grad_y.contiguous(), *ctx.saved_tensors, BACKWARD_BUDGET)
    grad_values, grad_W, grad_b = grads
    return grad_values, None, None, grad_W, grad_b


def _decode_masked_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, indptr, keep, W_dec, _, class_ids = inputs
    save(ctx, values, indices, indptr, keep, W_dec, class_ids)


def _decode_masked_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, indptr, keep, W_dec, class_ids = ctx.saved_tensors
    kept = reference.per_entry(keep, indices, indptr, class_ids)
    grads = torch.ops.patchsae.decode_backward(
        grad_y.contiguous(), values * kept, indices, indptr, W_dec, BACKWARD_BUDGET
    )
    grad_values, grad_W, grad_b = grads
    return grad_values * kept, None, None, None, grad_W, grad_b, None


for _name in ("encode_backward", "decode_backward"):
    torch.library.register_autograd(f"patchsae::{_name}", no_second_derivative, lib=_lib)
torch.library.register_autograd("patchsae::encode", _encode_backward, setup_context=_encode_setup, lib=_lib)
torch.library.register_autograd("patchsae::decode", _decode_backward, setup_context=_decode_setup, lib=_lib)
torch.library.register_autograd(
    "patchsae::decode_masked", _decode_masked_backward, setup_context=_decode_masked_setup, lib=_lib
)


def implementations() -> dict[str, str]:
    """What serves each op on this machine's CPU and, where there is one, GPU."""
    names = [schema[: schema.index("(")] for schema in _SCHEMAS]
    table = dict.fromkeys(names, "reference (PyTorch)")
    if "CPU" in gpu.KEYS:
        table.update(dict.fromkeys(_ON_GPU, "Triton, in its interpreter (TRITON_INTERPRET=1)"))
    elif cpu.available:
        table.update(dict.fromkeys(_NATIVE, f"native C++ ({cpu.level()}); reference for float64"))
    else:
        table = dict.fromkeys(names, f"reference (PyTorch): the extension is not here ({cpu.missing})")
    if torch.cuda.is_available():
        for name in names:
            table[name] += "; on the GPU " + ("Triton" if gpu.available and name in _ON_GPU else "reference (PyTorch)")
    return table
