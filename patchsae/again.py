"""How to make the files of a stage again: the command, as far as the stage itself can still say."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from shlex import quote

from patchsae import settings

CONFIG = "config.toml"
VERBS = (
    *("train", "sweep", "evaluate", "extract", "classes", "mask"),
    *("adapt", "compare", "table", "correlate", "explain"),
)
"""The verbs that write stages, in the order of the experiment."""
_CELLS = {"sweep": "-saes", "table": "-cells"}  # endings of the runs in which a verb keeps its many stages


def again(folder: Path) -> str:
    """A sentence with the command that makes the files of a stage again; of what the stage says only a verb is used."""
    verb = _verb(folder)
    options = "with the options it had, makes it again"
    if verb is None:
        return "The verb that made it, with --overwrite and the options it had, makes it again"
    if verb == "cache":
        return f"`patchsae cache --out {quote(str(folder))} --overwrite`, {options}"
    run, name, overwrite = folder.parent, folder.name, " --overwrite"
    if run.name.endswith(_CELLS.get(verb, "/")):  # one of many that a verb makes
        run, name, overwrite = run.parent, run.name.removesuffix(_CELLS[verb]), ""
        options += f" once {folder} is removed"
    if verb == "explain":  # which always makes it again
        overwrite = ""
    named = "" if name == verb else f" --name {quote(name)}"
    return f"`patchsae {verb} --run {quote(str(run))}{named}{overwrite}`, {options}"


def _verb(folder: Path) -> str | None:
    """The verb in the stage's settings, or the one that its name begins with; None for any other word."""
    said = None
    with suppress(OSError, ValueError, AttributeError, RecursionError):  # the settings may be what is damaged
        said = settings.read(folder / CONFIG).get("environment", {}).get("verb")
    if not isinstance(said, str):
        said = folder.name.split("-")[0]
    return said if said in (*VERBS, "cache") else None
