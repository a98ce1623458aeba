"""The metrics of a step against their definitions on dense tensors."""

from __future__ import annotations

import math

import pytest
import torch

import patchsae_kernels as pk
from patchsae.training.metrics import explained_variance, record


def test_the_mean_explains_nothing_and_the_truth_everything() -> None:
    residual = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 7
    mean = residual.flatten(0, 1).mean(dim=0)
    assert explained_variance(residual, (residual - mean).square().sum().item()) == pytest.approx(0, abs=1e-6)
    assert explained_variance(residual, 0.0) == 1.0
    assert explained_variance(residual, residual.square().sum().item()) < -1


def test_a_batch_without_variance_has_no_explained_variance() -> None:
    assert math.isnan(explained_variance(torch.ones(2, 3, 4), 1.0))


def test_record_takes_the_terms_as_they_are() -> None:
    values = {"total": 6.0, "mse": 1.0, "l1": 2.0, "ghost": 3.0, "l0": 4.5, "squared_error": 0.0}
    terms = pk.StepTerms(**{k: torch.tensor(v) for k, v in values.items()}, fired=torch.tensor([True, False]))
    residual, dead = torch.randn(2, 3, 4), torch.tensor([True, False, False, True])
    row = record(terms, residual, dead, step=7, images=14, l1=0.5, lr=0.1, images_per_s=3.0)
    assert {name: row[name] for name in ("total", "mse", "l1", "ghost", "l0")} == {
        name: value for name, value in values.items() if name != "squared_error"
    }
    assert row["l1_norm"] == 4.0
    assert row["dead"] == 0.5
    assert row["explained_variance"] == 1.0
    assert (row["step"], row["images"], row["lr"], row["images_per_s"]) == (7, 14, 0.1, 3.0)
    free = record(terms, residual, dead, step=7, images=14, l1=0.0, lr=0.1, images_per_s=3.0)
    assert math.isnan(free["l1_norm"])
