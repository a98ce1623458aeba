"""Image embeddings under every mask of a top-k sweep, from one tower pass and one encode."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.adapters.base import AdaptedCLIP
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.mask.options import TopKOptions
from patchsae.models import tower
from patchsae.models.sae import SparseAutoencoder

# Bound on any one tensor of an `embed` call on a CPU. Measured for the CLS-only tail of a ViT-B/16 on two cores (AMX):
# 1.17 ms a masked image at 2 a call, 0.59 at 8, 0.40 at 27 (16 MB), 0.64 at 48. Every call reads the block's weights,
# and larger tensors come fresh from the system, page by page. The tiny CLIP has its minimum at 14 MB.
CPU_TENSOR_BYTES = 16 << 20
KEEP, ABLATE = "keep", "ablate"


class Masking(NamedTuple):
    """What stands in the place of the residual stream: which of its latents are kept, or the stream as it is."""

    ranking: str
    """Name of the ranking; "none" for the two maskings that need none."""
    mode: str
    """"keep" the first k latents ("on" in the paper), "ablate" them ("off"), or "unmodified", or "reconstruction"."""
    k: int

    @property
    def name(self) -> str:
        return self.mode if self.ranking == "none" else f"{self.mode} {self.ranking} top {self.k}"


UNMODIFIED = Masking("none", "unmodified", 0)
RECONSTRUCTION = Masking("none", "reconstruction", 0)


def maskings(rankings: Sequence[str], ks: Sequence[int]) -> list[Masking]:
    """Every masking of a sweep in the order of its tables: the two without a ranking, then ranking by mode by k."""
    swept = [Masking(ranking, mode, k) for ranking in rankings for mode in (KEEP, ABLATE) for k in ks]
    return [UNMODIFIED, RECONSTRUCTION, *swept]


def sweep_ks(ks: Sequence[int], latents: int) -> tuple[int, ...]:
    """The ks of a sweep over S latents, ascending: those above S are dropped, S itself is always there."""
    return tuple(sorted({k for k in ks if k < latents} | {latents}))


@torch.no_grad()
def sweep_embeddings(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    pixels: Tensor,
    labels: Tensor,
    rankings: Mapping[str, Tensor],
    options: TopKOptions,
) -> dict[Masking, Tensor]:
    """Embed a batch of images with the residual stream replaced by what every mask leaves of it.

    The tower below the hooked block and the encode run once; every ranking costs one `sae.decode_sweep` and one
    `clip.embed` of all its masks per chunk of images (on a CPU as many as are fastest). All tokens are replaced, CLS
    and a prompted model's prompt tokens included, and b_dec stays in every reconstruction.

    Args:
        pixels: float [B, 3, H, W], preprocessed.
        labels: int64 [B], ground-truth class of every image; chooses its row of a [C, S] ranking.
        rankings: name -> int32 [S] or [C, S], rank of every latent (0 is first).
        options: its ks are taken as they are, ascending and each at most S (see :func:`sweep_ks`). Images are cut into
            chunks that fit its budget (one image at least), equal to within one image.

    Returns:
        masking -> float [B, E] of unit norm, one entry for each of :func:`maskings`.
    """
    ks, residual = options.ks, clip.residual(pixels)
    replaced = residual[:, : clip.image_tokens] if options.keep_prompt_tokens else residual
    kept = residual[:, replaced.shape[1] :]
    images, tokens, _ = replaced.shape
    held, largest = embedding_bytes(clip, residual.shape[1])
    together = max(1, CPU_TENSOR_BYTES // largest) if residual.device.type == "cpu" else sys.maxsize

    latents = sae.encode(replaced)
    result = {
        UNMODIFIED: clip.embed(residual),
        RECONSTRUCTION: _embed(clip, [sae.decode(latents, offset=options.bias_offset)], kept, together)[0],
    }
    swept: dict[str, list[Tensor]] = {name: [] for name in rankings}
    for chunk in even_runs(images, images_per_chunk(2 * len(ks) * held, options.budget_mb)):
        rows = torch.arange(chunk.start * tokens, chunk.stop * tokens, device=latents.device)
        part = latents if len(rows) == latents.shape[0] else latents.select_rows(rows)
        classes = labels[chunk].to(latents.device).repeat_interleave(tokens)
        for name, rank in rankings.items():
            class_ids = classes if rank.ndim == 2 else None
            join = clip.dtype if 2 * len(ks) * (chunk.stop - chunk.start) <= together else None
            reconstructions = _reconstructions(sae, part, rank, class_ids, options, join)
            swept[name].append(_embed(clip, reconstructions, kept[chunk], together))
    for name, parts in swept.items():
        result |= zip(maskings([name], ks)[2:], torch.cat(parts, dim=1), strict=True)
    return result


def even_runs(count: int, most: int) -> list[slice]:
    """0..count - 1 in the fewest runs of at most ``most``, whose lengths differ by one at most."""
    runs = -(-count // most)
    return [slice(count * i // runs, count * (i + 1) // runs) for i in range(runs)]


def images_per_chunk(image_bytes: int, budget_mb: int) -> int:
    """Images that fit the budget at so many bytes each; at least one."""
    return max(1, (budget_mb << 20) // image_bytes)


def embedding_bytes(clip: AnyCLIP, tokens: int) -> tuple[int, int]:
    """Bytes that `clip.embed` holds beside an image of so many tokens, and those of the largest tensor among them."""
    visual = (clip.clip if isinstance(clip, AdaptedCLIP) else clip).model.visual
    if clip.layer < clip.layers - 2 or not tower.cls_leaves_alone(visual):
        return 16 * 4 * tokens * clip.width, 4 * 4 * tokens * clip.width  # a block; its MLP is four times as wide
    heads = visual.transformer.resblocks[-1].attn.num_heads
    copies = 1 if tokens == clip.image_tokens else 3  # the norm's; prompts are put after the image's tokens twice
    return 4 * (copies * tokens + 4 * heads + 12) * clip.width, 4 * tokens * clip.width


def _reconstructions(
    sae: SparseAutoencoder,
    latents: pk.SparseLatents,
    rank: Tensor,
    class_ids: Tensor | None,
    options: TopKOptions,
    join: torch.dtype | None,
) -> Iterator[Tensor]:
    """Those that keep [K, N, D], then those that ablate; with ``join`` both in one tensor [2, K, N, D] of that dtype.

    A generator, so that what was joined is gone before it is embedded, and all of it before the next ranking's come.
    """
    on, off = sae.decode_sweep(latents, rank, options.ks, class_ids, options.bias_offset)
    if join is None:
        yield on
        yield off
        return
    both = on.new_empty(2, *on.shape, dtype=join)
    both[0], both[1] = on, off
    del on, off
    yield both


def _embed(clip: AnyCLIP, reconstructions: Iterable[Tensor], kept: Tensor, together: int) -> Tensor:
    """Reconstructions [..., B * T, D] -> [M, B, E] for the M of them all, at most ``together`` images a call.

    kept: [B, P, D], what follows the T tokens of every image.
    """
    images, prompts, width = kept.shape
    embeddings = []
    for reconstruction in reconstructions:
        tokens = reconstruction.view(-1, images, reconstruction.shape[-2] // images, width).flatten(0, 1)
        for run in even_runs(len(tokens), together):
            part = tokens[run]
            if prompts:
                image = torch.arange(run.start, run.stop, device=kept.device) % images
                part = torch.cat([part, kept[image].to(part)], dim=1)
            embeddings.append(clip.embed(part))
    grouped: Tensor = torch.cat(embeddings).unflatten(0, (-1, images))
    return grouped
