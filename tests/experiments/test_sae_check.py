"""`sae check`: what is measured is what the definitions say, on the tokens that a SAE was trained on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from patchsae.data import ImageDataset
from patchsae.experiments import sae_check
from patchsae.experiments.sae_check import Fidelity, FidelityCounts
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests.experiments.worlds import make_images, pixels_of


@pytest.fixture(scope="module")
def images() -> ImageDataset:
    return make_images(9)


def with_metadata(sae: SparseAutoencoder, **metadata: str) -> SparseAutoencoder:
    config = dataclasses.replace(sae.config, metadata=metadata)
    return SparseAutoencoder.from_tensors(config, sae.state_dict()).requires_grad_(False)


@pytest.mark.parametrize(("kind", "chosen"), [("all", slice(None)), ("patches", slice(1, None)), ("cls", slice(1))])
@torch.no_grad()
def test_figures_are_those_of_the_definitions(
    clip: SplitCLIP, sae: SparseAutoencoder, images: ImageDataset, kind: str, chosen: slice
) -> None:
    sae = with_metadata(sae, tokens=kind)
    found = sae_check.run(clip, sae, images)
    pixels = pixels_of(clip, images)
    x = clip.residual(pixels)[:, chosen].flatten(0, 1).double()
    z = sae.encode(x.float()).to_dense()
    error = (sae(x.float()).double() - x).square().sum() / (x - x.mean(0)).square().sum()
    assert (found.images, found.tokens) == (len(images), len(x))
    assert found.fvu == pytest.approx(float(error), rel=1e-4)
    assert found.l0 == pytest.approx(float((z != 0).double().sum(1).mean()))
    assert found.dead == pytest.approx(float(((z != 0).sum(0) == 0).double().mean()))


def test_counts_merge_and_travel(sae: SparseAutoencoder) -> None:
    x = torch.randn(50, sae.config.d_in, generator=torch.Generator().manual_seed(3))
    whole, first, second = (FidelityCounts(sae.config.d_in, sae.config.d_sae) for _ in range(3))
    with torch.no_grad():
        whole.update(x, sae)
        first.update(x[:20], sae)
        second.update(x[20:], sae)
    again = FidelityCounts(sae.config.d_in, sae.config.d_sae)
    again.load_state_dict(first.state_dict())
    again.merge(second)
    one, other = whole.finalize(1), again.finalize(1)
    assert dataclasses.asdict(other) == pytest.approx(dataclasses.asdict(one), rel=1e-9)


@pytest.mark.parametrize(
    ("fidelity", "config", "complaints"),
    [
        (Fidelity(1, 10, 0.2, 31.0, 0.1), SAEConfig(4, 64, "topk", 32), []),
        (Fidelity(1, 10, 0.2, 100.0, 0.1), SAEConfig(4, 64, metadata={"l0": 64}), []),
        (Fidelity(1, 10, 1.0, 31.0, 0.1), SAEConfig(4, 64), ["FVU is 1: the mean token is a better reconstruction"]),
        (Fidelity(1, 10, float("nan"), 31.0, 0.1), SAEConfig(4, 64), ["FVU is nan: the mean token is a better recon"]),
        (Fidelity(1, 10, 0.2, 33.0, 0.1), SAEConfig(4, 64, "topk", 32), ["L0 is 33; the file promises at most k = 32"]),
        (Fidelity(1, 10, 0.2, 600.0, 0.1), SAEConfig(4, 64, metadata={"l0": 80}), ["L0 is 600; the file promises abo"]),
        (Fidelity(1, 10, 0.2, 3.0, 0.1), SAEConfig(4, 64, metadata={"l0": 80}), ["L0 is 3; the file promises about 8"]),
    ],
)
def test_what_is_not_as_promised_is_said(fidelity: Fidelity, config: SAEConfig, complaints: list[str]) -> None:
    found = fidelity.complaints(config)
    assert len(found) == len(complaints)
    assert all(said.startswith(start) for said, start in zip(found, complaints, strict=True))


def test_a_sae_of_embeddings_is_refused(clip: SplitCLIP, sae: SparseAutoencoder, images: ImageDataset) -> None:
    with pytest.raises(ValueError, match="reads pooled image embeddings"):
        sae_check.run(clip, with_metadata(sae, tokens="embedding"), images)


@torch.no_grad()
def test_some_tokens_are_of_all_images(clip: SplitCLIP, sae: SparseAutoencoder, images: ImageDataset) -> None:
    tokens = sae_check.some_tokens(clip, images, dataclasses.replace(sae.config, metadata={"tokens": "patches"}))
    pixels = pixels_of(clip, images)
    expected = clip.residual(pixels)[:, 1:].flatten(0, 1)
    assert tokens.shape == expected.shape
    torch.testing.assert_close(tokens.double().sum(0), expected.double().sum(0), atol=1e-3, rtol=1e-4)
