"""The optimiser's kernel in the interpreter, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchsae_kernels import reference_training
from patchsae_kernels.triton import adam
from patchsae_kernels.triton.launch import record

shapes = st.tuples(st.integers(1, 12), st.integers(1, 40), st.sampled_from(["rows", "columns", "sliced"]))


def laid_out(shape, layout, g):
    rows, columns = shape
    if layout == "rows":
        return torch.randn(rows, columns, generator=g)
    if layout == "columns":
        return torch.randn(columns, rows, generator=g).t()
    return torch.randn(rows, columns + 3, generator=g)[:, 1 : columns + 1]


@settings(max_examples=40, deadline=None)
@given(shapes, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_it_is_the_reference_in_float64_for_any_strides(shape, unit_rows, same_layout, seed):
    g = torch.Generator().manual_seed(seed)
    *size, layout = shape
    p, m, v = (laid_out(size, layout, g) for _ in range(3))
    v.abs_()
    grad = laid_out(size, layout if same_layout else "rows", g)
    exact = [t.double() for t in (p, grad, m, v)]
    settings = (3, 0.01, 0.9, 0.999, 1e-8, unit_rows)
    kept, versions = grad.clone(), [t._version for t in (p, m, v)]
    adam.adam_step_(p, grad, m, v, *settings)
    reference_training.adam_step_(*exact, *settings)
    for ours, wanted in zip((p, m, v), (exact[0], exact[2], exact[3]), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(grad, kept)
    assert all(t._version > before for t, before in zip((p, m, v), versions, strict=True))


@pytest.mark.parametrize("width", [1, 15, 16, 300])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_rows_end_with_unit_norm(width, eps):
    g = torch.Generator().manual_seed(width)
    p, grad, m, v = (torch.randn(6, width, generator=g) for _ in range(4))
    v = v.square() + 0.1
    exact = [t.double() for t in (p, grad, m, v)]
    adam.adam_step_(p, grad, m, v, 7, 0.01, 0.8, 0.99, eps, True)
    reference_training.adam_step_(*exact, 7, 0.01, 0.8, 0.99, eps, True)
    torch.testing.assert_close(p.double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.norm(dim=1), torch.ones(6), rtol=1e-6, atol=1e-6)


def test_without_eps_nothing_outside_of_a_vector_is_touched():
    p, m, v = torch.ones(5), torch.zeros(5), torch.zeros(5)
    adam.adam_step_(p, torch.ones(5), m, v, 1, 0.1, 0.9, 0.999, 0.0, False)
    torch.testing.assert_close(p, torch.full((5,), 0.9))


def test_a_vector_of_several_programs(monkeypatch):
    monkeypatch.setattr(adam, "BLOCK", 16)
    g = torch.Generator().manual_seed(0)
    p, grad, m, v = (torch.randn(45, generator=g) for _ in range(4))
    v.abs_()
    exact = [t.double() for t in (p, grad, m, v)]
    adam.adam_step_(p, grad, m, v, 2, 0.1, 0.9, 0.999, 1e-8, False)
    reference_training.adam_step_(*exact, 2, 0.1, 0.9, 0.999, 1e-8, False)
    torch.testing.assert_close(p.double(), exact[0], rtol=1e-4, atol=1e-5)


def test_a_sliced_parameter_leaves_the_rest_alone():
    whole = torch.ones(6, 40)
    p = whole[:, 3:20]
    adam.adam_step_(p, torch.ones(6, 17), torch.zeros(6, 17), torch.zeros(6, 17), 1, 0.1, 0.9, 0.999, 1e-8, False)
    assert (whole[:, :3] == 1).all()
    assert (whole[:, 20:] == 1).all()
    torch.testing.assert_close(p, torch.full((6, 17), 0.9))


def test_float64_and_bfloat16_are_the_reference_s():
    for dtype in (torch.float64, torch.bfloat16):
        tensors = [torch.ones(3, 4, dtype=dtype) for _ in range(4)]
        expected = [t.clone() for t in tensors]
        adam.adam_step_(*tensors, 1, 0.1, 0.9, 0.999, 1e-8, True)
        reference_training.adam_step_(*expected, 1, 0.1, 0.9, 0.999, 1e-8, True)
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_the_host_code_touches_no_data():
    with record() as launches:
        rows = [torch.empty(50, 40, device="meta") for _ in range(4)]
        adam.adam_step_(*(t.t() for t in rows), 1, 0.1, 0.9, 0.999, 1e-8, False)
        adam.adam_step_(*rows, 1, 0.1, 0.9, 0.999, 1e-8, True)
    assert [launch.grid for launch in launches] == [(2,), (50,)]
