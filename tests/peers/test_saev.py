"""saev, the release of its index: header without a schema, and an encoder that subtracts b_dec."""

from __future__ import annotations

from pathlib import Path

import pytest
import saev.config
import saev.nn

from patchsae import load_sae
from tests.peers.same import D, loaded, randomise, require_same, tokens


def test_what_it_dumps(tmp_path: Path) -> None:
    sae, x = saev.nn.SparseAutoencoder(saev.config.SparseAutoencoder(d_vit=D, exp_factor=3)), tokens()
    randomise(sae)
    saev.nn.dump(str(tmp_path / "sae.pt"), sae)
    reconstruction, latents, _ = sae(x)
    with pytest.warns(UserWarning, match="taken as subtracted"):
        require_same(load_sae(tmp_path / "sae.pt"), x, latents, reconstruction)
    require_same(loaded(tmp_path / "sae.pt", subtract_b_dec=True), x, latents, reconstruction)
