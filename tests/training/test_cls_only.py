"""Training on CLS alone: what the patches hold changes nothing, and mixed tokens are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchsae.activations import TokenBatch
from patchsae.parallel.base import Alone
from patchsae.training.config import TrainConfig
from patchsae.training.learner import Learner


def batch(tokens: Tensor) -> TokenBatch:
    return TokenBatch(tokens, [str(i) for i in range(len(tokens))], len(tokens), len(tokens))


def trained(patches_seed: int, **changes: object) -> tuple[Learner, dict[str, float]]:
    """Three steps and the record of the last; the CLS tokens are always the same."""
    config = TrainConfig(cls_only=True, expansion=4, batch_size=6, lr=0.1, warm_up_steps=0, **changes)  # type: ignore[arg-type]
    cls = torch.randn(4, 6, 1, 16, generator=torch.Generator().manual_seed(0))
    patches = torch.randn(4, 6, 5, 16, generator=torch.Generator().manual_seed(patches_seed))
    first, *rest = torch.cat([cls, patches], dim=2)
    learner = Learner(config, 16, "cpu", Alone(), {})
    learner.start([batch(first)])
    for tokens in rest:
        terms = learner.step(batch(tokens))
    return learner, learner.record(batch(tokens), terms)


@pytest.mark.parametrize("changes", [{}, {"normalise": "standardise", "init": "data"}, {"start": "token-median"}])
def test_patches_change_nothing(changes: dict) -> None:
    (one, record), (other, same) = trained(1, **changes), trained(2, **changes)
    for name, parameter in one.state.params.items():
        assert torch.equal(parameter, other.state.params[name]), name
    assert record == same
    assert one.state.images == 18


def test_mixed_tokens_are_refused() -> None:
    for mixing in ({"shuffle": 2}, {"tokens_per_image": 3}):
        with pytest.raises(ValueError, match="TrainConfig.cls_only is True; expected false with"):
            TrainConfig(cls_only=True, **mixing)  # type: ignore[arg-type]
    learner = Learner(TrainConfig(cls_only=True, expansion=4, batch_size=6), 16, "cpu", Alone(), {})
    with pytest.raises(ValueError, match=r"tokens have shape \(12, 16\); cls_only needs images"):
        learner.start([batch(torch.randn(12, 16))])
