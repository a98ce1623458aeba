"""The metrics of a step against their definitions on dense tensors."""

from __future__ import annotations

import math

import pytest
import torch

import patchsae_kernels as pk
from patchsae.parallel.base import Alone
from patchsae.training.metrics import explained_variance, normalised_squared_error, record, total_norm, total_variance


def test_the_mean_explains_nothing_and_the_truth_everything() -> None:
    residual = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 7
    variance = total_variance(residual, Alone())
    mean = residual.flatten(0, 1).mean(dim=0)
    assert explained_variance((residual - mean).square().sum().item(), variance) == pytest.approx(0, abs=1e-6)
    assert explained_variance(0.0, variance) == 1.0
    assert explained_variance(residual.square().sum().item(), variance) < -1


def test_a_batch_without_variance_has_no_explained_variance() -> None:
    assert math.isnan(explained_variance(1.0, total_variance(torch.ones(2, 3, 4), Alone())))


def test_reconstructing_nothing_has_an_error_of_1_whatever_the_scale() -> None:
    residual = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 7
    norm = total_norm(residual, Alone())
    assert normalised_squared_error(residual.square().sum().item(), norm) == pytest.approx(1)
    assert normalised_squared_error(9 * 2.5, total_norm(3 * residual, Alone())) == pytest.approx(2.5 / norm)
    assert math.isnan(normalised_squared_error(1.0, total_norm(torch.zeros(2, 3, 4), Alone())))


def test_record_takes_the_terms_as_they_are() -> None:
    values = {"total": 6.0, "mse": 1.0, "l1": 2.0, "ghost": 3.0, "l0": 4.5, "squared_error": 4.0}
    terms = pk.StepTerms(**{k: torch.tensor(v) for k, v in values.items()}, fired=torch.tensor([True, False]))
    row = record(terms, 16.0, 32.0, dead=0.5, step=7, images=14, l1=0.5, lr=0.1)
    assert {name: row[name] for name in ("total", "mse", "l1", "ghost", "l0")} == {
        name: value for name, value in values.items() if name != "squared_error"
    }
    assert row["l1_norm"] == 4.0
    assert row["explained_variance"] == 0.75
    assert row["nmse"] == 0.125
    assert (row["dead"], row["step"], row["images"], row["lr"]) == (0.5, 7, 14, 0.1)
    free = record(terms, 16.0, 32.0, dead=0.5, step=7, images=14, l1=0.0, lr=0.1)
    assert math.isnan(free["l1_norm"])
