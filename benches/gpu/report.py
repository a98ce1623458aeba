"""The text table, drawn from the JSON document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def table(document: Mapping[str, Any]) -> str:
    """Machine, stages, what went wrong, lines with their bars, designs, and the missed bars last."""
    records = document["records"]
    lines = [r for r in records if "against" in r["data"]]
    parts = [
        _machine(document),
        _stages(document),
        _wrong(records),
        _lines(lines),
        _designs([r for r in records if "milliseconds" in r["data"] and r["stage"] == "designs"]),
        _profiles(records),
        _notes(records),
        _missed(lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def milliseconds(spread: Mapping[str, float]) -> str:
    """Median with its spread."""
    return f"{spread['median']:.3f} [{spread['p10']:.3f}, {spread['p90']:.3f}]"


def _machine(document: Mapping[str, Any]) -> str:
    rows = [f"patchsae kernels, size {document['size']}, {document['started']}, {document['seconds']} s"]
    if "earlier" in document:
        earlier = document["earlier"]
        rows.append(f"taken over from {earlier['started']}: {earlier['taken']} records; not: {earlier['left']}")
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
    rows = [("stage", "planned s", "took s", "passed", "failed", "error", "skipped", "")]
    for stage in document["stages"]:
        states = [r["status"] for r in _of(document["records"], stage["stage"])]
        counts = [str(states.count(state)) for state in ("passed", "failed", "error", "skipped")]
        times = f"{stage['planned']:.0f}", f"{stage['seconds']:.1f}"
        rows.append((stage["stage"], *times, *counts, "" if stage["finished"] else "not finished"))
    planned, took = (sum(stage[key] for stage in document["stages"]) for key in ("planned", "seconds"))
    return _aligned([*rows, ("all", f"{planned:.0f}", f"{took:.1f}", *[""] * 5)])


def _wrong(records: Sequence[Record]) -> str:
    """What did not pass; items of one stage that were skipped for one reason share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for r in records:
        if r["status"] != "passed":
            alone = r["name"] if r["status"] != "skipped" else ""
            rows.setdefault((r["status"], r["stage"], alone, _line(r["message"])), []).append(r["name"])
    if not rows:
        return "every check passed"
    named = [(*row[:2], names[0] + _others(len(names) - 1), row[3]) for row, names in rows.items()]
    return _aligned([("status", "stage", "what", "why"), *named])


def _line(text: str) -> str:
    return text.replace("\n", " ")[:160]


def _others(count: int) -> str:
    return f" and {count} others" if count > 1 else " and another" if count else ""


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


def _missed(records: Sequence[Record]) -> str:
    """The bars that were missed, the one that costs most time first."""
    judged = [(r, a) for r in records for a in r["data"]["against"] if a["met"] is not None]
    missed = sorted((pair for pair in judged if not pair[1]["met"]), key=lambda pair: -float(pair[1]["lost_us"]))
    if not missed:
        return f"missed bars: none of {len(judged)} measured"
    rows = [("us lost", "us allowed", "line (ours)", "against", "ratio", "bar")]
    for record, against in missed:
        ours = 1e3 * record["data"]["milliseconds"]["ours"]["median"]
        name, _, ratio, bar, _ = _against(against)
        line = f"{record['name']} ({record['data']['ours']['precision']})"
        lost = float(against["lost_us"])
        rows.append((f"{lost:.0f}", f"{ours - lost:.0f}", line, name, ratio, bar))
    return f"missed bars: {len(missed)} of {len(judged)} measured\n" + _aligned(rows)


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


def _profiles(records: Sequence[Record]) -> str:
    """The kernels inside one call, the longest first."""
    rows = [("what", "us a call", "launches", "kernel")]
    for record in records:
        name = record["name"]
        for kernel, spent in list(record["data"].get("microseconds", {}).items())[:12]:
            rows.append((name, f"{spent['time']:.1f}", f"{spent['launches']:.4g}", kernel[:100]))
            name = ""
    return _aligned(rows) if len(rows) > 1 else ""


def _notes(records: Sequence[Record]) -> str:
    """Numbers that belong to no line."""
    named = ("inputs", "candidates of the exact encode", "kernels compiled ahead")
    wanted = [r for r in records if r["name"] in named or (r["stage"] == "training" and "against" not in r["data"])]
    return "\n".join(
        f"{r['name']}: " + ", ".join(f"{key} {_number(value)}" for key, value in _numbers(r["data"]))
        for r in wanted
        if r["status"] == "passed" and r["data"]
    )


def _numbers(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in data.items() if not isinstance(value, (list, tuple))]


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
