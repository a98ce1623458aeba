"""Image embeddings under every mask of a top-k sweep, from one tower pass and one encode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.models import AnyCLIP
from patchsae.sae import SparseAutoencoder

BUDGET_MB = 512
KEEP, ABLATE = "keep", "ablate"


class Variant(NamedTuple):
    """One way of replacing the residual stream."""

    ranking: str
    """Name of the ranking; "none" for the two variants that need none."""
    mode: str
    """"keep" the first k latents ("on" in the paper), "ablate" them ("off"), or "unmodified", or "reconstruction"."""
    k: int

    @property
    def name(self) -> str:
        return self.mode if self.ranking == "none" else f"{self.mode} {self.ranking} top {self.k}"


UNMODIFIED = Variant("none", "unmodified", 0)
RECONSTRUCTION = Variant("none", "reconstruction", 0)


def variants(rankings: Sequence[str], ks: Sequence[int]) -> list[Variant]:
    """Every variant of a sweep in the order of its tables: the two without a ranking, then ranking by mode by k."""
    swept = [Variant(ranking, mode, k) for ranking in rankings for mode in (KEEP, ABLATE) for k in ks]
    return [UNMODIFIED, RECONSTRUCTION, *swept]


def sweep_ks(ks: Sequence[int], latents: int) -> tuple[int, ...]:
    """The ks of a sweep over S latents, ascending: those above S are dropped, S itself is always there."""
    if any(k < 1 for k in ks):
        raise ValueError(f"ks holds {min(ks)}; expected numbers of latents of at least 1")
    return tuple(sorted({k for k in ks if k < latents} | {latents}))


@torch.no_grad()
def sweep_embeddings(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    pixels: Tensor,
    labels: Tensor,
    rankings: Mapping[str, Tensor],
    ks: Sequence[int],
    *,
    budget_mb: int = BUDGET_MB,
    bias_offset: float = 0.0,
    keep_prompt_tokens: bool = False,
) -> dict[Variant, Tensor]:
    """Embed a batch of images with the residual stream replaced by what every mask leaves of it.

    The tower below the hooked block and the encode run once; every mask costs a share of one `pk.decode_sweep` and the
    rest of the tower. All tokens are replaced, CLS and a prompted model's prompt tokens included, and b_dec stays in
    every reconstruction.

    Args:
        pixels: float [B, 3, H, W], preprocessed.
        labels: int64 [B], ground-truth class of every image; chooses its row of a [C, S] ranking.
        rankings: name -> int32 [S] or [C, S], rank of every latent (0 is first).
        ks: numbers of latents kept or ablated, ascending, each at most S.
        budget_mb: bound on the reconstructions held at a time; images are cut into chunks that fit it (one image at
            least).
        bias_offset: added to every element of every reconstruction. The released code adds 0.105131256516992.
        keep_prompt_tokens: leave the tokens after the image's, which a prompted model has, as they are.

    Returns:
        variant -> float [B, E] of unit norm, one entry for each of :func:`variants`.
    """
    residual = clip.residual(pixels)
    replaced = residual[:, : clip.image_tokens] if keep_prompt_tokens else residual
    kept = residual[:, replaced.shape[1] :]

    def embed(reconstruction: Tensor, first: int, images: int) -> Tensor:
        tokens = (reconstruction + bias_offset).reshape(images, *replaced.shape[1:])
        if kept.shape[1]:
            tokens = torch.cat([tokens, kept[first : first + images].to(tokens)], dim=1)
        return clip.embed(tokens)

    latents = sae.encode(replaced)
    full = pk.decode(latents, sae.W_dec, sae.b_dec)
    result = {UNMODIFIED: clip.embed(residual), RECONSTRUCTION: embed(full, 0, len(residual))}
    del full
    pieces: dict[Variant, list[Tensor]] = {variant: [] for variant in variants(list(rankings), ks)[2:]}
    images, tokens, width = replaced.shape
    chunk = _images_per_chunk(len(ks), tokens, width, budget_mb)
    for start in range(0, images, chunk):
        classes = labels[start : start + chunk].to(latents.device)
        rows = torch.arange(start * tokens, (start + len(classes)) * tokens, device=latents.device)
        part = latents if len(classes) == images else latents.select_rows(rows)
        for name, rank in rankings.items():
            class_ids = classes.repeat_interleave(tokens) if rank.ndim == 2 else None
            for mode, k, left in _reconstructions(part, sae, rank, ks, class_ids):
                pieces[Variant(name, mode, k)].append(embed(left, start, len(classes)))
    return result | {variant: torch.cat(parts) for variant, parts in pieces.items()}


def _reconstructions(
    latents: pk.SparseLatents, sae: SparseAutoencoder, rank: Tensor, ks: Sequence[int], class_ids: Tensor | None
) -> Iterator[tuple[str, int, Tensor]]:
    """(mode, k, float [N, D]). A generator, so that one ranking's reconstructions are gone before the next one's
    come."""
    kept, ablated = pk.decode_sweep(latents, rank, ks, sae.W_dec, sae.b_dec, class_ids=class_ids)
    for position, k in enumerate(ks):
        yield KEEP, k, kept[position]
        yield ABLATE, k, ablated[position]


def _images_per_chunk(ks: int, tokens: int, width: int, budget_mb: int) -> int:
    """Images whose 2 * ks float32 reconstructions fit the budget; at least one."""
    if budget_mb < 1:
        raise ValueError(f"budget_mb is {budget_mb}; expected at least 1")
    return max(1, (budget_mb << 20) // (2 * ks * tokens * width * 4))
