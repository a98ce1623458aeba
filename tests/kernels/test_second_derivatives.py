"""A derivative of a gradient is an error: autograd would take a gradient that no graph records for a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import patchsae_kernels as pk
from tests.kernels.cases import Case, make_case

CASE = make_case(0, 6, 8, 20)
Z = CASE.encode()


def leaves() -> Case:
    return Case(*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in CASE))


def decode(c: Case, z: pk.SparseLatents = Z) -> Tensor:
    return pk.decode(z, c.W_dec, c.b_dec)


def decode_masked(c: Case) -> Tensor:
    return pk.decode_masked(Z, torch.arange(20) % 3 > 0, c.W_dec, c.b_dec)


def of_values(c: Case) -> Tensor:
    """Linear in the values, whose gradient holds W_dec alone."""
    return pk.decode(Z.with_values(c.x.sum() * torch.ones(Z.nnz)), c.W_dec, c.b_dec)


def encode_jumprelu(c: Case) -> Tensor:
    theta = torch.full((20,), 0.1)
    return pk.encode_jumprelu(c.x, c.W_enc, c.b_enc, c.b_dec, theta, bandwidth=0.2).latents.values


def reconstruct_dead(c: Case) -> Tensor:
    return pk.reconstruct_dead(c.x, c._asdict(), torch.arange(20) % 2 == 0, k=3)


FUNCTIONS: dict[str, Callable[[Case], Tensor]] = {
    "encode": lambda c: c.encode().values,
    "encode topk": lambda c: c.encode(activation="topk", k=3).values,
    "encode batchtopk": lambda c: c.encode(activation="batchtopk", k=3).values,
    "encode jumprelu": lambda c: c.encode(activation="jumprelu", threshold=torch.full((20,), 0.1)).values,
    "encode_jumprelu": encode_jumprelu,
    "decode": decode,
    "decode_masked": decode_masked,
    "decode of values": of_values,
    "decode of encode": lambda c: decode(c, c.encode()),
    "reconstruct_dead": reconstruct_dead,
}


@pytest.mark.parametrize("curved", [False, True], ids=["a sum", "a sum of squares"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_second_derivative_is_an_error(function: str, curved: bool) -> None:
    """Of a sum as well, where no cotangent is differentiable, and where the gradient is a part of a loss."""
    c = leaves()
    y = FUNCTIONS[function](c)
    loss = (y.square() if curved else y).sum()
    grads = [g for g in torch.autograd.grad(loss, list(c), create_graph=True, allow_unused=True) if g is not None]
    penalised = loss + sum(g.square().sum() for g in grads)
    with pytest.raises(RuntimeError, match="differentiable once"):
        penalised.backward()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_create_graph_alone_changes_no_gradient(function: str) -> None:
    found = []
    for create_graph in (False, True):
        c = leaves()
        loss = FUNCTIONS[function](c).square().sum()
        grads = torch.autograd.grad(loss, list(c), create_graph=create_graph, allow_unused=True)
        found.append([None if g is None else g.detach() for g in grads])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
