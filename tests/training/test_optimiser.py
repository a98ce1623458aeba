"""The optimiser step of training against torch.optim.Adam on the projected gradient with rows rescaled."""

from __future__ import annotations

import pytest
import torch

import patchsae_kernels as pk
from patchsae.training.init import start_sae

from .dense_loss import NAMES


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_torch_adam_on_the_projected_gradient(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sae = start_sae(torch.randn(3, 4, 6, generator=generator), expansion=5, seed=1).to(dtype)
    params = sae.parameters_by_name()
    theirs = {name: params[name].detach().double().clone().requires_grad_() for name in NAMES}
    optimizer = torch.optim.Adam(list(theirs.values()), lr=0.0)
    state = pk.adam_init(params)
    for step in range(8):
        lr = 0.01 * (step + 1)
        grads = {name: torch.randn(params[name].shape, generator=generator).to(dtype) for name in NAMES}
        pk.adam_step(params, grads, state, lr=lr)
        optimizer.param_groups[0]["lr"] = lr
        for name in NAMES:
            theirs[name].grad = grads[name].double()
        rows = theirs["W_dec"].detach()
        theirs["W_dec"].grad -= (grads["W_dec"].double() * rows).sum(dim=1, keepdim=True) * rows
        optimizer.step()
        rows /= rows.norm(dim=1, keepdim=True)
        for name in NAMES:
            torch.testing.assert_close(params[name].double(), theirs[name], rtol=0, atol=tolerance, msg=name)
    assert state.step == 8
    assert params["W_enc"].stride() == (1, 6)
