"""Names that were promised once go on working, at their place of today."""

import importlib
import subprocess
import sys

import pytest

import patchsae

MOVED = {
    "patchsae.adapting": "patchsae.adapt",
    "patchsae.adapting.trainer": "patchsae.adapt.trainer",
    "patchsae.experiments.adaptation": "patchsae.experiments.compare",
    "patchsae.experiments.correlation": "patchsae.experiments.correlate",
    "patchsae.experiments.masking": "patchsae.experiments.mask",
    "patchsae.maple": "patchsae.adapters.maple",
    "patchsae.training.parallel": "patchsae.parallel",
}


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_module_that_moved_is_one_module_under_both_names(old, new):
    assert importlib.import_module(old) is importlib.import_module(new)
    package, _, name = old.rpartition(".")
    assert getattr(importlib.import_module(package), name) is sys.modules[new]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["old", "new"])
def test_it_does_not_matter_which_name_comes_first_and_nobody_is_warned(first):
    packages = [(old, new) for old, new in MOVED.items() if new.count(".") == 1 or new.endswith(("compare", "mask"))]
    pairs = packages if first == "old" else [(new, old) for old, new in packages]
    code = f"""
import importlib
for first, second in {pairs!r}:
    assert importlib.import_module(first) is importlib.import_module(second), first
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name",
    [
        "SAEConfig SplitCLIP SparseAutoencoder load_adapter load_clip load_image load_maple load_sae open_images steer",
        "Job Run",
        "experiments.extract.run experiments.classes.run experiments.mask.run experiments.compare.run",
        "experiments.masking.run experiments.adaptation.run experiments.correlation.run experiments.evaluate.run",
        "experiments.table.run experiments.explain.run experiments.correlate.run training.losses.patchsae_loss",
        "adapting.run.adapt maple.load_maple training.parallel.open_parallel parallel.open_parallel report.build",
    ],
)
def test_promised_names_are_reached_from_the_package(name):
    for dotted in name.split():
        found = patchsae
        for part in dotted.split("."):
            found = getattr(found, part)
        assert callable(found)


def test_what_is_no_name_is_an_attribute_error_and_what_is_one_is_listed():
    assert not hasattr(patchsae, "no_such_name")
    assert not hasattr(patchsae.experiments, "no_such_name")
    assert {"load_clip", "experiments", "training"} <= set(dir(patchsae))
    assert {"extract", "mask", "stream"} <= set(dir(patchsae.experiments))
