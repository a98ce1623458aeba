"""Several processes do what one does: sums, gathers, whole tensors, and training steps on every mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from patchsae.parallel import open_parallel
from patchsae.parallel.base import Alone, even_share, shard_dimension, share
from tests.parallel import mesh_laws as laws
from tests.parallel.pool import Pool

MESHES = [(2, 1), (1, 2), (4, 1), (1, 4), (2, 2)]
LAWS = [
    laws.sums,
    laws.repeatable,
    laws.sum_with_gradient,
    laws.gathers,
    laws.agreements,
    laws.whole_tensors,
]


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Pool]]:
    pools = {size: Pool(size) for size in (2, 4)}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_one_process(law: Callable[..., None]) -> None:
    law(Alone())


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("mesh", MESHES, ids="{0[0]}x{0[1]}".format)
def test_mesh(pools: dict[int, Pool], mesh: tuple[int, int], law: Callable[..., None]) -> None:
    pools[mesh[0] * mesh[1]].run(law, *mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids="{0[0]}x{0[1]}".format)
def test_shares_cover_everything_once(pools: dict[int, Pool], mesh: tuple[int, int]) -> None:
    data, latents = mesh
    held = pools[data * latents].run(laws.shares, data, latents)
    assert [h[:2] for h in held] == [(i, j) for i in range(data) for j in range(latents)]
    for n, which in ((10, 2), (1, 3)):
        covered = [i for h in held if h[1] == 0 for i in range(n)[h[which]]]
        assert covered == list(range(n))
    assert [i for h in held if h[0] == 0 for i in range(laws.S)[h[4]]] == list(range(laws.S))


@pytest.mark.slow
def test_latents_must_divide(pools: dict[int, Pool]) -> None:
    for message in pools[2].run(laws.uneven_latents, 1, 2):
        assert message == "S is 65 latents over 2 processes; expected a multiple of 2"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids="{0[0]}x{0[1]}".format)
def test_ten_steps_equal_one_process(pools: dict[int, Pool], mesh: tuple[int, int]) -> None:
    expected = laws.relu_run(Alone(), 0, laws.STEPS, None)
    found = pools[mesh[0] * mesh[1]].run(laws.relu_run, *mesh, 0, laws.STEPS, None)
    assert expected is not None
    assert [whole is not None for whole in found] == [True] + [False] * (len(found) - 1)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("before", "after"), [((1, 4), (2, 1)), ((2, 2), (1, 2)), ((2, 1), (2, 2)), ((4, 1), (1, 1))])
def test_a_state_goes_on_under_another_mesh(
    pools: dict[int, Pool], before: tuple[int, int], after: tuple[int, int]
) -> None:
    def run(mesh: tuple[int, int], *args: object) -> dict[str, torch.Tensor] | None:
        if mesh == (1, 1):
            return laws.relu_run(Alone(), *args)  # type: ignore[arg-type]
        return pools[mesh[0] * mesh[1]].run(laws.relu_run, *mesh, *args)[0]

    expected = laws.relu_run(Alone(), 0, laws.STEPS, None)
    found = run(after, 5, laws.STEPS, run(before, 0, 5, None))
    assert expected is not None
    assert found is not None
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5)


def test_alone_without_torchrun() -> None:
    with open_parallel(1, "cpu") as parallel:
        assert isinstance(parallel, Alone)


def test_shards_need_processes() -> None:
    expected = "latent_shards is 2 with 1 process.*torchrun --nproc-per-node 2"
    with pytest.raises(ValueError, match=expected), open_parallel(2, "cpu"):
        pass


def test_where_the_latents_are() -> None:
    matrix, vector, scalar = torch.zeros(2, 3), torch.zeros(3), torch.zeros(())
    assert shard_dimension("exp_avg.W_enc", matrix) == 1
    assert shard_dimension("W_dec", matrix) == 0
    assert shard_dimension("log_threshold", vector) == 0
    assert shard_dimension("params.b_dec", vector) is None
    assert shard_dimension("threshold", scalar) is None


def test_shares_differ_by_one_at_most() -> None:
    for n in range(12):
        for size in range(1, 6):
            parts = [range(n)[share(n, rank, size)] for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert even_share(12, 2, 3) == slice(8, 12)
