"""How to make the files of a stage again: the command that made them, as far as the stage itself can still say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from shlex import quote
from typing import Any

from patchsae.disk import settings
from patchsae.disk.names import written

CONFIG = "config.toml"
VERBS = (
    *("train", "sweep", "evaluate", "extract", "classes", "mask"),
    *("adapt", "compare", "table", "correlate", "explain"),
)
"""The verbs that write stages, in the order of the experiment."""
GIVEN: ContextVar[tuple[str, ...] | None] = ContextVar("GIVEN", default=None)
"""What followed the verb on the command line; None where the library was called."""
_CELLS = {"sweep": "-saes", "table": "-cells"}  # endings of the runs in which a verb keeps its many stages
_PLACES = ("--run", "--name", "--out")  # said anew, by where the stage lies
_MODES = ("--overwrite", "--resume")
_LONGEST = 4000


def options() -> list[str] | None:
    """The options of the command line for a stage to remember, without those that say where it is."""
    given = GIVEN.get()
    return None if given is None else [written(word) for word in _kept(given)]


def again(folder: Path) -> str:
    """A sentence with the command that makes the files of a stage again.

    Of what the stage says, the verb is one of ours, and options are quoted, of this verb alone, and lead nowhere else.
    """
    verb, said = _said(folder)
    how = "makes it again" if said is not None else "with the options it had, makes it again"
    given = "".join(f" {quote(word)}" for word in said or ())
    if verb is None:
        return "The verb that made it, with --overwrite and the options it had, makes it again"
    if verb == "cache":
        return f"`patchsae cache --out {quote(str(folder))}{given} --overwrite`, {how}"
    run, name, overwrite = folder.parent, folder.name, " --overwrite"
    if run.name.endswith(_CELLS.get(verb, "/")):  # one of many that a verb makes
        run, name, overwrite = run.parent, run.name.removesuffix(_CELLS[verb]), ""
        how += f" once {folder} is removed"
    if verb == "compare" and (run / name.removesuffix("-test") / CONFIG).exists():  # it makes two
        name = name.removesuffix("-test")
    if verb == "explain":  # which always makes it again
        overwrite = ""
    named = "" if name == verb else f" --name {quote(name)}"
    return f"`patchsae {verb} --run {quote(str(run))}{named}{given}{overwrite}`, {how}"


def verb_of(folder: Path) -> str | None:
    """The verb that makes a stage, as the stage says, or its name where it says nothing; None for none of ours."""
    return _said(folder)[0]


def _said(folder: Path) -> tuple[str | None, list[str] | None]:
    """Verb and options of a stage by its settings, the verb else by its name; None for what is none of ours."""
    about: Any = {}
    with suppress(OSError, ValueError, AttributeError, RecursionError):  # the settings may be what is damaged
        about = settings.read(folder / CONFIG).get("environment")
    about = about if isinstance(about, dict) else {}
    verb, said = about.get("verb", folder.name.split("-")[0]), about.get("options")
    if not isinstance(said, list) or not all(isinstance(word, str) for word in said) or sum(map(len, said)) > _LONGEST:
        said = None
    options = None if said is None else [written(word) for word in _kept(said)]
    return verb if verb in (*VERBS, "cache") else None, options


def _kept(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line without its places and modes."""
    skip = False
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        if not skip and option not in (*_PLACES, *_MODES):
            yield word
        skip = not skip and word in _PLACES
