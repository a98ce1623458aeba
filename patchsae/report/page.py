"""report.html of a run: the sections of its stages in one file that needs no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from patchsae.disk import atomic
from patchsae.disk.again import VERBS
from patchsae.disk.checksums import DamagedFile
from patchsae.disk.locks import FolderLock
from patchsae.disk.runs import Run, Stage
from patchsae.report import elements, figures
from patchsae.report.section import FILE
from patchsae.report.text import escape

_NAME = "report.html"
_GENERATOR = '<meta name="generator" content="patchsae">'
# Even a mistake elsewhere could not make the page load anything
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
            if _GENERATOR.encode() not in file.read(2000):
                raise FileExistsError(f"{path} was not written by patchsae; move it away")


def _page(run: Run) -> str:
    stages = sorted(run.stages(), key=lambda stage: (_rank(stage.name), stage.name))
    sections = [(stage, _content(stage)) for stage in stages if (stage.path / f"{FILE}.json").exists()]
    name = run.root.resolve().name
    css = resources.files("patchsae.report").joinpath("page.css").read_text(encoding="utf-8")
    sections = _told_apart(sections)
    main = [_overview(name, stages), *(_section(stage, content) for stage, content in sections)]
    body = figures.number_ids("\n".join(main))
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_GENERATOR}',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(name)} · PatchSAE</title>",
            f"<style>\n{figures.css()}{css}</style>\n</head>\n<body>",
            _contents(sections),
            f"<main>\n{body}\n</main>\n</body>\n</html>\n",
        ]
    )


def _content(stage: Stage) -> dict[str, Any]:
    """What a stage left for the report; where that is damaged, the report of the others says so."""
    try:
        with stage.understanding():
            content = stage.load_json(FILE)
            return {
                "title": str(content["title"]),
                "headings": [(str(a), str(b)) for a, b in content["headings"]],
                "html": str(content["html"]),
            }
    except DamagedFile as error:
        return {"title": stage.name, "headings": [], "html": elements.paragraph(str(error), "note")}


def _rank(name: str) -> int:
    """Place of a stage; "compare-test" and other names of one's own stand with the verb that they begin with."""
    verb = name.split("-")[0]
    return VERBS.index(verb) if verb in VERBS else len(VERBS)


def _contents(sections: list[tuple[Stage, dict[str, Any]]]) -> str:
    entries = []
    for stage, content in sections:
        headings = enumerate(content["headings"], start=1)
        inner = "".join(f"<li>{_link(_anchor(stage, number), text)}</li>" for number, (_, text) in headings)
        entries.append(f"<li>{_link(stage.name, content['title'])}{f'<ol>{inner}</ol>' if inner else ''}</li>")
    return f'<nav aria-label="Contents"><p>Contents</p><ol>{"".join(entries)}</ol></nav>'


def _link(anchor: str, text: str) -> str:
    shown = escape(text)
    return f'<a href="#{escape(anchor)}" title="{shown}">{shown}</a>'


def _anchor(stage: Stage, number: int) -> str:
    """The id of a stage's n-th heading; no stage's name holds a colon, so none is called that."""
    return f"{stage.name}:{number}"


def _told_apart(sections: list[tuple[Stage, dict[str, Any]]]) -> list[tuple[Stage, dict[str, Any]]]:
    """The stages' names beside titles that occur more than once."""
    counts = Counter(content["title"] for _, content in sections)
    return [
        (stage, {**content, "title": f"{content['title']} ({stage.name})"} if counts[content["title"]] > 1 else content)
        for stage, content in sections
    ]


def _with_anchors(stage: Stage, content: Mapping[str, Any]) -> str:
    """The section's HTML with ids of its own; what verbs wrote is unique within a section alone."""
    markup: str = content["html"]
    for number, (anchor, _) in enumerate(content["headings"], start=1):
        markup = markup.replace(f' id="{anchor}"', f' id="{_anchor(stage, number)}"', 1)
    return markup


def _overview(name: str, stages: list[Stage]) -> str:
    states = {"stage": [stage.name for stage in stages], "state": [_state(stage) for stage in stages]}
    for key in ("device", "git_commit"):
        values = [stage.environment.get(key) for stage in stages]
        if any(values):
            states[key.replace("git_", "")] = [str(value or "–")[:12] for value in values]
    table = elements.table(states, "The stages of this run.") if stages else elements.paragraph("No stage has run yet.")
    kicker = elements.paragraph("PatchSAE · experiment report", "kicker")
    return f"<header>{kicker}<h1>{escape(name)}</h1>{elements.details('Stages of this run', table)}</header>"


def _state(stage: Stage) -> str:
    return "finished" if stage.finished else "unfinished"


def _section(stage: Stage, content: Mapping[str, Any]) -> str:
    unfinished = (
        "" if stage.finished else elements.paragraph("This stage has not finished; what follows is partial.", "note")
    )
    heading = elements.heading(content["title"], 2, stage.name)
    return f"<section>\n{heading}\n{unfinished}{_with_anchors(stage, content)}\n{_settings(stage)}\n</section>"


def _settings(stage: Stage) -> str:
    rows = [*_flat(stage.config or {}), *_flat(stage.environment)]
    columns = {"setting": [key for key, _ in rows], "value": [_verbatim(value) for _, value in rows]}
    return elements.details("Settings and versions", elements.table(columns, f"config.toml of {stage.name}."))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _verbatim(value: Any) -> str:
    """Settings are copied by readers: no rounding, no thousands separators."""
    return value if isinstance(value, str) else repr(value)
