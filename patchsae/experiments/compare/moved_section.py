"""The part of a comparison's section on latents that gain and lose most, with reference images of both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.compare.moved import hidden, moved, moved_in_class
from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.noise import left_out
from patchsae.experiments.options import CompareOptions
from patchsae.experiments.pictures import Seen, activations, name_of, tiles_of
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Row, Section, Tile
from patchsae.words import percent

Models = tuple[AnyCLIP, AnyCLIP]
Datasets = tuple[ImageDataset, ImageDataset]


def latents_that_moved(
    part: Section,
    comparison: Comparison,
    clips: Models,
    datasets: Datasets,
    sae: SparseAutoencoder,
    options: CompareOptions,
) -> None:
    """Add galleries: by mean activation over all tokens, and with labels by tokens in one class."""
    n = max(1, options.show_latents // 2) if options.show_latents else 0
    of_all = moved(comparison, options.noisy_above, n)
    in_class = moved_in_class(comparison, options.noisy_above, n)
    wanted = sorted({latent for lists in (of_all, in_class) for latents in lists for latent in latents})
    tiles = _tiles(comparison, clips, datasets, sae, wanted, -(-options.show_images // 2))
    a, b = comparison.names
    noisy = left_out(hidden(comparison, options.noisy_above), options.noisy_above)
    intro = f"The pictures are the reference images of {a}, then those of {b}, drawn on one scale. {noisy}"
    for latents, title in zip(of_all, ("gain", "lose"), strict=True):
        rows = _rows(latents, tiles, partial(_statistics, comparison))
        _gallery(part, f"Latents that {title} most", f"By mean activation over all image tokens. {intro}", rows, noisy)
    if comparison.class_counts is None:
        return
    for latents, title in zip(in_class, ("gain", "lose"), strict=True):
        rows = _rows(latents, tiles, partial(_in_class, comparison, title))
        text = f"By the change of a_c in one class: tokens above the threshold per image of the class. {intro}"
        _gallery(part, f"Latents that {title} most in a class", text, rows, noisy)


def _gallery(part: Section, title: str, text: str, rows: Sequence[Row], noisy: str) -> None:
    part.heading(title)
    part.text(text if rows else f"None. {noisy}")
    if rows:
        part.galleries(rows)


def _rows(
    latents: Sequence[int], tiles: dict[int, list[Tile]], statistics: Callable[[int], dict[str, float | str]]
) -> list[Row]:
    return [
        Row(f"Latent {latent}", statistics(latent), tiles[latent], "" if tiles[latent] else "No reference images.")
        for latent in latents
    ]


def _tiles(
    comparison: Comparison,
    clips: Models,
    datasets: Datasets,
    sae: SparseAutoencoder,
    latents: Sequence[int],
    n: int,
) -> dict[int, list[Tile]]:
    """Latent -> up to ``n`` reference images of side A, then of side B; one colour scale per latent."""
    places = {
        (side, latent): [i for i in comparison.top_images[side, latent, :n].tolist() if i >= 0]
        for side in (0, 1)
        for latent in latents
    }
    seen = [
        activations(clips[side], sae, datasets[side], ((s, i) for s in latents for i in places[side, s]))
        for side in (0, 1)
    ]
    tiles = {}
    for latent in latents:
        tiles[latent] = tiles_of(
            [
                Seen(f"{comparison.names[side]}: {name_of(datasets[side], image)}", seen[side][latent, image])
                for side in (0, 1)
                for image in places[side, latent]
            ]
        )
    return tiles


def _statistics(comparison: Comparison, latent: int) -> dict[str, float | str]:
    statistics: dict[str, float | str] = {"change of mean": float(comparison.shift[latent])}
    for side, name in enumerate(comparison.distinct_names):
        statistics[f"mean, {name}"] = float(comparison.mean_activation[side, latent])
        statistics[f"active in, {name}"] = f"{percent(float(comparison.frequency[side, latent]))} of images"
    return statistics


def _in_class(comparison: Comparison, title: str, latent: int) -> dict[str, float | str]:
    shifts = comparison.class_shift
    assert shifts is not None
    assert comparison.classnames is not None
    assert comparison.class_counts is not None
    label = int((shifts.gain_label if title == "gain" else shifts.loss_label)[latent])
    images = int(comparison.class_images[label])
    statistics: dict[str, float | str] = {"class": comparison.classnames[label]}
    for side, name in enumerate(comparison.distinct_names):
        statistics[f"tokens per image, {name}"] = int(comparison.class_counts[side, label, latent]) / images
    return statistics
