"""Steering: change chosen latents of images and see what becomes of their embeddings and class scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.models.clip import SplitCLIP
from patchsae.models.given import described, require_tensor
from patchsae.models.sae import SparseAutoencoder

Edit = Callable[[pk.SparseLatents], pk.SparseLatents]


@dataclass(frozen=True, eq=False)
class SteerResult:
    """Embeddings of B images without and with the edits; both go through the SAE, so they differ by the edits alone.

    Attributes:
        unmodified: ``[B, E]`` unit norm, CLIP without the SAE.
        before: ``[B, E]`` unit norm, all tokens replaced by their reconstruction.
        after: ``[B, E]`` unit norm, all tokens replaced by the decoded edited latents.
        scores_unmodified, scores_before, scores_after: ``[B, C]``, logit scale times cosine similarity; None without
            a classifier.
    """

    unmodified: Tensor
    before: Tensor
    after: Tensor
    scores_unmodified: Tensor | None
    scores_before: Tensor | None
    scores_after: Tensor | None


@torch.no_grad()
def steer(
    clip: SplitCLIP,
    sae: SparseAutoencoder,
    pixels: Tensor,
    edits: Edit | Sequence[Edit],
    classifier: Tensor | None = None,
) -> SteerResult:
    """Encode the residual stream of ``pixels``, edit the latents, decode, and run the rest of the tower.

    Args:
        pixels: ``[B, 3, H, W]``, preprocessed.
        edits: one function or several, applied in order, from SparseLatents ``(B * T, S)`` to SparseLatents of the
            same shape: ``lambda z: z.scale([42], 0.0)``.
        classifier: ``[C, E]`` from `SplitCLIP.text_classifier`.

    Raises:
        TypeError: pixels or classifier are no tensors, edits no functions.
        ValueError: the SAE's width is not the model's, an edit changes the shape, or the classifier does not fit.
    """
    if sae.config.d_in != clip.width:
        raise ValueError(f"sae has d_in={sae.config.d_in}; expected the width of {clip.name!r}, {clip.width}")
    if classifier is not None:
        require_tensor("classifier", classifier, f"[C, E] with E = {clip.embed_dim}, as text_classifier() makes it")
    if classifier is not None and (classifier.dim() != 2 or classifier.shape[1] != clip.embed_dim):
        raise ValueError(f"classifier has shape {tuple(classifier.shape)}; expected [C, E] with E = {clip.embed_dim}")
    residual = clip.residual(pixels)
    latents = sae.encode(residual)
    edited = _apply(edits, latents)
    unmodified = clip.embed(residual)
    before, after = (clip.embed(sae.decode(z, like=residual)) for z in (latents, edited))

    def scores(embedding: Tensor) -> Tensor | None:
        return None if classifier is None else clip.logit_scale * embedding @ classifier.to(embedding).T

    return SteerResult(unmodified, before, after, scores(unmodified), scores(before), scores(after))


def _apply(edits: Edit | Sequence[Edit], latents: pk.SparseLatents) -> pk.SparseLatents:
    edited = latents
    if not callable(edits) and not (isinstance(edits, Sequence) and all(map(callable, edits))):
        raise TypeError(f"edits is {described(edits)}; expected a function of SparseLatents, or several")
    for number, edit in enumerate([edits] if callable(edits) else edits):
        edited = edit(edited)
        if not isinstance(edited, pk.SparseLatents) or edited.shape != latents.shape:
            came = tuple(edited.shape) if isinstance(edited, pk.SparseLatents) else type(edited).__name__
            raise ValueError(f"edits[{number}] returned {came}; expected SparseLatents of shape {latents.shape}")
    return edited
