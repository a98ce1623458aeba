"""sparsify (EleutherAI): what its sparse coders save, and what it makes of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from patchsae import load_sae
from patchsae.models.checkpoints import write
from tests.peers.same import D, K, S, loaded, ours, randomise, require_same, tokens

SAVED: dict[str, dict[str, Any]] = {
    "as by default": {},
    "rows of any length": {"normalize_decoder": False},
    "trained with more than k": {"multi_topk": True},
    "a size by its factor": {"num_latents": 0, "expansion_factor": 3},
}
REFUSED: dict[str, dict[str, Any]] = {
    "groupmax": {"activation": "groupmax"},
    "transcode": {"transcode": True},
    "skip": {"skip_connection": True},
}


def theirs(dtype: torch.dtype = torch.float32, **settings: Any) -> SparseCoder:
    sae = SparseCoder(D, SparseCoderConfig(**{"k": K, "num_latents": S, **settings}), dtype=dtype)
    randomise(sae)
    return sae


def answers(sae: SparseCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents ``[N, S]`` and the reconstruction."""
    out = sae(x)
    latents = torch.zeros(len(x), sae.num_latents).scatter(1, out.latent_indices, out.latent_acts)
    return latents, out.sae_out


@pytest.mark.parametrize("kind", SAVED)
def test_a_sparse_coder(tmp_path: Path, kind: str) -> None:
    sae, x = theirs(**SAVED[kind]), tokens()
    sae.save_to_disk(tmp_path)
    sae.cfg.multi_topk = False  # in training alone: `forward` then gives 4 k latents, not those of `encode`
    require_same(loaded(tmp_path), x, *answers(sae, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_two_bytes(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs(dtype).save_to_disk(tmp_path)
    require_same(loaded(tmp_path), tokens(), *answers(SparseCoder.load_from_disk(tmp_path).float(), tokens()))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_sae_of_ours_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    theirs(**REFUSED[kind]).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=kind):
        load_sae(tmp_path)


def test_sparsify_reads_ours(tmp_path: Path) -> None:
    sae, x = ours("topk"), tokens()
    write(sae, tmp_path, "sparsify")
    require_same(sae, x, *answers(SparseCoder.load_from_disk(tmp_path), x))
