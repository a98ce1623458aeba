"""Each op once: schema, shapes for tracing, who serves it, and gradient.

A call reaches whoever serves it as a record (`patchsae_kernels.calls`). All arguments are tensors and plain numbers
here; the public functions are in `patchsae_kernels.api` and `patchsae_kernels.step`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchsae_kernels import cpu
from patchsae_kernels.calls import (
    AdamCall,
    BoundedEncodeCall,
    DecodeBackwardCall,
    DecodeCall,
    EncodeBackwardCall,
    EncodeCall,
    MaskedDecodeCall,
    PoolCall,
    ReconstructCall,
    StatsCall,
    StepCall,
    SweepCall,
)
from patchsae_kernels.once import no_second_derivative
from patchsae_kernels.reference import checked, sparse, training
from patchsae_kernels.servers import Op, Server, define, interpreted

BACKWARD_BUDGET = 256 * 2**20


def _csr_shapes(template: Tensor, rows: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor]:
    """An unknown number of entries; never specialised to 0 or 1."""
    nnz = torch.library.get_ctx().new_dynamic_size()
    return (
        template.new_empty(nnz, dtype=_wide(template)),
        template.new_empty(nnz, dtype=torch.int32),
        template.new_empty(rows + 1, dtype=torch.int64),
    )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _encode_shapes(call: EncodeCall) -> tuple[Tensor, Tensor, Tensor]:
    return _csr_shapes(call.x, call.x.shape[0])


def _encode_bounded_shapes(call: BoundedEncodeCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, capacity = call.x, call.capacity
    return (
        x.new_empty(capacity, dtype=_wide(x)),
        x.new_empty(capacity, dtype=torch.int32),
        x.new_empty(x.shape[0] + 1, dtype=torch.int64),
        x.new_empty(4, dtype=torch.int64),
    )


def _reconstruct_shapes(call: ReconstructCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, tokens, dtype = call.x, call.x.shape[0], _wide(call.x)
    squared_error, l1 = (x.new_empty(tokens, dtype=dtype) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), squared_error, l1, x.new_empty(tokens, dtype=torch.int64)


def _encode_backward_shapes(call: EncodeBackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, W_enc, b_dec = call.x, call.W_enc, call.b_dec
    grad_W = W_enc.new_empty(W_enc.shape[1], W_enc.shape[0]).t()
    grad_x = torch.empty_like(x) if call.with_x else x.new_empty(0, x.shape[1])
    return grad_x, grad_W, b_dec.new_empty(W_enc.shape[1]), torch.empty_like(b_dec)


def _decode_shapes(call: DecodeCall) -> Tensor:
    return call.values.new_empty(call.tokens, call.W_dec.shape[1], dtype=_wide(call.values))


def _decode_backward_shapes(call: DecodeBackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    W_dec, grad_y = call.W_dec, call.grad_y
    return torch.empty_like(call.values), W_dec.new_empty(W_dec.shape), grad_y.new_empty(grad_y.shape[1])


def _decode_sweep_shapes(call: SweepCall) -> tuple[Tensor, Tensor]:
    one = _decode_shapes(call)
    shape = (len(call.ks), *one.shape)
    return one.new_empty(shape), one.new_empty(shape)


def _pool_tokens_shapes(call: PoolCall) -> tuple[Tensor, Tensor, Tensor]:
    pooled, index, pointers = _csr_shapes(call.values, (call.indptr.shape[0] - 1) // call.tokens_per_image)
    return pooled.to(call.values.dtype), index, pointers


def _sae_step_shapes(call: StepCall) -> list[Tensor]:
    scalars = [call.x.new_empty(()) for _ in range(6)]
    fired = call.x.new_empty(call.W_enc.shape[1], dtype=torch.bool)
    return [*scalars, fired, *(torch.empty_like(p) for p in call.weights)]


def _nothing(_: object) -> None:
    return None


OPS = (
    Op(
        "encode(Tensor x, Tensor W_enc, Tensor b_enc, Tensor b_dec, Tensor[] packed, Tensor? threshold, "
        "str activation, int k, str precision, int budget) -> (Tensor, Tensor, Tensor)",
        EncodeCall,
        _encode_shapes,
        checked,
        cpu.encode,
        triton="encode",
        multiplies=True,
    ),
    Op(
        "encode_bounded(Tensor x, Tensor W_enc, Tensor b_enc, Tensor b_dec, Tensor[] packed, Tensor? threshold, "
        "str activation, int k, str precision, int budget, int capacity) -> (Tensor, Tensor, Tensor, Tensor)",
        BoundedEncodeCall,
        _encode_bounded_shapes,
        checked,
        triton="encode",
        multiplies=True,
    ),
    Op(
        "reconstruct(Tensor x, Tensor W_enc, Tensor b_enc, Tensor b_dec, Tensor[] packed, Tensor? threshold, "
        "Tensor W_dec, str activation, int k, str precision, int budget) -> (Tensor, Tensor, Tensor, Tensor)",
        ReconstructCall,
        _reconstruct_shapes,
        checked,
        triton="reconstruct",
        multiplies=True,
    ),
    Op(
        "encode_backward(Tensor grad_values, Tensor indices, Tensor indptr, Tensor x, Tensor W_enc, Tensor b_dec, "
        "bool with_x=True) -> (Tensor, Tensor, Tensor, Tensor)",
        EncodeBackwardCall,
        _encode_backward_shapes,
        sparse,
        cpu.backward,
        triton="backward",
        multiplies=True,
    ),
    Op(
        "decode(Tensor values, Tensor indices, Tensor indptr, Tensor W_dec, Tensor b_dec) -> Tensor",
        DecodeCall,
        _decode_shapes,
        sparse,
        cpu.decode,
        triton="decode",
    ),
    Op(
        "decode_backward(Tensor grad_y, Tensor values, Tensor indices, Tensor indptr, Tensor W_dec, int budget) "
        "-> (Tensor, Tensor, Tensor)",
        DecodeBackwardCall,
        _decode_backward_shapes,
        sparse,
        cpu.backward,
        triton="backward",
    ),
    Op(
        "decode_masked(Tensor values, Tensor indices, Tensor indptr, Tensor keep, Tensor W_dec, Tensor b_dec, "
        "Tensor? class_ids) -> Tensor",
        MaskedDecodeCall,
        _decode_shapes,
        checked,
        cpu.decode,
        triton="decode",
    ),
    Op(
        "decode_sweep(Tensor values, Tensor indices, Tensor indptr, Tensor rank, int[] ks, Tensor W_dec, Tensor b_dec, "
        "Tensor? class_ids) -> (Tensor, Tensor)",
        SweepCall,
        _decode_sweep_shapes,
        checked,
        cpu.decode,
        triton="sweep",
    ),
    Op(
        "latent_stats_(Tensor values, Tensor indices, Tensor indptr, int tokens_per_image, float threshold, "
        "Tensor? labels, int first_image, Tensor(a!) sums, Tensor(b!) counts, Tensor(c!) image_counts, "
        "Tensor(d!) max_values, Tensor(e!) max_position, Tensor(f!)? class_counts) -> ()",
        StatsCall,
        _nothing,
        checked,
        cpu.stats,
        triton="stats",
    ),
    Op(
        "pool_tokens(Tensor values, Tensor indices, Tensor indptr, int latents, int tokens_per_image, int budget) "
        "-> (Tensor, Tensor, Tensor)",
        PoolCall,
        _pool_tokens_shapes,
        sparse,
        cpu.stats,
    ),
    Op(
        "sae_step(Tensor x, Tensor W_enc, Tensor b_enc, Tensor W_dec, Tensor b_dec, Tensor? dead, float l1, "
        "float cls_weight, int tokens_per_image, int budget, str precision='exact', Tensor[]? packed=None, "
        "float share=-1., str path='') -> Tensor[]",
        StepCall,
        _sae_step_shapes,
        training,
        cpu.step,
        triton="step",
        multiplies=True,
    ),
    Op(
        "adam_step_(Tensor(a!) p, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, int step, float lr, "
        "float beta1, float beta2, float eps, bool unit_rows, int seed=0) -> ()",
        AdamCall,
        _nothing,
        training,
        cpu.adam,
        triton="adam",
    ),
)
"""A row for each op; what is in it is all that chooses who serves a call, and all that `describe` tells of that."""

_library = torch.library.Library("patchsae", "DEF")
for _op in OPS:
    define(_library, _op)


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
    kept = sparse.per_entry(keep, indices, indptr, class_ids)
    grads = torch.ops.patchsae.decode_backward(
        grad_y.contiguous(), values * kept, indices, indptr, W_dec, BACKWARD_BUDGET
    )
    grad_values, grad_W, grad_b = grads
    return grad_values * kept, None, None, None, grad_W, grad_b, None


for _name in ("encode_backward", "decode_backward"):
    torch.library.register_autograd(f"patchsae::{_name}", no_second_derivative, lib=_library)
torch.library.register_autograd("patchsae::encode", _encode_backward, setup_context=_encode_setup, lib=_library)
torch.library.register_autograd("patchsae::decode", _decode_backward, setup_context=_decode_setup, lib=_library)
torch.library.register_autograd(
    "patchsae::decode_masked", _decode_masked_backward, setup_context=_decode_masked_setup, lib=_library
)


def implementations() -> dict[str, str]:
    """What serves each op on this machine's CPU and, where there is one, GPU."""
    table = {}
    for op in OPS:
        servers = op.servers()
        table[op.name] = _words(servers.get("CPU")) + ("" if "CPU" in servers else _why_no_extension())
        if torch.cuda.is_available():
            table[op.name] += "; on the GPU " + _words(servers.get("CUDA"))
    return table


def _words(server: Server | None) -> str:
    return "reference (PyTorch)" if server is None else server.words


def _why_no_extension() -> str:
    return "" if cpu.available or interpreted else f": the extension is not here ({cpu.missing})"
