"""The training part of the report."""

from __future__ import annotations

from typing import Any

from patchsae.disk.runs import Stage
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section
from patchsae.report.plots import training_curves
from patchsae.training.checkpoint import TrainState
from patchsae.training.config import TrainConfig
from patchsae.words import counted, percent

TABLE_ROWS = 12
COLUMNS = {
    "step": "step",
    "images": "images",
    "mse": "MSE",
    "l1_norm": "L1",
    "ghost": "dead-latent term",
    "l0": "L0",
    "explained_variance": "explained variance",
    "dead": "dead share",
    "images_per_s": "images/s",
}


def training_section(stage: Stage, config: TrainConfig, sae: SparseAutoencoder, state: TrainState) -> Section:
    """What was trained on what, how the losses went, and which images were left out."""
    rows = stage.metrics()
    last = rows[-1] if rows else {}
    origin = sae.config.metadata
    section = Section(
        "Training",
        f"A sparse autoencoder ({config.variant}) of {sae.config.d_sae:,} latents on the residual stream (width "
        f"{sae.config.d_in:,}) after block {origin['layer']} of {origin['model']}, trained for "
        f"{counted(state.step, 'step')} on {counted(state.images, 'image')} of {origin['dataset']}, {_tokens(config)}.",
    )
    measured = [key for key in COLUMNS if key not in ("step", "images") and last.get(key) is not None]
    section.facts({COLUMNS[key]: percent(last[key]) if key == "dead" else last[key] for key in measured})
    if rows:
        section.figure(training_curves(rows), "Training, step by step. Each point is one batch.")
        shown = _spread(rows)
        section.table(
            {name: [row[key] for row in shown] for key, name in COLUMNS.items()},
            "Some steps of metrics.jsonl. L1 is without its coefficient; explained variance is about the batch's mean; "
            f"a latent is dead after more than {config.dead_window:,} steps without firing.",
        )
    if state.bad:
        section.text(f"{counted(len(state.bad), 'image')} could not be decoded and left out:")
        section.table({"image": [b.id for b in state.bad], "reason": [b.reason for b in state.bad]}, "Images left out.")
    return section


def _tokens(config: TrainConfig) -> str:
    if config.cls_only:
        return "their CLS tokens alone"
    if config.tokens_per_image is not None:
        return f"{counted(config.tokens_per_image, 'random token')} of each"
    return "all tokens alike"


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most TABLE_ROWS of `rows`, evenly spaced, with the first and the last."""
    if len(rows) <= TABLE_ROWS:
        return rows
    return [rows[round(i * (len(rows) - 1) / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]
