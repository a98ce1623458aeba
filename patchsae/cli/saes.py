"""What the verbs about files of SAEs do and print."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from patchsae.cli import opening
from patchsae.cli.choices import Images, Left, LeftToImages, Model
from patchsae.experiments import sae_check
from patchsae.models import checkpoints
from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.calibrate import Reading, calibrate
from patchsae.models.checkpoints.format import Answers
from patchsae.models.checkpoints.load import build, load_sae, locate, read, with_input
from patchsae.models.checkpoints.opened import SUFFIXES
from patchsae.models.checkpoints.published import Published, published
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.words import NOTHING, number, numbers, size

SAID = ("variant", "b_dec", "input", "tokens", "model", "pretrained", "layer", "format")  # in the first line already
COMPARED = 256  # random tokens
AGREES = 1e-3  # relative; a pre-activation that rounding moves over its threshold is one latent of one token


def described(source: str, left: Left) -> Iterator[str]:
    """What a SAE is, in lines."""
    path, known = locate(source)
    found = with_input(read(path, _answers(left), known), left.mean, left.std)
    sae = build(found).requires_grad_(False)
    config = found.config
    yield understood.line(config)
    rows = [("file", f"{found.file}, {size(found.file.stat().st_size)}")]
    rows.append(("parameters", f"{number(sum(t.numel() for t in sae.state_dict().values()))}"))
    rows.append(("decoder rows", f"length {_range(sae.W_dec.norm(dim=1))}"))
    rows.append(("b_dec", f"length {number(float(sae.b_dec.norm()))}"))
    if config.activation == "jumprelu":
        rows.append(("threshold", _range(sae.threshold)))
    rows += [(name, number(value)) for name, value in config.metadata.items() if name not in SAID]
    rows += [(f"not said: {name}", text) for name, text in found.unsaid.items()]
    rows += [("note", known.note)] if known is not None and known.note else []
    width = max(len(name) for name, _ in rows)
    yield from (f"  {name:<{width}}  {text}" for name, text in rows)


def opened(source: str, model: Model, left: LeftToImages) -> SparseAutoencoder:
    """The SAE, with what its file leaves open decided by options, or by images."""
    device = opening.device(model)
    if left.calibrate is None:
        return load_sae(
            source,
            device,
            subtract_b_dec=left.subtract_b_dec,
            k=left.k,
            threshold=left.threshold,
            mean=left.mean,
            std=left.std,
        )
    if left.mean is not None or left.std is not None:
        raise ValueError("--calibrate decides mean and std of the input; leave --mean and --std out, or --calibrate")
    path, known = locate(source)
    answers = _answers(left)
    config = read(path, answers, known).config
    clip, dataset, _ = opening.clip_and_images(model, Images(left.calibrate), config.metadata)
    sae, readings = calibrate(source, sae_check.some_tokens(clip, dataset, config), device, answers)
    for line in calibrated(readings):
        print(line)
    if not readings[0].fvu < 1:
        warnings.warn(f"{source}: no reading reconstructs these tokens better than their mean does", stacklevel=2)
    print(f"sae: {understood.line(sae.config)}", file=sys.stderr)
    return sae


def calibrated(readings: Sequence[Reading]) -> list[str]:
    """The figures of all readings, the one that is taken first."""
    if len(readings) == 1:
        return [f"calibrate: the file leaves nothing to decide; FVU {number(readings[0].fvu)}"]
    columns = zip(
        ["reading", *(reading.said for reading in readings)],
        ["FVU", *numbers(reading.fvu for reading in readings)],
        ["L0", *numbers(reading.l0 for reading in readings)],
        ["", "taken", *[""] * (len(readings) - 1)],
        strict=True,
    )
    return aligned(list(columns))


def table(fidelity: sae_check.Fidelity, config: SAEConfig) -> list[str]:
    """What was measured beside what the file promises."""
    promised = f"at most {config.k}" if config.k is not None else number(config.metadata.get("l0"))
    tokens = understood.TOKENS.get(str(config.metadata.get("tokens")), understood.TOKENS["all"])
    return [
        f"{number(fidelity.images)} images, {number(fidelity.tokens)} tokens ({tokens})",
        *aligned(
            [
                ("", "measured", "promised"),
                ("FVU", number(fidelity.fvu), NOTHING),
                ("L0", number(fidelity.l0), promised),
                ("dead latents", f"{number(100 * fidelity.dead)} %", _share(config.metadata.get("dead"))),
            ]
        ),
    ]


def convert(sae: SparseAutoencoder, out: Path, to: str, overwrite: bool) -> None:
    """Write, read again, compare.

    Raises ValueError where ``out`` is not empty, the format cannot hold the SAE, or what was written is another SAE.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; expected a directory to write into")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} is not empty; --overwrite writes into it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder) / "made"
        checkpoints.write(sae, made, to)
        apart = _apart(sae.cpu(), build(read(made)))
        if not apart <= AGREES:
            raise ValueError(f"{to} reads it as another SAE: reconstructions of random tokens are {apart:.2g} apart")
        _put(made, out)
    print(f"{out}: {to}; read again, and its reconstructions of random tokens are the same to {apart:.1g}, relative")


def _put(made: Path, out: Path) -> None:
    """Move what was made into a directory that holds no other weights, the largest file first."""
    files = sorted(made.iterdir(), key=lambda file: -file.stat().st_size)
    out.mkdir(exist_ok=True)
    others = [file for file in out.iterdir() if file.suffix in SUFFIXES and not (made / file.name).exists()]
    if others:
        raise ValueError(f"{out} holds other weights, {others[0].name}: choose another directory")
    for file in files:
        os.replace(file, out / file.name)


@torch.no_grad()
def _apart(one: SparseAutoencoder, other: SparseAutoencoder) -> float:
    """How far reconstructions of tokens of all lengths are apart, relative."""
    noise = torch.randn(COMPARED, one.config.d_in, generator=torch.Generator().manual_seed(0))
    tokens = one.b_dec + noise * torch.logspace(-2, 2, COMPARED)[:, None]
    expected = one(tokens)
    error = (other(tokens) - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-30)
    return float(error.mean())


def listed(words: Sequence[str]) -> list[str]:
    """The published SAEs whose line holds all words."""
    rows = [_row(entry) for entry in published()]
    kept = [row for row in rows if all(word.lower() in " ".join(row).lower() for word in words)]
    if not kept:
        raise ValueError(f"no published SAE has {' and '.join(map(repr, words))} in its line")
    head = ("name", "tower", "block", "tokens", "D", "S", "size", "licence", "where")
    return [
        *aligned([head, *kept]),
        f"{len(kept)} of {len(rows)}; `patchsae sae show NAME` downloads and describes one",
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(entry: Published) -> tuple[str, ...]:
    weights = f" {entry.pretrained}" if entry.pretrained else ""
    return (
        entry.name,
        f"{entry.model}{weights}",
        NOTHING if entry.layer is None else str(entry.layer),
        entry.tokens,
        str(entry.d_in),
        str(entry.d_sae),
        size(entry.size),
        entry.licence,
        entry.source or entry.where,
    )


def _answers(left: Left) -> Answers:
    return Answers(left.subtract_b_dec, left.k, left.threshold)


def _range(values: torch.Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _share(value: object) -> str:
    return f"{number(100 * value)} %" if isinstance(value, int | float) else NOTHING
