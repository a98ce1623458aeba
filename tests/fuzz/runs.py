"""Attacks on what a run holds: any file of any stage damaged, forged or swapped, then read by what reads it.

Laws: a damaged file is `DamagedFile`, which names it, in a second; forged ones (whose checksums were forged too) are
refused by name or read as something consistent; nothing outside of the run changes; memory stays small.
"""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from patchsae import load_sae, report
from patchsae.cli import check
from patchsae.disk import checksums
from patchsae.disk.runs import Run
from patchsae.errors import PatchsaeError
from patchsae.experiments.classes import Rankings
from patchsae.experiments.classes.experiment import rankings
from patchsae.experiments.extract import Extraction
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests.fuzz.memory import at_most

MEMORY = 100e6  # bytes that no small file may take
ERRORS = (PatchsaeError, ValueError, OSError)


@functools.cache
def _template() -> Path:
    """A finished run in miniature: train, extract, classes."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-")) / "run"
    draw = torch.Generator().manual_seed(0)
    with Run(root).stage("train", "train") as stage:
        stage.begin({"lr": 1, "images": "shapes"})
        sae = SparseAutoencoder(SAEConfig(4, 6), draw)
        for name in ("sae.safetensors", "config.json"):
            stage.own(name)
        sae.save(stage.path)
        for step in range(5):
            stage.append_metrics({"step": step, "mse": 1 / (step + 1)})
        section = report.Section("Training", "A lead.")
        section.table({"a": [1, 2]}, "A table.")
        section.write(stage)
        stage.finish()
    extraction = _extraction(draw)
    with Run(root).stage("extract", "extract") as stage:
        stage.begin({"threshold": 0.2})
        extraction.save(stage)
        stage.write_table("latents.parquet", {"latent": list(range(6)), "name": list("abcdef")})
        stage.write_table("latents.csv", {"latent": list(range(6)), "name": list("abcdef")})
        stage.finish()
    with Run(root).stage("classes", "classes") as stage:
        stage.begin({"extract": "extract"})
        found = rankings(extraction)
        stage.save_tensors("rankings", found.ranks)
        stage.save_json("classes", {"classnames": found.classnames, "made_from": found.made_from})
        stage.finish()
    return root


def _extraction(draw: torch.Generator) -> Extraction:
    from patchsae.experiments.stream.accumulators import TopImagesResult, TopPatchesResult

    def ints(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=draw)

    s, n, c = 6, 3, 2
    return Extraction(
        images=10,
        tokens_per_image=5,
        threshold=0.2,
        classnames=("cat", "dog"),
        sums=torch.rand(s, generator=draw, dtype=torch.float64),
        counts=ints(20, s),
        image_counts=ints(10, s),
        class_counts=ints(10, c, s),
        class_images=ints(10, c),
        top_images=TopImagesResult(torch.rand(s, n, generator=draw), ints(10, s, n)),
        top_patches=TopPatchesResult(torch.rand(s, n, generator=draw), ints(10, s, n), ints(5, s, n)),
        top_labels=ints(c, s, n),
        made_from={"dataset": {"name": "d", "images": 10, "fingerprint": "f"}},
    )


@contextmanager
def _copied() -> Iterator[tuple[Path, Path]]:
    """A copy of the run, beside something precious."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        outside = Path(folder) / "outside"
        outside.mkdir()
        (outside / "precious").write_text("kept")
        shutil.copytree(_template(), Path(folder) / "run", symlinks=True)
        yield Path(folder) / "run", outside
        assert [path.name for path in outside.iterdir()] == ["precious"], "something outside of the run was touched"
        assert (outside / "precious").read_text() == "kept", "a file outside of the run was changed"


def _readers(root: Path) -> dict[str, Callable[[], Any]]:
    train, extract, classes = (Run(root).stage(name) for name in ("train", "extract", "classes"))
    return {
        "sae": lambda: load_sae(train.path, "cpu").state_dict(),
        "metrics": train.metrics,
        "config": lambda: [train.config, extract.config, classes.config],
        "extraction": lambda: Extraction.load(extract),
        "rankings": lambda: Rankings.load(classes),
        "parquet": lambda: extract.read_table("latents.parquet"),
        "csv": lambda: extract.read_table("latents.csv"),
        "check": lambda: check.check(root),
        "report": lambda: report.build(Run(root)),
        "resume": lambda: Run(root).stage("train").begin({"lr": 1, "images": "shapes"}),
        "overwrite": lambda: Run(root).stage("train").begin({"lr": 2}, overwrite=True),
    }


def _read(root: Path, name: str) -> Any:
    """What a reader gives, or None where it refuses; anything but a message is a finding."""
    try:
        with at_most(MEMORY, name), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            return _readers(root)[name]()
    except ERRORS as error:
        _judge(name, str(error), root)
        return None


def _judge(name: str, message: str, root: Path) -> None:
    assert message, f"{name}: an error without a message"
    assert len(message) < 2000, f"{name}: a message of {len(message)} characters"
    assert str(root) in message, f"{name}: the message names no file: {message}"


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def _mutated(draw: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled, inserted or replaced."""
    place = draw.randrange(len(content) + 1)
    some = draw.choice(
        [b"", b"\0" * 8, b"\xff" * 8, b'"', b"\n", b"{}", b"../../outside/precious\n", draw.randbytes(5)]
    )
    kinds = [
        content[:place],
        content[:place] + some + content[place:],
        content[:place] + some + content[place + len(some) :],
        content[:place] + bytes(255 - b for b in content[place : place + 1]) + content[place + 1 :],
        content[:place] + content[max(0, place - 40) :],
        some,
    ]
    return draw.choice(kinds)


def damaged_file(draw: random.Random) -> None:
    """Any file damaged: every reader refuses, naming a file, or gives what the whole run gives."""
    with _copied() as (root, _):
        path = draw.choice(_files(root))
        before = path.read_bytes()
        path.write_bytes(_mutated(draw, before))
        changed = path.read_bytes() != before
        name = draw.choice(list(_readers(root)))
        found = _read(root, name)
        if changed and name == "check":
            # the marks that something is finished, and the list of checksums cut at a line, are read as what they are
            whole_lines = path.name in (".sums", ".files", "report.html")
            assert found is None or whole_lines or any(one.damaged for one in found), (
                f"{path} is not found to be damaged"
            )
        if changed and found is not None and name in ("sae", "extraction", "rankings") and path.name != ".sums":
            right = _readers(_template())[name]()
            assert _same(found, right), f"{name} took in a damaged {path}"


def forged_file(draw: random.Random) -> None:
    """A file whose checksum was forged as well: refused by name, or consistent."""
    with _copied() as (root, _):
        path = draw.choice(_files(root))
        content = _forged(draw, path)
        path.write_bytes(content)
        if path.name != ".sums" and checksums.kept(path.parent) and draw.random() < 0.9:
            checksums.record(path, checksums.sha256_of(path))
        name = draw.choice(list(_readers(root)))
        found = _read(root, name)
        if isinstance(found, Extraction):
            found.require_consistent()


VALUES = (
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    -(10**30),
    1.5,
    True,
    None,
    "",
    "x" * 1000,
    [],
    {},
    [[]],
    "../../outside/precious",
)


def _forged(draw: random.Random, path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == ".files":
        evil = draw.choice(["../../outside/precious", "/etc/hostname", "..", ".", "", "a/b", "\t", "x" * 300])
        return content + f"{evil}\n".encode()
    if path.suffix == ".json" and draw.random() < 0.8:
        table = json.loads(content)
        target = table
        while isinstance(target, dict) and draw.random() < 0.4:
            inner = [value for value in target.values() if isinstance(value, dict) and value]
            if not inner:
                break
            target = draw.choice(inner)
        if isinstance(target, dict) and target:
            key = draw.choice(list(target))
            if draw.random() < 0.2:
                del target[key]
            else:
                target[key] = draw.choice(VALUES)
        text = json.dumps(table)
        twins = text.replace("{", '{"images": 1, ', 1)
        return draw.choice([text, text, text, twins, "[" * 50_000, text.replace("1", "NaN", 1)]).encode()
    if path.suffix == ".safetensors":
        return _forged_tensors(draw, content)
    return _mutated(draw, content)


def _forged_tensors(draw: random.Random, content: bytes) -> bytes:
    """Another shape, dtype, name or offset in the header, or other numbers behind it."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    kind = draw.randrange(6)
    if kind == 0:
        entry["shape"] = draw.choice([[], [0], [2**40], [-1], [1] * 100, [*entry["shape"], 1], entry["shape"][::-1]])
    elif kind == 1:
        entry["dtype"] = draw.choice(["F64", "F32", "I64", "I32", "U8", "BOOL", "BF16", "C64", "X"])
    elif kind == 2:
        entry["data_offsets"] = draw.choice([[0, 2**62], [0, 0], [8, 0], [-1, 8], [0, len(data)]])
    elif kind == 3:
        header[draw.choice(["other", "", "x" * 1000])] = header.pop(name)
    elif kind == 4 and data:
        begin, end = entry["data_offsets"]
        data = data[:begin] + draw.randbytes(end - begin) + data[end:]
    else:
        header["__metadata__"] = draw.choice([{"config": "[" * 9999}, {"config": "{}"}, {}, {"x": "y" * 1000}])
    text = json.dumps(header).encode()
    return (len(text) if draw.random() < 0.9 else 2**60).to_bytes(8, "little") + text + data


def links(draw: random.Random) -> None:
    """Files and folders of the run replaced by links to outside."""
    with _copied() as (root, outside):
        path = draw.choice([*_files(root), root / "train" / "checkpoints", root / "train" / ".x.json.1-0.partial"])
        if path.exists():
            path.unlink()
        path.symlink_to(draw.choice([outside / "precious", outside, Path("/dev/null"), root, root / "nowhere"]))
        for name in draw.sample(list(_readers(root)), 3):
            _read(root, name)


def _same(found: Any, right: Any) -> bool:
    if isinstance(found, torch.Tensor):
        return torch.equal(found, right)
    if isinstance(found, dict):
        return found.keys() == right.keys() and all(_same(found[key], right[key]) for key in found)
    if isinstance(found, list | tuple):
        return len(found) == len(right) and all(map(_same, found, right))
    if hasattr(found, "__dataclass_fields__"):
        return all(_same(getattr(found, name), getattr(right, name)) for name in found.__dataclass_fields__)
    return bool(found == right)


ATTACKS = {"damaged_file": damaged_file, "forged_file": forged_file, "links": links}
