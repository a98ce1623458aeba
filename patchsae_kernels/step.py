"""The public ops of training: `sae_step` (loss and gradients) and `adam_step` (projection, Adam, unit rows).

Gradients lie in memory between the two, for those who clip them, add them up over micro-batches or over devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from patchsae_kernels import checks, plain
from patchsae_kernels.calls import AdamCall
from patchsae_kernels.prepare import PreparedWeights
from patchsae_kernels.servers import has_triton

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


class StepTerms(NamedTuple):
    """Terms of the released loss over one batch, scalars in the dtype of x, and what the counters need.

    Attributes:
        total: mse + l1 + ghost.
        mse: mean over tokens and D of the squared error over the token's norm; CLS weight included.
        l1: the sparsity term; coefficient included.
        ghost: the dead latents' term; 0 without dead latents.
        l0: mean number of active latents per token.
        squared_error: plain sum of (z_hat - z)^2 over everything.
        fired: bool ``[S]``, latents active on any token.
    """

    total: Tensor
    mse: Tensor
    l1: Tensor
    ghost: Tensor
    l0: Tensor
    squared_error: Tensor
    fired: Tensor


@dataclass
class StepChoice:
    """Dense products or sparse gathers on a GPU, chosen from the running L0 of a run, with hysteresis.

    Give the same one to every `sae_step` of a run. A step without one samples the share of active latents and decides
    anew; both kinds of step agree to rounding. A CPU decides for itself.

    Attributes:
        share: running mean of L0 / S, float32 ``[]`` on the device; None before the first step.
        dense: what the last step was; None before the second one.
    """

    share: Tensor | None = None
    dense: bool | None = None

    def next(self, precision: str) -> tuple[float, str]:
        """The share (-1: unknown) and the path ("" : the op's own choice) of the next step. Reads the device once."""
        if self.share is None:
            return -1.0, ""
        from patchsae_kernels.triton import tuning

        share = float(self.share)
        self.dense = tuning.next_is_dense(share, self.dense, precision)
        return share, "dense" if self.dense else "sparse"

    def update(self, l0: Tensor, latents: int) -> None:
        """Take the mean L0 of a step into the running one. Nothing is read."""
        latest = l0 / latents
        self.share = latest if self.share is None else torch.lerp(self.share, latest, 0.25)


@dataclass
class AdamState:
    """Moments of Adam by parameter name, in the parameters' own layout; ``step`` counts the steps taken."""

    step: int
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]


def sae_step(
    x: Tensor,
    params: Mapping[str, Tensor],
    *,
    l1: float,
    dead: Tensor | None = None,
    ghost: bool = True,
    cls_weight: float = 1.0,
    precision: str = "exact",
    choice: StepChoice | None = None,
    prepared: PreparedWeights | None = None,
    budget_mb: float = 256,
) -> tuple[StepTerms, dict[str, Tensor]]:
    """Forward and backward of the released loss of a ReLU SAE, without an autograd graph.

    mean (z_hat - z)^2 / |z|  +  l1 * mean_tokens sum_s |h_s|  +  ghost term over the dead latents: the formula stands
    at the top of `patchsae_kernels.reference.training`.

    On a CPU the bits are the same for any number of threads while few latents are active, and but for the ghost term
    for any ``budget_mb``. Where many are, as at the start of a training, the step takes the dense products of PyTorch's
    library: the same number of threads and the same ``budget_mb`` give the same bits there, others the same numbers to
    rounding.

    Args:
        x: ``[B, T, D]`` float32, token 0 of every image being CLS; or ``[N, D]``, tokens that are all alike.
        params: ``W_enc [D, S]``, ``b_enc [S]``, ``W_dec [S, D]``, ``b_dec [D]``, float32.
        l1: coefficient of the sparsity term.
        dead: bool ``[S]``, the latents that get the ghost term.
        cls_weight: factor on the squared error of CLS tokens.
        precision: ``"exact"`` or ``"fp32"``: as of encode, see there, for all products; ``"bf16"``: both operands of
            every product are rounded to bfloat16, sums stay float32 (on a CPU that is the slow reference). Active sets
            then differ in a few entries, which moved W_enc's gradient by 5 % where it was measured; with the ghost
            term, which divides by squares of differences, all gradients by 20 to 30 %.
        choice: of a run, see `StepChoice`.
        prepared: of the same encoder, whose packed copies are used on a GPU, see `adam_step`.
        budget_mb: the most memory for dense pre-activations and their temporaries at any time, in MB.

    Returns:
        The terms, and the gradient of ``total`` for each parameter in the parameter's own layout.

    Raises:
        ValueError, TypeError: an argument does not fit, or x holds a NaN or an infinity.
    """
    W_enc, b_enc, *_ = weights = _checked(x, params, dead, precision)
    index = None
    if ghost and dead is not None:
        found = dead.nonzero().squeeze(1)  # on a GPU it reads their number
        index = found if found.shape[0] else None
    if not has_triton(x.device):
        choice = prepared = None
    share, path = choice.next(precision) if choice else (-1.0, "")
    packed = None if prepared is None or path == "dense" else _of_these(prepared, W_enc, b_enc).packed(precision)
    with torch.no_grad():
        *terms, dW_enc, db_enc, dW_dec, db_dec = torch.ops.patchsae.sae_step(
            x.detach().reshape(-1, x.shape[-1]),
            *(w.detach() for w in weights),
            index,
            l1,
            cls_weight,
            x.shape[1] if x.dim() == 3 else 0,
            checks.budget_bytes(budget_mb),
            precision,
            packed,
            share,
            path,
        )
    found_terms = StepTerms(*terms)
    if choice is not None:
        choice.update(found_terms.l0, W_enc.shape[1])
    return found_terms, {"W_enc": dW_enc, "b_enc": db_enc, "W_dec": dW_dec, "b_dec": db_dec}


def adam_init(params: Mapping[str, Tensor], moments: torch.dtype = torch.float32) -> AdamState:
    """Zero moments for the parameters of a SAE and whatever else is trained with them; of matrices in ``moments``.

    bfloat16 saves half of their memory. They are rounded stochastically, so that small changes are not lost.
    """
    if moments not in (torch.float32, torch.bfloat16):
        raise TypeError(f"moments is {moments}; expected torch.float32 or torch.bfloat16")

    def zeros() -> dict[str, Tensor]:
        found = {name: parameter(params, name).detach() for name in _names(params)}
        low = moments == torch.bfloat16
        return {n: torch.zeros_like(p, dtype=moments if low and p.dim() == 2 else p.dtype) for n, p in found.items()}

    return AdamState(0, zeros(), zeros())


def adam_step(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: AdamState,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    unit_norm: bool = True,
    prepared: PreparedWeights | None = None,
) -> None:
    """One optimiser step in place on params and state (Kingma & Ba 2015, as torch.optim.Adam).

    ``params``: W_enc, b_enc, W_dec, b_dec and any others that are trained; ``grads`` has the same names.

    ``unit_norm``: W_dec's gradient first loses its component along each dictionary row, and the rows are rescaled to
    unit norm at the end. The released code rescales at the start of the next step instead: the same sequence of losses.

    ``prepared``: of these W_enc and b_enc; its packed copies are brought up to date, on a GPU in the same pass over
    W_enc. Without it they are made anew when they are next asked for, which also checks that the weights are finite.
    """
    for name in _names(params):
        _check_update(name, *_of_one(params, grads, state, name))
    state.step += 1
    settings = state.step, lr, betas[0], betas[1], eps
    with torch.no_grad():
        fused = prepared is not None and _adam_and_pack(params, grads, state, prepared, settings)
        for number, name in enumerate(names := _names(params)):
            if fused and name == "W_enc":
                continue
            torch.ops.patchsae.adam_step_(
                *_of_one(params, grads, state, name),
                *settings,
                unit_norm and name == "W_dec",
                len(names) * state.step + number,
            )
    if fused and prepared is not None:
        prepared.adopt()


def _adam_and_pack(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: AdamState,
    prepared: PreparedWeights,
    settings: tuple[int, float, float, float, float],
) -> bool:
    """Adam on W_enc and new rows in ``prepared`` in one pass, where that is possible."""
    W_enc = parameter(params, "W_enc")
    packed = _of_these(prepared, W_enc, parameter(params, "b_enc"), current=False).packed_in_place()
    if packed is None:
        return False
    names = _names(params)
    seed = len(names) * settings[0] + names.index("W_enc")
    call = AdamCall(*(*_of_one(params, grads, state, "W_enc"), *settings), False, seed)
    from patchsae_kernels.triton import adam
    from patchsae_kernels.triton.pack import Packed

    if not adam.serves(call, whole_rows=True):
        return False
    with torch.cuda.device_of(W_enc):
        adam.adam_with(adam.Extras(packed=Packed(*packed)), call)
    return True


def _names(params: Mapping[str, Tensor]) -> tuple[str, ...]:
    return *PARAMETERS, *(name for name in params if name not in PARAMETERS)


def _of_one(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: AdamState, name: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        parameter(params, name).detach(),
        parameter(grads, name, "grads"),
        parameter(state.exp_avg, name, "state.exp_avg"),
        parameter(state.exp_avg_sq, name, "state.exp_avg_sq"),
    )


def _check_update(name: str, p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    """A parameter, with memory of its own for every element, and what goes with it, in its shape and on its device."""
    checks.dtype(name, p, checks.FLOATS)
    held = {f"grads[{name!r}]": grad, f"state.exp_avg[{name!r}]": exp_avg, f"state.exp_avg_sq[{name!r}]": exp_avg_sq}
    for what, other in held.items():
        checks.shape(what, other, tuple(p.shape), f"the shape of {name}")
        checks.dtype(what, other, (p.dtype,) if other is grad else (p.dtype, torch.bfloat16))
    checks.same_device(**{name: p}, **held)
    for what, written in {name: p, **held}.items():
        if written is not grad and any(s == 0 and n > 1 for s, n in zip(written.stride(), written.shape, strict=True)):
            raise ValueError(f"{what} is an expanded tensor, whose elements share memory; expected a contiguous one")


def _checked(
    x: Tensor, params: Mapping[str, Tensor], dead: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The parameters in the order of `PARAMETERS`, after everything has been looked at."""
    W_enc, b_enc, W_dec, b_dec = (parameter(params, name) for name in PARAMETERS)
    checks.encoder_weights(W_enc, b_enc, b_dec)
    checks.shape("W_dec", W_dec, (W_enc.shape[1], W_enc.shape[0]), "[S, D]")
    checks.dtype("W_dec", W_dec, (W_enc.dtype,))
    plain.tensor("x", x, f"[B, T, D] or [N, D] with D = {W_enc.shape[0]}")
    if x.dim() not in (2, 3) or x.shape[-1] != W_enc.shape[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, T, D] or [N, D] with D = {W_enc.shape[0]}")
    checks.dtype("x", x, (W_enc.dtype,))
    checks.option("precision", precision, checks.PRECISIONS)
    if dead is not None:
        checks.shape("dead", dead, (W_enc.shape[1],), "[S]")
        checks.dtype("dead", dead, (torch.bool,))
    checks.same_device(x=x, W_enc=W_enc, W_dec=W_dec, dead=dead)
    return W_enc, b_enc, W_dec, b_dec


def _of_these(prepared: PreparedWeights, W_enc: Tensor, b_enc: Tensor, current: bool = True) -> PreparedWeights:
    """``prepared``, which must hold these tensors; with ``current`` it is brought up to date."""
    same = all(a.data_ptr() == b.data_ptr() for a, b in ((prepared.W_enc, W_enc), (prepared.b_enc, b_enc)))
    if not same or prepared.W_enc.stride() != W_enc.stride():
        raise ValueError("prepared was made of other tensors; expected the W_enc and b_enc of params")
    if current:
        prepared.refresh_if_stale()
    return prepared


def parameter(params: Mapping[str, Tensor], name: str, what: str = "params") -> Tensor:
    """``params[name]``, a tensor, or an error that says what is expected."""
    if name not in params:
        raise KeyError(f"{what} has no {name!r}; expected {', '.join(PARAMETERS)} and got {', '.join(params)}")
    plain.tensor(name if what == "params" else f"{what}[{name!r}]", params[name])
    return params[name]
