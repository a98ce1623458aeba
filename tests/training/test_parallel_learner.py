"""Every variant, trained by several processes, is what one process trains: parameters, dead counts, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from patchsae.parallel.base import Alone
from tests.parallel.pool import Pool
from tests.training import learner_laws as laws
from tests.training.learner_laws import Learned

MESHES = [(2, 1), (1, 2), (4, 1), (1, 4), (2, 2)]
ROUNDING = 2e-5
"""Largest error after ten steps: of a parameter absolutely, of Adam's moments in shares of the largest of a tensor."""
AMPLIFIED = {"relu-ghost": 5e-3}
"""The same of moments whose rounding grows: the ghost term divides by what is left of an error. One process that sees
the images of a batch in another order differs from itself by 3e-4."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Pool]]:
    pools = {size: Pool(size) for size in (2, 4)}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="module")
def alone() -> dict[str, Learned]:
    """Ten steps of every variant in one process."""
    learned = {variant: laws.learn(Alone(), variant, 0, laws.STEPS, None) for variant in laws.VARIANTS}
    return {variant: run for variant, run in learned.items() if run is not None}


def assert_same(found: Learned | None, expected: Learned, variant: str) -> None:
    assert found is not None
    amplified = AMPLIFIED.get(variant, ROUNDING)
    assert found.whole.keys() == expected.whole.keys()
    for name, tensor in expected.whole.items():
        if tensor.dtype == torch.int64:
            assert torch.equal(found.whole[name], tensor), name
        else:
            error, size = (found.whole[name] - tensor).abs().max(), tensor.abs().max()
            limit = amplified * size if name.startswith("exp_avg") else ROUNDING
            assert error <= limit, f"{name} differs by {error:.2g} of {size:.2g}"
    for row, wanted in zip(found.records, expected.records, strict=True):
        assert row.keys() == wanted.keys()
        assert row == pytest.approx(wanted, rel=3 * ROUNDING, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("variant", laws.VARIANTS)
@pytest.mark.parametrize("mesh", MESHES, ids="{0[0]}x{0[1]}".format)
def test_ten_steps_equal_one_process(
    pools: dict[int, Pool], alone: dict[str, Learned], mesh: tuple[int, int], variant: str
) -> None:
    found = pools[mesh[0] * mesh[1]].run(laws.learn, *mesh, variant, 0, laws.STEPS, None)
    assert_same(found[0], alone[variant], variant)


@pytest.mark.parametrize("variant", ["relu-ghost", "batchtopk", "normalised"])
@pytest.mark.parametrize(("before", "after"), [((1, 4), (2, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2)), ((4, 1), (1, 2))])
def test_a_checkpoint_goes_on_under_another_mesh(
    pools: dict[int, Pool],
    alone: dict[str, Learned],
    tmp_path: Path,
    before: tuple[int, int],
    after: tuple[int, int],
    variant: str,
) -> None:
    records = []
    for mesh, begin, end in ((before, 0, 5), (after, 5, laws.STEPS)):
        if mesh == (1, 1):
            found = laws.learn(Alone(), variant, begin, end, tmp_path)
        else:
            found = pools[mesh[0] * mesh[1]].run(laws.learn, *mesh, variant, begin, end, tmp_path)[0]
        assert found is not None
        records += found.records
    assert_same(Learned(found.whole, records), alone[variant], variant)


def test_dead_latents_are_really_there(alone: dict[str, Learned]) -> None:
    """The comparisons above are of runs in which the dead-latent terms were at work."""
    for variant in ("relu-ghost", "topk-auxk", "matryoshka-auxk"):
        assert any(row["dead"] > 0 and row["ghost"] > 0 for row in alone[variant].records), variant
    assert any(row["dead"] > 0 for row in alone["relu-resample"].records)


@pytest.mark.parametrize("mesh", [(2, 1), (2, 2)], ids="{0[0]}x{0[1]}".format)
def test_tokens_that_are_not_finite_are_refused_by_all(pools: dict[int, Pool], mesh: tuple[int, int]) -> None:
    for message, unchanged in pools[mesh[0] * mesh[1]].run(laws.refused, *mesh):
        assert message.startswith("NonFiniteLoss: step 1 has tokens that are not finite")
        assert unchanged
