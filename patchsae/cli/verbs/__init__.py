"""The verbs, one function each, in files by family; nothing heavy is imported before it is needed."""

from collections.abc import Callable

from patchsae.cli.verbs.adapting import adapt, tinyclip
from patchsae.cli.verbs.comparing import compare, correlate, table
from patchsae.cli.verbs.reading import classes, evaluate, explain, extract, mask
from patchsae.cli.verbs.saes import sae_check, sae_convert, sae_list, sae_show
from patchsae.cli.verbs.tools import bench, check, data_check, doctor
from patchsae.cli.verbs.training import cache, sweep, train

VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "sweep": sweep,
    "cache": cache,
    "evaluate": evaluate,
    "extract": extract,
    "classes": classes,
    "mask": mask,
    "adapt": adapt,
    "compare": compare,
    "table": table,
    "correlate": correlate,
    "explain": explain,
    "sae show": sae_show,
    "sae check": sae_check,
    "sae convert": sae_convert,
    "sae list": sae_list,
    "check": check,
    "data check": data_check,
    "tinyclip": tinyclip,
    "bench": bench,
    "doctor": doctor,
}

TOGETHER = ("train", "sweep", "evaluate", "extract", "mask", "compare")
"""Verbs that several processes of `torchrun` can share."""
PRESET = ("train", "sweep")
"""Verbs that take --preset, whose keys are the options of their dataclasses without `shared.PLAIN`."""
