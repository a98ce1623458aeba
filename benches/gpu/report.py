"""The text table, drawn from the JSON document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def table(document: Mapping[str, Any]) -> str:
    """Machine, stages, what went wrong, lines with their bars, designs."""
    records = document["records"]
    parts = [
        _machine(document),
        _stages(document),
        _wrong(records),
        _lines([r for r in records if "against" in r["data"]]),
        _designs([r for r in records if "milliseconds" in r["data"] and r["stage"] == "designs"]),
        _notes(records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def milliseconds(spread: Mapping[str, float]) -> str:
    """Median with its spread."""
    return f"{spread['median']:.3f} [{spread['p10']:.3f}, {spread['p90']:.3f}]"


def _machine(document: Mapping[str, Any]) -> str:
    rows = [f"patchsae kernels, size {document['size']}, {document['started']}, {document['seconds']} s"]
    for record in _of(document["records"], "environment"):
        data = record["data"]
        if "versions" in data:
            device = ", ".join(f"{key} {value}" for key, value in data["device"].items())
            versions = ", ".join(f"{key} {value}" for key, value in data["versions"].items())
            rows += [device, versions, f"commit {data['commit']}, source {data['source'][:16]}, TF32 {data['tf32']}"]
        elif "gb_per_s" in data:
            rows.append(f"{record['name']}: {data['gb_per_s']:.0f} GB/s")
        elif "tflop_per_s" in data:
            rows.append(f"{record['name']}: {data['tflop_per_s']:.1f} TFLOP/s")
    return "\n".join(rows)


def _stages(document: Mapping[str, Any]) -> str:
    rows = [("stage", "seconds", "passed", "failed", "error", "skipped", "")]
    for stage in document["stages"]:
        states = [r["status"] for r in _of(document["records"], stage["stage"])]
        counts = [str(states.count(state)) for state in ("passed", "failed", "error", "skipped")]
        rows.append((stage["stage"], f"{stage['seconds']:.1f}", *counts, "" if stage["finished"] else "not finished"))
    return _aligned(rows)


def _wrong(records: Sequence[Record]) -> str:
    rows = [("status", "stage", "what", "why")]
    rows += [
        (r["status"], r["stage"], r["name"], r["message"].replace("\n", " ")[:160])
        for r in records
        if r["status"] != "passed"
    ]
    return _aligned(rows) if len(rows) > 1 else "every check passed"


def _lines(records: Sequence[Record]) -> str:
    """One row for every opponent; the first of a line names ours."""
    if not records:
        return ""
    rows: list[tuple[str, ...]] = [("line (ours)", "ours ms", "peak MB", "against", "theirs ms", "ratio", "bar", "met")]
    for record in records:
        data = record["data"]
        ours = (
            f"{record['name']} ({data['ours']['precision']})",
            milliseconds(data["milliseconds"]["ours"]),
            f"{data['peak_mb']:.0f}",
        )
        for against in data["against"]:
            rows.append((*ours, *_against(against)))
            ours = ("", "", "")
    return _aligned(rows) + "\nratio: theirs / ours where the bar says faster, else ours / theirs"


def _against(against: Mapping[str, Any]) -> tuple[str, ...]:
    met = {None: "", True: "yes", False: "NO"}[against["met"]]
    name = f"{against['name']} ({against['precision']})"
    return name, milliseconds(against["milliseconds"]), f"{against['ratio']['median']:.3g}", against["bar"], met


def _designs(records: Sequence[Record]) -> str:
    if not records:
        return ""
    rows = [("what", "side (precision)", "ms")]
    for record in records:
        name = f"{record['name']} {record['data'].get('tile', '')}".strip()
        for side, spread in record["data"]["milliseconds"].items():
            rows.append((name, f"{side} ({record['data']['precision'][side]})", milliseconds(spread)))
            name = ""
    return _aligned(rows)


def _notes(records: Sequence[Record]) -> str:
    """Numbers that belong to no line."""
    named = ("inputs", "candidates of the exact encode")
    wanted = [r for r in records if r["name"] in named or (r["stage"] == "training" and "against" not in r["data"])]
    return "\n".join(
        f"{r['name']}: " + ", ".join(f"{key} {_number(value)}" for key, value in r["data"].items())
        for r in wanted
        if r["status"] == "passed" and r["data"]
    )


def _number(value: float | str | Mapping[str, float]) -> str:
    """A spread of milliseconds, a number, or a number that JSON has no sign for."""
    if isinstance(value, Mapping):
        return f"{milliseconds(value)} ms"
    return value if isinstance(value, str) else f"{value:.4g}"


def _of(records: Sequence[Record], stage: str) -> list[Record]:
    return [record for record in records if record["stage"] == stage]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
