"""The top latents of given images, or of one patch of each: where they are active, and which other images they like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import patchsae_kernels as pk
from patchsae.disk.runs import Stage
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.explain.options import ExplainOptions
from patchsae.experiments.explain.picture import explained_picture
from patchsae.experiments.explain.result import Explained, References
from patchsae.experiments.explain.section import notes, section
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.extract.section import latent_row
from patchsae.experiments.pictures import (
    CLS_ALONE,
    Activation,
    Seen,
    activation,
    encode_images,
    picture_of,
    reference_images,
)
from patchsae.experiments.provenance import describe_images, describe_model, describe_sae, require_same_models
from patchsae.experiments.shown import left_out
from patchsae.experiments.stream.job import Job
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, figures
from patchsae.report.text import without_surrogates

_DPI = 110  # photographs in a PNG are large


def run(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    images: Mapping[str, Image.Image],
    job: Job | Stage,
    options: ExplainOptions | None = None,
    *,
    references: References | None = None,
) -> list[Explained]:
    """Explain images by their latents; write pictures, a table and a report section, and print the table.

    Args:
        clip: split model. sae: autoencoder of its residual stream, S latents.
        images: name (a path, for instance) -> RGB picture; at least one.
        job: its stage receives a PNG per image (``image-001.png``, ...), ``explain.csv`` (a row per image and
            latent), the report's section.
        options: see :class:`ExplainOptions`.
        references: statistics and reference images of the latents; without them there are no reference images.

    Raises:
        ValueError: no images, a patch outside the grid, noisy latents to be left out and no extraction that knows them,
            or an extraction of another autoencoder, CLIP or dataset.
    """
    job, options = Job.of(job), options or ExplainOptions()
    if not images:
        raise ValueError("images is empty; expected at least one")
    models = {"clip": describe_model(clip), "sae": describe_sae(sae)}
    if references is not None:
        _require_fresh(references, models)
    elif math.isfinite(options.noisy_above):
        raise ValueError(
            f"noisy_above is {options.noisy_above}, and without an extraction nothing is known of the latents' mean "
            "activations: run `patchsae extract` first, or leave --noisy-above out"
        )
    extraction = None if references is None else references.extraction
    explained = explain(clip, sae, images, options, extraction)
    made_from = {} if references is None else {"references": describe_images(references.dataset)}

    def write(stage: Stage, explained: Sequence[Explained]) -> Section:
        seen = {} if references is None else _reference_images(explained, clip, sae, references, options)
        _write_files(stage, explained, seen, options)
        return section(explained, references, seen, options)

    config = job.config(options, pictures=list(images), **models, **made_from)
    job.make(config, lambda: explained, write, device=clip.device)
    for line in table_lines(explained, extraction, options.noisy_above):
        print(line)
    return explained


def _require_fresh(references: References, models: Mapping[str, Any]) -> None:
    """ValueError unless the extraction was made with these models, on these images."""
    again = "`patchsae extract --overwrite`"
    made_from = references.extraction.made_from
    require_same_models("references is", made_from, models, again)
    was, now = made_from["dataset"], describe_images(references.dataset)
    if was["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"references was extracted from {was['images']} images of {was['name']!r}; those at hand, {now['images']} "
            f"of {now['name']!r}, are others. Run {again} first"
        )


@torch.no_grad()
def explain(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    images: Mapping[str, Image.Image],
    options: ExplainOptions | None = None,
    extraction: Extraction | None = None,
) -> list[Explained]:
    """The top latents of every image (or of the patch ``options.patch`` of it).

    extraction: what says which latents are noisy, where ``options.noisy_above`` leaves some out.
    """
    options = options or ExplainOptions()
    token = None if options.patch is None else token_of(options.patch, clip.grid)
    hidden = torch.zeros(sae.config.d_sae, dtype=torch.bool)
    if extraction is not None:
        hidden = extraction.noisy(options.noisy_above)
    found = []
    for name, image in images.items():
        pixels = clip.preprocess(image)
        (latents,) = encode_images(clip, sae, pixels[None])
        top, values, noisy = _top(latents, token, hidden.to(latents.device), options.show_latents)
        picture = picture_of(clip, pixels)
        shown = tuple(activation(clip, latents, latent, picture) for latent in top)
        found.append(Explained(name, tuple(top), tuple(values), shown, noisy))
    return found


def token_of(patch: tuple[int, int], grid: tuple[int, int]) -> int:
    """Token (CLS is 0) of the patch in a row and column of the grid, counted from 0 at the top left."""
    (row, column), (rows, columns) = patch, grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(
            f"patch is row {row}, column {column}; expected rows 0..{rows - 1} and columns 0..{columns - 1} "
            f"of the {rows} x {columns} grid"
        )
    return 1 + row * columns + column


def table_lines(
    explained: Sequence[Explained], extraction: Extraction | None, noisy_above: float = math.inf
) -> list[str]:
    """The result as lines of text, a block per image."""
    lines = []
    for one in explained:
        lines.append(without_surrogates(one.name))
        if not one.latents:
            lines.append("  no latent is active" if one.noisy == 0 else "  no latent is left to show")
        for latent, value, where in zip(one.latents, one.values, one.activations, strict=True):
            line = f"  latent {latent:>6}  activation {value:8.4f}  {_strongest(where)}"
            lines.append(line + _about(extraction, latent))
        if one.noisy:
            lines.append(f"  {left_out(one.noisy, noisy_above)}")
    return lines


def _strongest(where: Activation) -> str:
    if where.on_cls_alone:
        return CLS_ALONE
    row, column = divmod(int(where.grid.argmax()), where.grid.shape[1])
    return f"strongest at row {row}, column {column}"


def _about(extraction: Extraction | None, latent: int) -> str:
    if extraction is None or bool(extraction.never_fired[latent]):
        return ""
    known = latent_row(extraction, latent)
    mostly = known.get("mostly")
    return f"  active in {known['active in']}" + (f", mostly {mostly}" if mostly is not None else "")


def _top(latents: pk.SparseLatents, token: int | None, hidden: Tensor, n: int) -> tuple[list[int], list[float], int]:
    """The ``n`` strongest latents of an image [T, S] that are not hidden, ties to the lower; their activations; and how
    many active ones are hidden."""
    if token is None:
        pooled = pk.pool_tokens(latents, tokens_per_image=latents.shape[0])
        indices, values = pooled.indices.long(), pooled.values / latents.shape[0]
    else:
        indices, values = latents.row(token)
        indices = indices.long()
    active, shown = values > 0, ~hidden[indices]
    noisy = int((active & ~shown).sum())
    indices, values = indices[active & shown], values[active & shown]
    order = values.argsort(descending=True, stable=True)[:n]
    return indices[order].tolist(), values[order].tolist(), noisy


def _write_files(
    stage: Stage, explained: Sequence[Explained], seen: Mapping[int, Sequence[Seen]], options: ExplainOptions
) -> None:
    pictures = []
    for number, one in enumerate(explained, start=1):
        pictures.append(f"image-{number:03d}.png")
        shown = [seen[latent] for latent in one.latents] if seen else []
        picture = explained_picture(one, shown, options.patch, notes(one, options))
        stage.write_bytes(pictures[-1], figures.png(picture, _DPI))
    rows = [(number, rank) for number, one in enumerate(explained) for rank in range(len(one.latents))]
    stage.write_table(
        "explain.csv",
        {
            "image": [explained[number].name for number, _ in rows],
            "picture": [pictures[number] for number, _ in rows],
            "rank": [rank + 1 for _, rank in rows],
            "latent": [explained[number].latents[rank] for number, rank in rows],
            "activation": [explained[number].values[rank] for number, rank in rows],
            "activation_cls": [explained[number].activations[rank].cls for number, rank in rows],
            "largest_patch": [float(explained[number].activations[rank].grid.max()) for number, rank in rows],
        },
    )


def _reference_images(
    explained: Sequence[Explained],
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    references: References,
    options: ExplainOptions,
) -> dict[int, list[Seen]]:
    latents = sorted({latent for one in explained for latent in one.latents})
    positions = references.extraction.top_images.images[latents, : options.show_images]
    return reference_images(clip, sae, references.dataset, latents, positions)
