"""report.html of a run: the sections of its stages in one file that needs no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from patchsae.disk import atomic
from patchsae.disk.again import VERBS
from patchsae.disk.checksums import DamagedFile
from patchsae.disk.locks import FolderLock
from patchsae.disk.runs import Run, Stage
from patchsae.report import elements, figures
from patchsae.report.markup import render
from patchsae.report.section import FILE

_NAME = "report.html"
_GENERATOR = b'<meta name="generator" content="patchsae">'  # as page.html.j2 writes it


def build(run: Run) -> Path:
    """Write root/report.html anew from what the stages have left so far, atomically; returns its path.

    Stages come in the order of the experiment, any others after them by name. FileExistsError if a report.html that
    patchsae did not write is in the way.
    """
    path = run.root / _NAME
    run.root.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(run.root, wait=True)
    try:
        atomic.remove_partial(run.root)
        _refuse_foreign(path)
        atomic.write_text(path, _page(run))
    finally:
        lock.release()
    return path


def _refuse_foreign(path: Path) -> None:
    if path.exists():
        with path.open("rb") as file:
            if _GENERATOR not in file.read(2000):
                raise FileExistsError(f"{path} was not written by patchsae; move it away")


def _page(run: Run) -> str:
    stages = sorted(run.stages(), key=lambda stage: (_rank(stage.name), stage.name))
    sections = [_content(stage) for stage in stages if (stage.path / f"{FILE}.json").exists()]
    css = resources.files("patchsae.report").joinpath("page.css").read_text(encoding="utf-8")
    style = Markup(figures.css() + css)
    return figures.number_ids(render("page", run.root.resolve().name, style, _states(stages), _told_apart(sections)))


def _content(stage: Stage) -> dict[str, Any]:
    """What a stage left for the report; where that is damaged, the report of the others says so."""
    about = {"name": stage.name, "finished": stage.finished, "settings": _settings(stage)}
    try:
        with stage.understanding():
            content = stage.load_json(FILE)
            headings, html = _with_anchors(stage, content["headings"], str(content["html"]))
            return {**about, "title": str(content["title"]), "headings": headings, "html": html}
    except DamagedFile as error:
        return {**about, "title": stage.name, "headings": [], "html": render("paragraph", str(error), "note")}


def _with_anchors(stage: Stage, headings: list[tuple[str, str]], html: str) -> tuple[list[tuple[str, str]], Markup]:
    """Headings and HTML with ids of their own; what verbs wrote is unique within a section alone.

    No stage's name holds a colon, so none is called like a heading.
    """
    anchored = []
    for number, (written, text) in enumerate(headings, start=1):
        anchor = f"{stage.name}:{number}"
        html = html.replace(f' id="{written}"', f' id="{anchor}"', 1)
        anchored.append((anchor, str(text)))
    return anchored, Markup(html)


def _rank(name: str) -> int:
    """Place of a stage; "compare-test" and other names of one's own stand with the verb that they begin with."""
    verb = name.split("-")[0]
    return VERBS.index(verb) if verb in VERBS else len(VERBS)


def _told_apart(sections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages' names beside titles that occur more than once."""
    counts = Counter(section["title"] for section in sections)
    return [
        {**section, "title": f"{section['title']} ({section['name']})"} if counts[section["title"]] > 1 else section
        for section in sections
    ]


def _states(stages: list[Stage]) -> Markup:
    if not stages:
        return render("paragraph", "No stage has run yet.")
    states = {
        "stage": [stage.name for stage in stages],
        "state": ["finished" if stage.finished else "unfinished" for stage in stages],
    }
    for key in ("device", "git_commit"):
        values = [stage.environment.get(key) for stage in stages]
        if any(values):
            states[key.replace("git_", "")] = [str(value or "–")[:12] for value in values]
    return elements.table(states, "The stages of this run.")


def _settings(stage: Stage) -> Markup:
    rows = [*_flat(stage.config or {}), *_flat(stage.environment)]
    columns = {"setting": [key for key, _ in rows], "value": [_verbatim(value) for _, value in rows]}
    return elements.table(columns, f"config.toml of {stage.name}.")


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _verbatim(value: Any) -> str:
    """Settings are copied by readers: no rounding, no thousands separators."""
    return value if isinstance(value, str) else repr(value)
