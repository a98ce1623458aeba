"""Adam on a GPU: one pass over parameter, gradient and moments, nothing beside them.

What bounds it: memory. 28 bytes an element (gradient read, the other three read and written): 1.06 GB for one of the
paper's matrices, 0.22 ms at 4.8 TB/s, 0.44 ms a step. With moments in bfloat16 it is 20 bytes, 0.32 ms a step. The two
sums of a dictionary row (the gradient's component along it, its new norm) stay in the registers of the one program that
has the row; so do the norms of an encoder row that is packed anew in the same pass, which adds 2 bytes an element where
a pass of its own (`patchsae_kernels.triton.pack`) moves 6: 0.03 ms instead of 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels import reference
from patchsae_kernels.calls import AdamCall
from patchsae_kernels.triton.launch import launch
from patchsae_kernels.triton.pack import Packed, norm_factors, power_of_two, round_rows

WIDEST = 8192
"""D up to which a row and its three companions fit the registers of a program."""
BLOCK = 1024
"""Elements of a program where rows do not matter: 8 a thread, 16 KB in flight."""


@dataclass(frozen=True)
class Extras:
    """What a pass may do beside Adam.

    Attributes:
        control: int32 ``[4]`` on the device, read instead of the arguments of the call, which a captured graph would
            repeat: the bits of the two `step_constants`, whether to do anything at all, the mixed seed.
        packed: of an encoder whose rows are the parameter, brought up to date in place but for its biases.
    """

    control: Tensor | None = None
    packed: Packed | None = None


def serves(call: AdamCall, whole_rows: bool = False) -> bool:
    """In place: float32 of one or two dimensions whose rows, or without ``unit_rows`` whose columns, are contiguous.

    The moments may be bfloat16. With ``unit_rows``, or ``whole_rows`` to be packed as well, a row must fit a program.
    """
    kinds = {call.exp_avg.dtype, call.exp_avg_sq.dtype}
    if not call.p.dtype == call.grad.dtype == torch.float32 or kinds not in ({torch.float32}, {torch.bfloat16}):
        return False
    state = _as_matrices(call)
    fits = state[0].shape[1] <= WIDEST or not (call.unit_rows or whole_rows)
    return all(map(_has_rows, (state[0], *state[2:]))) and fits


def adam_step_(call: AdamCall) -> None:
    """See `patchsae_kernels.reference.adam_step_`. Reads nothing back.

    A gradient in another layout than the parameter's is copied first.
    """
    adam_with(Extras(), call)


def adam_with(extras: Extras, call: AdamCall) -> None:
    """`adam_step_` with `Extras`."""
    p, grad, *moments = _as_matrices(call)
    tensors = [p, grad if _has_rows(grad) else grad.contiguous(), *moments]
    whole_rows = call.unit_rows or extras.packed is not None
    if not whole_rows and all(t.is_contiguous() for t in tensors):
        tensors = [t.view(1, -1) for t in tensors]
    beta1, beta2 = call.beta1, call.beta2
    constants = (1 - beta1, beta2, 1 - beta2, call.eps, *step_constants(call.step, call.lr, beta1, beta2))
    _update(tensors, constants, signed(reference.mixed(call.seed)), call.unit_rows, whole_rows, extras)
    for changed in call.state:  # written behind autograd's back; prepared weights go by the version
        torch.autograd.graph.increment_version(changed)


def _as_matrices(call: AdamCall) -> list[Tensor]:
    """Parameter, gradient and moments; turned where the rows of what is changed are not contiguous, but may be."""
    matrices = [_as_matrix(t) for t in (call.p, call.grad, call.exp_avg, call.exp_avg_sq)]
    by_row = call.unit_rows or all(_has_rows(_as_matrix(t)) for t in call.state)
    return matrices if by_row else [t.t() for t in matrices]


def step_constants(step: int, lr: float, beta1: float, beta2: float) -> tuple[float, float]:
    """The correction of the second moment's root, and the rate with that of the first."""
    return (1 - beta2**step) ** 0.5, lr / (1 - beta1**step)


def control_of(step: int, lr: float, beta1: float, beta2: float, seed: int) -> Tensor:
    """`Extras.control` of a call, on the CPU."""
    floats = torch.tensor(step_constants(step, lr, beta1, beta2), dtype=torch.float32, device="cpu")
    whole = torch.tensor([1, signed(reference.mixed(seed))], dtype=torch.int32, device="cpu")
    return torch.cat([floats.view(torch.int32), whole])


def signed(bits: int) -> int:
    """The int32 of 32 bits."""
    return bits - 2**32 if bits >= 2**31 else bits


def _update(
    tensors: list[Tensor],
    constants: tuple[float, ...],
    seed: int,
    unit_rows: bool,
    whole_rows: bool,
    extras: Extras,
) -> None:
    rows, width = tensors[0].shape
    stochastic = tensors[2].dtype == torch.bfloat16
    if stochastic:  # the kernel rounds bits
        tensors = [*tensors[:2], *(t.view(torch.int16) for t in tensors[2:])]
    low = terms = largest = tau = None
    padded, latents, scaled = 0, 0, False
    if extras.packed is not None:
        packed = extras.packed
        packed.tau.copy_(_if_it_runs(extras.control, packed.next_tau, packed.tau))
        low, terms, tau, largest = packed.low, packed.terms, packed.tau, packed.terms.new_empty(rows)
        padded, latents, scaled = low.shape[1], low.shape[0], low.dtype == torch.float16
    block = max(16, triton.next_power_of_2(max(width, padded))) if whole_rows else BLOCK
    blocks = 1 if whole_rows else triton.cdiv(width, block)
    launch(
        adam_kernel,
        (rows * blocks,),
        *tensors,
        *(t.stride(0) for t in tensors),
        width,
        blocks,
        *constants,
        *(extras.control, seed),
        *(low, terms, tau, largest, latents, *norm_factors(width)),
        BLOCK=block,
        UNIT_ROWS=unit_rows,
        STOCHASTIC=stochastic,
        PADDED=padded,
        SCALED=scaled,
        num_warps=min(16, max(1, block // 256)),
        num_stages=1,
    )
    if scaled and largest is not None and extras.packed is not None:
        packed = extras.packed
        packed.next_tau.copy_(_if_it_runs(extras.control, power_of_two(largest), packed.next_tau))


def _if_it_runs(control: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if control is None else torch.where(control[2] != 0, new, old)


@triton.jit(do_not_specialize=["seed"])  # another value in every step
def adam_kernel(
    p,
    grad,
    exp_avg,
    exp_avg_sq,
    p_stride,
    grad_stride,
    exp_avg_stride,
    exp_avg_sq_stride,
    width,
    blocks,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    correction2,
    rate,
    control,
    seed,
    low,
    terms,
    tau,
    largest,
    padded_latents,
    slack,
    gamma,
    BLOCK: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    PADDED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One program is a row, or a block of one where rows do not matter."""
    if control is not None:
        if tl.load(control + 2) == 0:
            return
        correction2 = tl.load(control).to(tl.float32, bitcast=True)
        rate = tl.load(control + 1).to(tl.float32, bitcast=True)
        seed = tl.load(control + 3)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(p + row * p_stride + column, mask=inside, other=0.0)
    g = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0)
    m = tl.load(exp_avg + row * exp_avg_stride + column, mask=inside, other=0)
    v = tl.load(exp_avg_sq + row * exp_avg_sq_stride + column, mask=inside, other=0)
    if STOCHASTIC:
        m = _widened(m)
        v = _widened(v)
    if UNIT_ROWS:
        g -= tl.sum(g * value, 0) * value
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    change = tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), correction2) + eps)
    value -= rate * tl.where(inside, change, 0.0)  # with eps = 0 it is 0 / 0 outside
    if UNIT_ROWS:
        value = tl.div_rn(value, tl.sqrt_rn(tl.sum(value * value, 0)))
    if STOCHASTIC:
        noise = _mixed((row * width + column).to(tl.uint32) ^ seed.to(tl.uint32, bitcast=True))
        m = _rounded(m, noise & 0xFFFF)
        v = _rounded(v, noise >> 16)
    tl.store(p + row * p_stride + column, value, mask=inside)
    tl.store(exp_avg + row * exp_avg_stride + column, m, mask=inside)
    tl.store(exp_avg_sq + row * exp_avg_sq_stride + column, v, mask=inside)
    if low is not None:
        tl.store(largest + row, tl.max(tl.abs(tl.where(inside, value, 0.0)), 0))
        scaled = tl.where(inside, value, 0.0) * tl.load(tau)
        rounded, norm, residual = round_rows(scaled, low.dtype.element_ty, slack, gamma, SCALED, 0)
        tl.store(low + row * PADDED + column, rounded, mask=column < PADDED)
        tl.store(terms + row, norm)
        tl.store(terms + padded_latents + row, residual)


@triton.jit
def _widened(bits):
    """The float32 of the upper half of its bits."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _rounded(x, noise):
    """The bits of a bfloat16: up with the probability of what is cut off."""
    return ((x.to(tl.uint32, bitcast=True) + noise) >> 16).to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def _mixed(x):
    """Each bit of the result depends on all of x; the constants are those of `reference.mixed`."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


def _as_matrix(t: Tensor) -> Tensor:
    return t if t.dim() == 2 else t.reshape(1, -1) if t.is_contiguous() else t.unsqueeze(0)


def _has_rows(t: Tensor) -> bool:
    """A matrix with contiguous rows, no two of which share memory as those of an expanded tensor do."""
    return t.dim() == 2 and (t.shape[1] <= 1 or t.stride(1) == 1) and (t.shape[0] <= 1 or t.stride(0) >= t.shape[1])
