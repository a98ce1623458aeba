"""Options: every wrong value is named, and reading them loads no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patchsae.experiments.classes.options import ClassesOptions
from patchsae.experiments.compare.options import CompareOptions
from patchsae.experiments.evaluate.options import EvaluateOptions
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.mask.options import MaskOptions
from patchsae.experiments.options import DisplayOptions, StreamOptions


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (StreamOptions, {"batch_size": 0}),
        (StreamOptions, {"workers": -1}),
        (StreamOptions, {"on_bad_image": "ignore"}),
        (StreamOptions, {"save_minutes": -1.0}),
        (DisplayOptions, {"show_images": 0}),
        (ExtractOptions, {"threshold": -0.1}),
        (ExtractOptions, {"top": 0}),
        (ExtractOptions, {"batch_size": 0}),
        (ExtractOptions, {"show_latents": -1}),
        (EvaluateOptions, {"batch_size": 0}),
        (EvaluateOptions, {"dense_above": 1.5}),
        (EvaluateOptions, {"seed": -1}),
        (ClassesOptions, {"seed": -1}),
        (ClassesOptions, {"common_top": 0}),
        (MaskOptions, {"ks": (5, 0)}),
        (MaskOptions, {"rankings": ()}),
        (MaskOptions, {"budget_mb": 0}),
        (CompareOptions, {"top": 0}),
    ],
)
def test_a_wrong_value_is_named(options, wrong) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is ") as error:
        options(**wrong)
    assert repr(value) in str(error.value)


def test_reading_the_options_loads_no_torch() -> None:
    program = "import sys, patchsae.experiments.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
