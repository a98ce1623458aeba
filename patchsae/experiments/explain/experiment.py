"""The top latents of given images, or of one patch of each: where they are active, and which other images they like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

import patchsae_kernels as pk
from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.explain.picture import explained_picture, marked, own_overlay
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.extract.section import latent_row
from patchsae.experiments.noise import left_out
from patchsae.experiments.options import ExplainOptions
from patchsae.experiments.pictures import (
    CLS_ALONE,
    Activation,
    Seen,
    activation,
    encode_images,
    picture_of,
    reference_images,
    tiles_of,
)
from patchsae.experiments.provenance import (
    describe_images,
    describe_model,
    describe_sae,
    require_same_models,
    stage_config,
)
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Row, Section, Tile, figures
from patchsae.report.text import without_surrogates
from patchsae.words import counted

if TYPE_CHECKING:
    from patchsae.disk.runs import Stage

_DPI = 110  # photographs in a PNG are large


@dataclass(frozen=True, eq=False)
class Explained:
    """The top latents of one image, best first."""

    name: str
    latents: tuple[int, ...]
    values: tuple[float, ...]
    """Mean activation over the image's tokens, or the activation at the chosen patch."""
    activations: tuple[Activation, ...]
    """Where each latent is active in the image."""
    noisy: int
    """Active latents that were left out, as `ExplainOptions.noisy_above` asks."""


@dataclass(frozen=True, eq=False)
class References:
    """What an extract stage knows of the latents, and the images that its positions refer to."""

    extraction: Extraction
    dataset: ImageDataset


def run(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    images: Mapping[str, Image.Image],
    stage: Stage,
    options: ExplainOptions | None = None,
    *,
    references: References | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[Explained]:
    """Explain images by their latents; write pictures, a table and a report section, and print the table.

    Args:
        clip: split model. sae: autoencoder of its residual stream, S latents.
        images: name (a path, for instance) -> RGB picture; at least one.
        stage: folder of the results: a PNG per image, ``explain.csv`` (a row per image and latent), the report's
            section.
        options: see :class:`ExplainOptions`.
        references: statistics and reference images of the latents; without them there are no reference images.
        settings: what the caller wants recorded, and compared on resume, beside these (how things were opened).
        overwrite: begin again even if the stage is finished.

    Raises:
        ValueError: no images, a patch outside the grid, noisy latents to be left out and no extraction that knows them,
            or an extraction of another autoencoder, CLIP or dataset.
    """
    options = options or ExplainOptions()
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
    explained = explain(clip, sae, images, options, None if references is None else references.extraction)
    made_from = {} if references is None else {"references": describe_images(references.dataset)}
    config = stage_config(options, settings, pictures=list(images), **models, **made_from)
    with stage:
        if stage.begin(config, overwrite, device=str(clip.device)):
            _write(explained, clip, sae, references, stage, options)
            stage.finish()
    for line in table_lines(explained, None if references is None else references.extraction, options.noisy_above):
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


def _write(
    explained: Sequence[Explained],
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    references: References | None,
    stage: Stage,
    options: ExplainOptions,
) -> None:
    seen = _reference_images(explained, clip, sae, references, options)
    pictures = []
    for number, one in enumerate(explained, start=1):
        pictures.append(f"image-{number:03d}.png")
        shown = [seen[latent] for latent in one.latents] if seen else []
        picture = explained_picture(one, shown, options.patch, _notes(one, options))
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
    _section(explained, references, seen, options).write(stage)


def _notes(one: Explained, options: ExplainOptions) -> list[str]:
    return [left_out(one.noisy, options.noisy_above)] if one.noisy else []


def _reference_images(
    explained: Sequence[Explained],
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    references: References | None,
    options: ExplainOptions,
) -> dict[int, list[Seen]]:
    if references is None:
        return {}
    latents = sorted({latent for one in explained for latent in one.latents})
    positions = references.extraction.top_images.images[latents, : options.show_images]
    return reference_images(clip, sae, references.dataset, latents, positions)


def _section(
    explained: Sequence[Explained],
    references: References | None,
    seen: Mapping[int, Sequence[Seen]],
    options: ExplainOptions,
) -> Section:
    of = "the image" if options.patch is None else f"the patch in row {options.patch[0]}, column {options.patch[1]}"
    lead = f"The {counted(options.show_latents, 'latent')} most active on {of}, and where each is active."
    if references is not None:
        lead += f" Beside it: the latent's reference images out of {references.dataset.name}."
    part = Section("Explained images", lead)
    for one in explained:
        part.heading(one.name)
        for note in _notes(one, options):
            part.text(note)
        if not one.latents:
            part.text("No latent is left to show." if one.noisy else "No latent is active.")
            continue
        part.gallery([(marked(one.activations[0].image, one.activations[0], options.patch), "this image")])
        part.galleries([_latent(one, place, references, seen, options) for place in range(len(one.latents))])
    return part


def _latent(
    one: Explained,
    place: int,
    references: References | None,
    seen: Mapping[int, Sequence[Seen]],
    options: ExplainOptions,
) -> Row:
    """A row of the gallery: the heatmap of the image, then the reference images with theirs."""
    latent, where = one.latents[place], one.activations[place]
    statistics: dict[str, float | int | str | None] = {"activation": one.values[place], "on CLS": where.cls}
    if references is not None:
        statistics |= latent_row(references.extraction, latent)
    own = Tile(own_overlay(where, options.patch), CLS_ALONE if where.on_cls_alone else "in this image")
    return Row(f"Latent {latent}", statistics, [own, *tiles_of(seen.get(latent, ()))])
