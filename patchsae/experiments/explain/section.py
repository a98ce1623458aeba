"""The report's section on explained images: where each of their latents is active, and its reference images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchsae.experiments.explain.options import ExplainOptions
from patchsae.experiments.explain.picture import marked, own_overlay
from patchsae.experiments.explain.result import Explained, References
from patchsae.experiments.extract.section import latent_row
from patchsae.experiments.pictures import CLS_ALONE, Seen, tiles_of
from patchsae.experiments.shown import left_out
from patchsae.report import Row, Section, Tile
from patchsae.words import counted


def section(
    explained: Sequence[Explained],
    references: References | None,
    seen: Mapping[int, Sequence[Seen]],
    options: ExplainOptions,
) -> Section:
    """Every image with its latents. seen: latent -> its reference images, none where there are no `references`."""
    of = "the image" if options.patch is None else f"the patch in row {options.patch[0]}, column {options.patch[1]}"
    lead = f"The {counted(options.show_latents, 'latent')} most active on {of}, and where each is active."
    if references is not None:
        lead += f" Beside it: the latent's reference images out of {references.dataset.name}."
    part = Section("Explained images", lead)
    for one in explained:
        part.heading(one.name)
        for note in notes(one, options):
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


def notes(one: Explained, options: ExplainOptions) -> list[str]:
    """What else is to be said of an image, a line each."""
    return [left_out(one.noisy, options.noisy_above)] if one.noisy else []
