"""What a second run takes over from the results of a first one, so that it goes on instead of starting again.

A record is taken over if it passed (a bar may have been missed) and everything it was measured with is as it was: the
hash of `benches.gpu.sources` over its stage, over the modules of the kernels that it started and of the host code that
started them, with all that these import, and over the modules of `patchsae_kernels` on top. So a mended kernel
measures again what runs it, and leaves the rest. The environment and Triton's cache are of this machine and always
made anew. Results of another device, version or size are refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.gpu import sources
from benches.gpu.records import PASSED, stage_file, write_json
from benches.gpu.stages import STAGES

ANEW = ("environment", "warm")
"""Stages of which nothing is taken over."""
Document = Mapping[str, Any]


class Refused(ValueError):
    """Results that this run cannot go on with; the message says why."""


def read(path: Path) -> dict[str, Any]:
    """The document of an earlier run; Refused where it is none."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}") from error
    if not isinstance(document, dict) or not {"size", "started", "stages", "records"} <= document.keys():
        raise Refused(f"{path} is no results.json of benches.gpu")
    return document


def compare(document: Document, size: str, machine: Mapping[str, str]) -> None:
    """Refused where the document was not measured on a machine like ``machine``, at ``size``; names each difference."""
    made = {**_machine_of(document), "size": document["size"]}
    different = [
        f"{name} is {now}, the earlier run's was {made.get(name, 'not recorded')}"
        for name, now in {**machine, "size": size}.items()
        if made.get(name) != now
    ]
    if different:
        raise Refused("results of another setting cannot be gone on with: " + "; ".join(different))


def this_machine(device: str) -> dict[str, str]:
    """Device, torch and triton as the worker will see them; asked in a process of its own, which alone may hang."""
    command = [sys.executable, "-m", "benches.gpu.stages.environment", device]
    try:
        done = subprocess.run(command, cwd=sources.ROOT, capture_output=True, text=True, timeout=90, check=True)
    except subprocess.SubprocessError as error:
        raise Refused(f"device {device} does not answer: {getattr(error, 'stderr', None) or error}") from error
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def take(document: Document, out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Write the stage files of a new run as if an earlier worker had left them there with what still holds.

    Args:
        names: the stages that will run. Others count as finished if they were and all of their records hold.

    Returns:
        When the earlier run ``started``, how many of its records are ``taken`` and how many ``left``.
    """
    taken = total = 0
    finished = {stage["stage"] for stage in document["stages"] if stage["finished"]}
    for stage in STAGES:
        before = [record for record in document["records"] if record["stage"] == stage.name]
        held = [_marked(record, document) for record in before if _holds(record)]
        total, taken = total + len(before), taken + len(held)
        if held:
            whole = stage.name in finished and stage.name not in names and len(held) == len(before)
            content = {"stage": stage.name, "seconds": 0.0, "finished": whole, "running": "", "records": held}
            write_json(stage_file(out, stage.name), content)
    return {"started": document["started"], "taken": taken, "left": total - taken}


def _holds(record: Mapping[str, Any]) -> bool:
    if record["stage"] in ANEW or record["status"] != PASSED or "cut" in record["data"]:
        return False
    return bool(record.get("digest")) and sources.digest(record["stage"], record["sources"]) == record["digest"]


def _marked(record: Mapping[str, Any], document: Document) -> dict[str, Any]:
    return {**record, "taken_from": record.get("taken_from") or document["started"]}


def _machine_of(document: Document) -> dict[str, Any]:
    for record in document["records"]:
        if record["stage"] == "environment" and "versions" in record["data"]:
            data = record["data"]
            versions = {name: data["versions"][name] for name in ("torch", "triton")}
            return {"device": data["device"]["name"], **versions}
    raise Refused("the earlier run's results do not say on which machine they were measured")
