from __future__ import annotations

import pytest
import torch

import patchsae_kernels as pk
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.models.steering import steer
from tests.small_clips import pixels, write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> SplitCLIP:
    return load_clip(f"local-dir:{write_clip(tmp_path_factory.mktemp('clip'))}", device="cpu")


@pytest.fixture(scope="module")
def sae(clip: SplitCLIP) -> SparseAutoencoder:
    return SparseAutoencoder(SAEConfig(clip.width, 96), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def classifier() -> torch.Tensor:
    rows = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.normalize(rows, dim=-1)


def naive(clip: SplitCLIP, sae: SparseAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Dense latents ``[B, T, S]`` through open_clip's own blocks."""
    visual = clip.model.visual
    hidden = latents @ sae.W_dec + sae.b_dec
    for block in visual.transformer.resblocks[clip.layer + 1 :]:
        hidden = block(hidden)
    return torch.nn.functional.normalize(visual._pool(hidden)[0] @ visual.proj, dim=-1)


@torch.no_grad()
def test_edits_are_those_of_dense_latents_in_order(clip: SplitCLIP, sae: SparseAutoencoder) -> None:
    images = pixels(3)
    residual = clip.residual(images)
    dense = torch.relu((residual - sae.b_dec) @ sae.W_enc + sae.b_enc)
    changed = dense.clone()
    changed[..., [4, 7]] *= 3.0
    changed[..., 9] = 2.0
    changed[..., 4] += 0.5
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    changed = changed[..., order]
    result = steer(
        clip,
        sae,
        images,
        [
            lambda z: z.scale([4, 7], 3.0),
            lambda z: z.set([9], 2.0),
            lambda z: z.add([4], 0.5),
            lambda z: z.permute(order),
        ],
    )
    torch.testing.assert_close(result.unmodified, clip.model.encode_image(images, normalize=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.before, naive(clip, sae, dense), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.after, naive(clip, sae, changed), rtol=0, atol=1e-5)
    assert not torch.allclose(result.before, result.after, atol=1e-3)
    assert result.scores_after is None


def test_an_edit_that_changes_nothing_changes_nothing(
    clip: SplitCLIP, sae: SparseAutoencoder, classifier: torch.Tensor
) -> None:
    for edits in (lambda z: z, [], [lambda z: z.scale([3], 1.0)]):
        result = steer(clip, sae, pixels(2), edits, classifier)
        assert torch.equal(result.before, result.after)
        assert torch.equal(result.scores_before, result.scores_after)


def test_scores_are_scaled_cosines(clip: SplitCLIP, sae: SparseAutoencoder, classifier: torch.Tensor) -> None:
    result = steer(clip, sae, pixels(2), lambda z: z.scale(list(range(48)), 0.0), classifier)
    for embedding, scores in (
        (result.unmodified, result.scores_unmodified),
        (result.before, result.scores_before),
        (result.after, result.scores_after),
    ):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(scores, embedding @ classifier.T / 0.07)
    assert not torch.allclose(result.scores_before, result.scores_after)


def test_what_does_not_fit_is_named(clip: SplitCLIP, sae: SparseAutoencoder, classifier: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"edits\[1\] returned \(1, 96\); expected .*\(17, 96\)"):
        steer(clip, sae, pixels(1), [lambda z: z, lambda z: z.select_rows(torch.tensor([0]))])
    with pytest.raises(ValueError, match=r"edits\[0\] returned Tensor"):
        steer(clip, sae, pixels(1), pk.SparseLatents.to_dense)
    with pytest.raises(ValueError, match=r"classifier has shape \(5, 23\); expected \[C, E\] with E = 24"):
        steer(clip, sae, pixels(1), [], classifier[:, 1:])
    with pytest.raises(ValueError, match="d_in=16; expected the width .* 32"):
        steer(clip, SparseAutoencoder(SAEConfig(16, 20)), pixels(1), [])


def test_pictures_lists_and_names_are_no_tensors_and_no_edits(clip: SplitCLIP) -> None:
    sae = SparseAutoencoder(SAEConfig(clip.width, 8))
    images = pixels(1, clip.image_size)
    for arguments, message in (
        (("cat.png", lambda z: z), "pixels is the text 'cat.png'"),
        ((images, "zero"), "edits is the text 'zero'; expected a function of SparseLatents, or several"),
        ((images, [42]), "edits is a list; expected a function"),
        ((images, lambda z: z, [[1.0]]), r"classifier is a list; expected \[C, E\] with E = 24"),
    ):
        with pytest.raises(TypeError, match=message):
            steer(clip, sae, *arguments)
