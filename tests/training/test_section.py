"""What the report says of a training."""

from __future__ import annotations

from types import SimpleNamespace

from patchsae.training.config import TrainConfig
from patchsae.training.section import training_section

ROW = {"step": 1, "images": 1, "mse": 0.25, "l1_norm": None, "ghost": 0.0, "l0": 5.0, "explained_variance": 0.5}


def section_of(rows: list[dict]) -> str:
    origin = {"layer": 2, "model": "tiny", "dataset": "shapes"}
    sae = SimpleNamespace(config=SimpleNamespace(metadata=origin, d_sae=96, d_in=12))
    state = SimpleNamespace(step=1, images=1, bad=[])
    return training_section(SimpleNamespace(metrics=lambda: rows), TrainConfig(), sae, state).html  # type: ignore[arg-type]


def test_what_is_not_defined_is_no_headline_and_one_is_singular() -> None:
    html = section_of([ROW | {"dead": 0.0009766, "images_per_s": 7.5}])
    headlines = html[html.index('<dl class="facts">') : html.index("</dl>")]
    assert "<dt>MSE</dt>" in headlines
    assert "<dt>L1</dt>" not in headlines
    assert ">0.1%</dd>" in headlines  # the share of dead latents
    assert "trained for 1 step on 1 image of shapes" in html
