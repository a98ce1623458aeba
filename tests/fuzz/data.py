"""Attacks on datasets: odd, hostile and damaged ones of every layout, built, opened and read from end to end.

Laws: a DataError that names what it is about, or images, labels and names that fit together and can be written; an
image is RGB or a BadImage; nothing outside of the dataset's folder is opened; memory and time stay small.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from patchsae.data import BadImage, DataError, check, open_images, splits
from patchsae.data.decode import decode
from tests.data.mat_files import mat_file

MEMORY, SECONDS = 400e6, 20.0
SECRET = (255, 0, 255)
_NAMES = [
    "cat",
    "great_white_shark",
    "_",
    "a\nb",
    "tab\there",
    "-x",
    "猫",
    "\udce9",
    "a'\"b",
    "x" * 120,
    "a,b",
    "train",
    "images",
]
_ODD: list[Any] = [
    0,
    1,
    -1,
    2**31,
    10**18,
    10**40,
    1.0,
    0.5,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "0",
    [],
    {},
    [0],
]
_opened: list[str] = []


def _note_opens(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note_opens)


@contextmanager
def _place() -> Iterator[Path]:
    """A folder for a dataset, beside one that must not be looked into."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name in ("secret/1.png", "secret/images/a_1.jpg"):
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), SECRET).save(Path(folder) / name)
        root = Path(folder) / "root"
        root.mkdir()
        yield root


def _hold(root: Path) -> None:
    """The laws, of whatever lies in `root`."""
    began = time.monotonic()
    _opened.clear()
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for split in _tried(splits, root) or [None]:
                _look_through(root, split)
            report = _tried(check, root)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    for line in report.lines() if report is not None else ():
        line.encode()
    assert peak < MEMORY, f"{peak:,.0f} bytes"
    assert time.monotonic() - began < SECONDS
    secret = str(root.parent / "secret")
    assert not [path for path in _opened if os.path.abspath(path).startswith(secret)]


def _look_through(root: Path, split: str | None) -> None:
    dataset = _tried(open_images, root, split)
    if dataset is None:
        return
    names = dataset.classnames
    assert names is not None or (dataset.labels == -1).all()
    for text in (dataset.name, *(names or ()), dataset.fingerprint, *dataset.notes):
        text.encode()
    assert not any(set(name) & set("\n\t\0") for name in names or ())
    for i in range(min(len(dataset), 6)):
        dataset.ids(i).encode()
        try:
            sample = dataset.sample(i)
        except BadImage as bad:
            str(bad).encode()
            continue
        assert sample.image.mode == "RGB"
        assert sample.image.getpixel((0, 0)) != SECRET
        assert (sample.label, sample.id) == (dataset.labels[i], dataset.ids(i))


def _tried(function: Callable[..., Any], root: Path, *arguments: Any) -> Any:
    try:
        return function(root, *arguments)
    except DataError as error:
        said = str(error)
    assert "root" in said or "split" in said, f"{said} names nothing"
    return None


def _png(draw: random.Random) -> bytes:
    held = io.BytesIO()
    colour = (draw.randrange(200), draw.randrange(256), draw.randrange(200))
    Image.new("RGB", (draw.randint(1, 9), draw.randint(1, 9)), colour).save(held, draw.choice(["PNG", "JPEG", "GIF"]))
    return held.getvalue()


def _damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, put in, and sizes made large."""
    held = bytearray(content)
    for _ in range(draw.randint(0, 6)):
        at = draw.randrange(len(held) + 1)
        match draw.randrange(5):
            case 0:
                held[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                held[at : at + 4] = struct.pack(draw.choice("<>") + "I", draw.choice([2**31 - 1, 2**32 - 1, 2**24, 0]))
            case 2:
                held[at:at] = draw.randbytes(draw.randint(1, 20))
            case 3:
                del held[at : at + draw.randint(1, 200)]
            case 4:
                del held[max(1, at) :]
    return bytes(held)


def _path(draw: random.Random, good: list[str]) -> Any:
    if draw.random() < 0.6:
        return draw.choice(good)
    names = ["../secret/1.png", "/etc/passwd", "../../secret/images/a_1.jpg", "images/../../secret/1.png"]
    no_names = ["", ".", "./images/a_1.jpg", "a\0b", "\ud800.png", "x" * 5000]
    return draw.choice([*names, *no_names, *_ODD])


def _images(draw: random.Random, root: Path) -> list[str]:
    names = [f"images/{name}" for name in ("a_1.jpg", "a_2.jpg", "b_1.jpg")]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_png(draw))
    return names


def _json(draw: random.Random, value: Any) -> bytes:
    text = json.dumps(value)
    match draw.randrange(8):
        case 0:
            text = text[:-1] + ', "train": []}'
        case 1:
            text = text.replace("[", "[" * draw.choice([2, 10**5]), 1)
        case 2:
            return _damaged(draw, text.encode())
        case 3:
            return text.encode("utf-16")
    return text.encode("utf-8", "surrogatepass")


def split_files(draw: random.Random) -> None:
    """CoOp's split files."""
    with _place() as root:
        good = _images(draw, root)
        labels = [0, 1, 0, 1, *_ODD] if draw.random() < 0.5 else [0, 1]
        entries = {
            split: [
                [_path(draw, good), draw.choice(labels), draw.choice(_NAMES[:3])] for _ in range(draw.randint(0, 4))
            ]
            for split in draw.sample(["train", "val", "test", "x"], draw.randint(0, 3))
        }
        if draw.random() < 0.2 and entries:
            entries[next(iter(entries))] = draw.choice(_ODD)
        (root / "split_zhou_Pets.json").write_bytes(_json(draw, entries))
        _hold(root)


def text_lists(draw: random.Random) -> None:
    """The lists of pets, aircraft, DTD, Food-101, SUN397, UCF101 and ImageNet."""
    with _place() as root:
        good = [name.removeprefix("images/") for name in _images(draw, root)]
        lines = []
        for _ in range(draw.randint(0, 5)):
            path = str(_path(draw, good))
            tail = draw.choice(["", " 1 1 1", " cat", f" {draw.choice(_ODD)}", " 9" * 30, " " + "9" * 5000])
            lines.append(draw.choice([path, path.removesuffix(".jpg"), f"a/{path}", f"/{path}"]) + tail)
        content = _damaged(draw, "\n".join(lines).encode("utf-8", "surrogatepass"))
        files = draw.choice(
            [
                ["annotations/trainval.txt", "annotations/test.txt"],
                ["variants.txt", "images_variant_train.txt", "images_variant_test.txt"],
                ["labels/train1.txt", "labels/val1.txt", "labels/test1.txt"],
                ["meta/train.txt", "meta/test.txt"],
                ["ClassName.txt", "Training_01.txt", "Testing_01.txt"],
                ["ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt", "UCF-101-midframes/x"],
                ["classnames.txt"],
            ]
        )
        for name in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content if draw.random() < 0.8 else b"cat\n")
        _hold(root)


def mat_files(draw: random.Random) -> None:
    """The labels of flowers, cars and ImageNet's devkit."""
    with _place() as root:
        _images(draw, root)
        numbers = lambda *values: np.array([values], draw.choice(["u1", "i4", "f8"]))  # noqa: E731
        odd = lambda: draw.choice([numbers(1), numbers(draw.choice([0, 3, 255])), np.array([[np.nan, np.inf, 1e300]])])  # noqa: E731
        fields = {"fname": ["a_1.jpg", "../../secret/images/a_1.jpg"], "class": [odd(), odd()]}
        synsets = {"ILSVRC2012_ID": [odd(), numbers(2)], "WNID": ["n01440764", draw.choice(["n01", "x" * 10**5])]}
        sets: dict[str, dict[str, Any]] = {
            "imagelabels.mat": {"labels": odd()},
            "setid.mat": {name: odd() for name in ("trnid", "valid", "tstid")},
            "devkit/cars_meta.mat": {"class_names": draw.choice([["cat"], [numbers(1)], ["\ud7ff"]])},
            "devkit/cars_train_annos.mat": {"annotations": fields},
            "cars_test_annos_withlabels.mat": {"annotations": fields},
            "ILSVRC2012_devkit_t12/data/meta.mat": {"synsets": synsets},
        }
        chosen = draw.choice([list(sets)[:2], list(sets)[2:5], list(sets)[5:]])
        for name in chosen:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(_damaged(draw, mat_file(sets[name], compressed=draw.random() < 0.5)))
        if len(chosen) == 1:
            (root / chosen[0]).with_name("ILSVRC2012_validation_ground_truth.txt").write_text(
                draw.choice(["1\n2\n", "9\n"])
            )
            (root / "val").mkdir()
            (root / "val/ILSVRC2012_val_00000001.JPEG").write_bytes(_png(draw))
        if draw.random() < 0.5:
            (root / "cat_to_name.json").write_bytes(_json(draw, {"1": "rose", "2": draw.choice(_ODD)}))
        _hold(root)


def pickles(draw: random.Random) -> None:
    """CIFAR's batches."""
    with _place() as root:
        count = draw.randint(0, 3)
        labels = [draw.choice([0, 1, *_ODD]) if draw.random() < 0.2 else 1 for _ in range(count)]
        shape = draw.choice([count * 3072, count * 3072, 3, 0])
        batch = {b"data": np.arange(shape).astype("u1").reshape(-1, 3072 if shape > 3 else 1), b"labels": labels}
        names = {b"label_names": draw.choice([["cat", "dog"], [b"cat", b"\xe9"], ["a", ["b"]], {"a": 1}, ["cat"] * 3])}
        for file in ("data_batch_1", "test_batch", "batches.meta"):
            content = pickle.dumps(names if file == "batches.meta" else batch, protocol=draw.randint(0, 4))
            if draw.random() < 0.2:
                content = (
                    draw.choice([b"r\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f", b"(" * 10**5]) + content
                )
            (root / file).write_bytes(_damaged(draw, content))
        for number in range(2, 6):
            (root / f"data_batch_{number}").write_bytes((root / "data_batch_1").read_bytes())
        _hold(root)


def parquet(draw: random.Random) -> None:
    """Shards, whole and damaged."""
    with _place() as root:
        good = _images(draw, root)
        count = draw.randint(0, 4)
        cells = [
            draw.choice([{"bytes": _png(draw), "path": None}, {"bytes": None, "path": path}, None])
            for path in (_path(draw, good) for _ in range(count))
        ]
        kind, values = draw.choice(
            [
                (pa.int64(), [0, 1, -1, 2, 10**18, None, -9]),
                (pa.uint64(), [0, 2**64 - 1]),
                (pa.float64(), [0.0, 1.0, 0.5, float("nan")]),
                (pa.string(), ["cat", "great_white_shark", None, ""]),
                (pa.list_(pa.int64()), [[0], [], [1, 2]]),
                (pa.bool_(), [True, False, None]),
                (pa.binary(), [b"cat", b"\xe9"]),
            ]
        )
        rows = [cell and {"bytes": cell["bytes"], "path": _utf8(cell["path"])} for cell in cells]
        image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        label = pa.array([draw.choice(values) if draw.random() < 0.5 else values[0] for _ in range(count)], kind)
        features = {
            "image": {"_type": "Image"},
            "label": {"_type": "ClassLabel", "names": draw.choice([["a", "b"], *_ODD])},
        }
        table = pa.table({"image": image, "label": label})
        if draw.random() < 0.5:
            described: Any = {"info": {"features": features if draw.random() < 0.7 else draw.choice(_ODD)}}
            table = table.replace_schema_metadata({b"huggingface": _json(draw, described)})
        held = io.BytesIO()
        pq.write_table(table, held, row_group_size=draw.choice([1, 1000]))
        content = held.getvalue()
        for name in draw.sample(["train-00000-of-00001.parquet", "test.parquet", "x.parquet"], draw.randint(1, 2)):
            (root / name).write_bytes(content if draw.random() < 0.5 else _damaged(draw, content))
        _hold(root)


def _utf8(value: Any) -> str | None:
    """A value that Arrow takes for a text."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode()


def metadata(draw: random.Random) -> None:
    """Image folders with metadata.jsonl and metadata.csv."""
    with _place() as root:
        good = [name.removeprefix("images/") for name in _images(draw, root)]
        rows = [
            {"file_name": _path(draw, good), draw.choice(["label", "label", "text"]): draw.choice([0, 1, "cat", *_ODD])}
            for _ in range(draw.randint(0, 4))
        ]
        if draw.random() < 0.5:
            content = b"\n".join(_json(draw, row) if draw.random() < 0.3 else json.dumps(row).encode() for row in rows)
            (root / "images/metadata.jsonl").write_bytes(content)
        else:
            lines = ["file_name,label", *(",".join(map(str, row.values())) for row in rows)]
            text = "\n".join(lines).encode("utf-8", "surrogatepass")
            (root / "images/metadata.csv").write_bytes(_damaged(draw, text) if draw.random() < 0.3 else text)
        _hold(root / draw.choice(["images", "."]))


def saved_datasets(draw: random.Random) -> None:
    """What `save_to_disk` of datasets leaves."""
    import datasets

    datasets.disable_progress_bars()
    with _place() as root:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        rows = {"image": [{"bytes": _png(draw), "path": None}], "label": [0]}
        table = datasets.Dataset.from_dict(rows, features=features)
        whole = datasets.DatasetDict(train=table) if draw.random() < 0.5 else table
        whole.save_to_disk(root)
        if draw.random() < 0.3:
            (root / "dataset_dict.json").write_bytes(
                _json(draw, {"splits": [draw.choice(["train", "../secret", *_ODD])]})
            )
        victim = draw.choice(sorted(path for path in root.rglob("*") if path.is_file()))
        victim.write_bytes(_damaged(draw, victim.read_bytes()))
        _hold(root)


def folders(draw: random.Random) -> None:
    """Class folders with any names, odd files, links and pipes; where nothing is wrong, all of it is found."""
    with _place() as root:
        names = draw.sample(_NAMES[:-2], draw.randint(1, 4))
        split = draw.choice(["", "train/"])
        expected, sane = {}, True
        for name in names:
            folder = root / f"{split}{name}"
            folder.mkdir(parents=True)
            count = draw.choice([0, 1, 1, 2])
            sane &= count > 0
            for number in range(count):
                file = draw.choice([f"{number}.jpg", f"{name[:40]}{number}.PNG", f"noext{number}", f"{number}.jfif"])
                (folder / file).write_bytes(_png(draw))
            expected[name] = count
            if draw.random() < 0.3:
                sane = False
                odd = folder / draw.choice(
                    ["pipe.png", "gone.png", "zero.png", "torn.png", "folder.png", "loop", "note.txt"]
                )
                match odd.stem:
                    case "pipe":
                        os.mkfifo(odd)
                    case "gone":
                        odd.symlink_to("nowhere")
                    case "zero":
                        odd.symlink_to("/dev/zero")
                    case "torn":
                        odd.write_bytes(_damaged(draw, _png(draw)))
                    case "folder":
                        odd.mkdir()
                    case "loop":
                        odd.symlink_to(folder)
                    case "note":
                        odd.write_text("x")
        _hold(root)
        if sane:
            dataset = open_images(root)
            counts = np.bincount(dataset.labels, minlength=len(names)).tolist()
            assert counts == [expected[name] for name in sorted(names)]
            assert all(dataset.sample(i).image.mode == "RGB" for i in range(len(dataset)))


def pictures(draw: random.Random) -> None:
    """Encoded pictures of every format and mode, damaged: RGB or a BadImage."""
    held = io.BytesIO()
    mode = draw.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I"])
    size = (draw.randint(1, 40), draw.randint(1, 40))
    kind = draw.choice(
        ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "PCX", "SGI", "DDS"]
    )
    exif = Image.Exif()
    exif[0x0112] = draw.choice([1, 3, 6, 8, 99])
    try:
        Image.new(mode, size).save(held, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    except (OSError, ValueError, KeyError, TypeError):
        return
    content = _damaged(draw, held.getvalue())
    if draw.random() < 0.05:
        content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + content
    began = time.monotonic()
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = decode(content, "x")
        assert image.mode == "RGB"
        assert not image.info
    except BadImage:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    assert time.monotonic() - began < SECONDS


ATTACKS: dict[str, Callable[[random.Random], None]] = {
    "split_files": split_files,
    "text_lists": text_lists,
    "mat_files": mat_files,
    "pickles": pickles,
    "parquet": parquet,
    "metadata": metadata,
    "saved_datasets": saved_datasets,
    "folders": folders,
    "pictures": pictures,
}
