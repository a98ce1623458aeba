"""The files that a run leaves, written again while it goes on: one killed at any moment leaves what it had measured."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.gpu import report
from benches.gpu.records import stage_file
from benches.gpu.stages import STAGES
from patchsae.bench.findings import as_json, strict

FILES = ("results.json", "table.txt", "environment.json", "log.txt")
LIMIT = 15 << 20
"""Bytes of one file."""
EVERY = 1.0
"""Seconds between two writings."""


class Collection:
    """What the stages have written so far, as four files in ``folder``.

    Args:
        out: where the stages' files are.
        log: what the workers print.
        head: entries of the document that the whole run has: size, start and the like.
        names: the stages that are run.
    """

    def __init__(self, out: Path, folder: Path, log: Path, head: Mapping[str, Any], names: Sequence[str]) -> None:
        self.out, self.folder, self.log, self.head, self.names = out, folder, log, head, names
        self._started, self._next = time.time(), 0.0
        self._seen: tuple[tuple[str, int, int], ...] = ()

    def refresh(self) -> None:
        """Write the files if anything is new, and not too often."""
        if time.monotonic() < self._next:
            return
        paths = [path for path in (self.log, *(stage_file(self.out, s.name) for s in STAGES)) if path.exists()]
        seen = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
        if seen != self._seen:
            self.write()
            self._seen = seen
        self._next = time.monotonic() + EVERY

    def write(self) -> dict[str, Any]:
        """Write the files; returns the document."""
        whole = self.document()
        log = self.log.read_bytes().decode(errors="replace") if self.log.exists() else ""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip(FILES, (fitting(whole), drawn(whole), _environment(whole), log), strict=True):
            _put(self.folder, name, shortened(text))
        return whole

    def document(self) -> dict[str, Any]:
        """All stages that are run or have records, joined."""
        paths = {stage: stage_file(self.out, stage.name) for stage in STAGES}
        found = {stage: json.loads(path.read_text()) for stage, path in paths.items() if path.exists()}
        begun = {"seconds": 0.0, "finished": False, "records": []}
        entries = [
            {"stage": stage.name, "planned": stage.seconds if stage.name in self.names else 0.0}
            | {key: found.get(stage, begun)[key] for key in ("seconds", "finished")}
            for stage in STAGES
            if stage in found or stage.name in self.names
        ]
        return {
            **self.head,
            "seconds": round(time.time() - self._started, 1),
            "stages": entries,
            "records": [record for stage in found.values() for record in stage["records"]],
        }


def drawn(document: Mapping[str, Any]) -> str:
    """The table, or why there is none: a run does not end over it."""
    try:
        return report.table(document)
    except Exception:
        return f"the table could not be drawn, results.json is whole:\n{traceback.format_exc()}"


def fitting(document: Mapping[str, Any], limit: int = LIMIT) -> str:
    """The document as JSON of at most ``limit`` bytes: the largest data of records give way, and say so."""
    text = as_json(document)
    if len(text.encode()) <= limit:
        return text
    sizes = [len(json.dumps(strict(record["data"])).encode()) for record in document["records"]]
    largest = sizes.index(max(sizes))
    if "cut" in document["records"][largest]["data"]:
        return shortened(text, limit)
    records = list(document["records"])
    records[largest] = {**records[largest], "data": {"cut": f"{sizes[largest]} bytes are left out: the file is full"}}
    return fitting({**document, "records": records}, limit)


def shortened(text: str, limit: int = LIMIT) -> str:
    """``text`` in at most ``limit`` bytes of UTF-8: its middle gives way, and says so."""
    content = text.encode()
    if len(content) <= limit:
        return text
    half = limit // 2 - 100
    words = f"\n... {len(content) - 2 * half} bytes are left out ...\n"
    return content[:half].decode(errors="ignore") + words + content[-half:].decode(errors="ignore")


def _environment(document: Mapping[str, Any]) -> str:
    """The stage that says what ran, by item."""
    found = {record["name"]: record["data"] for record in document["records"] if record["stage"] == "environment"}
    return as_json(found)


def _put(folder: Path, name: str, text: str) -> None:
    """Replace a file whole. The temporary one lies beside the folder, for a killed writer leaves it."""
    for temporary in (folder.parent / f".{folder.name}.partial", folder / ".partial"):
        try:
            temporary.write_text(text)
            os.replace(temporary, folder / name)
        except OSError:  # the folder is a file system of its own, or all that may be written
            continue
        return
    raise OSError(f"{folder / name} cannot be written")
