"""Verbs about files of SAEs: sae show, sae check, sae convert, sae list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from patchsae.cli.choices import Images, Left, LeftToImages, Model
from patchsae.cli.verbs.shared import PLAIN
from patchsae.experiments.options import StreamOptions

FEW = 1000  # images, where --limit says nothing else

Target = Literal["patchsae", "saelens", "saev", "dictionary_learning", "sparsify"]


def sae_show(source: tyro.conf.Positional[str], left: Annotated[Left, PLAIN]) -> None:
    """Say what a SAE is, in whose format, of which tower, block and tokens, and what its file leaves open.

    Args:
        source: a file, a directory, a Hub id (owner/name/folder@revision), or a name of `patchsae sae list`.
    """
    from patchsae.cli import saes

    for line in saes.described(source, left):
        print(line)


def sae_check(
    source: tyro.conf.Positional[str],
    images: Images,
    model: Model,
    left: Annotated[LeftToImages, PLAIN],
    options: StreamOptions,
) -> None:
    """Measure on images whether a SAE does what its file promises: error of reconstruction, L0, dead latents.

    At most 1,000 images are read unless --limit says otherwise. Exits with status 1 where a figure is not as promised.

    Args:
        source: a file, a directory, a Hub id, or a name of `patchsae sae list`.
    """
    from patchsae.cli import opening, saes
    from patchsae.experiments import sae_check as experiment

    images = replace(images, limit=images.limit or FEW)
    sae = saes.opened(source, model, left)
    clip, dataset, found = opening.clip_and_images(model, images, sae.config.metadata)
    fidelity = experiment.run(clip, sae, dataset, opening.as_trained(options, found))
    complaints = fidelity.complaints(sae.config)
    for line in [*saes.table(fidelity, sae.config), *complaints]:
        print(line)
    if complaints:
        raise SystemExit(1)


def sae_convert(
    source: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    to: Target,
    model: Model,
    left: Annotated[LeftToImages, PLAIN],
    overwrite: bool = False,
) -> None:
    """Write a SAE as another library reads it, read it again, and compare the two on random tokens.

    Args:
        source: a file, a directory, a Hub id, or a name of `patchsae sae list`.
        out: directory to write into.
        to: format; one that cannot hold the SAE refuses it, with the reason.
        overwrite: write into a directory that is not empty.
    """
    from patchsae.cli import saes

    saes.convert(saes.opened(source, model, left), out, to, overwrite)


def sae_list(words: tyro.conf.Positional[tuple[str, ...]] = ()) -> None:
    """List the published SAEs of vision models: name, tower, block, tokens, sizes, licence, and where they lie.

    The size is that of the file where it is known, else that of its parameters in float32.

    Args:
        words: only those whose line holds all of these words.
    """
    from patchsae.cli import saes

    for line in saes.listed(words):
        print(line)
