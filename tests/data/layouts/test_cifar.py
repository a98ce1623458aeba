from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest

from patchsae.data import DataError, batches, check, open_images, splits
from tests.malice import payloads

TEN = [f"data_batch_{number}" for number in range(1, 6)]


def _batch(seed, n=3, protocol=4):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)
    return pixels, {"data": pixels, "labels": [(seed + i) % 2 for i in range(n)]}


def _python2(batch):
    """A batch as Python 2 pickled it, which is how the published ones are: text and pixels are strings of bytes."""

    def string(raw):
        return b"T" + struct.pack("<I", len(raw)) + raw

    pixels, labels = batch["data"], batch["labels"]
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(pixels)]) + b"M\x00\x0c\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


def _ten(write_files, **changes):
    files = {name: _python2(_batch(seed)[1]) for seed, name in enumerate([*TEN, "test_batch"])}
    names = pickle.dumps({b"label_names": [b"airplane", b"automobile"]})
    return write_files({**files, "batches.meta": names, **changes})


def test_cifar10_as_published(write_files):
    root = _ten(write_files)
    assert splits(root) == ["train", "test"]
    for split, seeds in (("train", range(5)), ("test", [5])):
        dataset = open_images(root, split)
        assert (dataset.name, dataset.classnames) == (f"CIFAR10:{split}", ["airplane", "automobile"])
        pixels = np.concatenate([_batch(seed)[0] for seed in seeds]).reshape(-1, 3, 32, 32)
        assert len(dataset) == len(pixels)
        for i in range(len(dataset)):
            sample = dataset.sample(i)
            np.testing.assert_array_equal(np.asarray(sample.image), pixels[i].transpose(1, 2, 0))
            assert sample.label == dataset.labels[i] == (seeds[i // 3] + i % 3) % 2
    assert open_images(root, "train").ids(4) == "data_batch_2#1"
    assert check(root).ok


def test_cifar100_has_fine_labels(write_files):
    batch = {"data": _batch(0)[0], "fine_labels": [1, 0, 1], "coarse_labels": [0, 0, 0]}
    meta = {"fine_label_names": ["aquarium_fish", "bear"], "coarse_label_names": ["fish"]}
    root = write_files({"train": pickle.dumps(batch), "test": pickle.dumps(batch), "meta": pickle.dumps(meta)})
    dataset = open_images(root, "train")
    assert (dataset.name, dataset.classnames) == ("CIFAR100:train", ["aquarium fish", "bear"])
    assert dataset.labels.tolist() == [1, 0, 1]


def test_worker_processes_see_the_same_pictures(write_files):
    dataset = open_images(_ten(write_files), "train")
    alone, shared = ([batch.pixels for batch in batches(dataset, _plain, 4, workers=w)] for w in (0, 2))
    assert all(bool((a == b).all()) for a, b in zip(alone, shared, strict=True))
    assert len(pickle.dumps(dataset)) < 10_000


def _plain(image):
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def test_a_missing_batch_is_named(write_files):
    root = _ten(write_files)
    (root / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3 \(a batch of images\)"):
        open_images(root, "train")
    assert len(open_images(root, "test")) == 3


def test_a_root_too_high_names_the_folder_to_give(write_files):
    files = {f"data/cifar-10-batches-py/{name}": b"" for name in [*TEN, "test_batch", "batches.meta"]}
    with pytest.raises(DataError, match="too high; expected\n  - .*/data/cifar-10-batches-py: CIFAR, python version"):
        open_images(write_files(files))


@pytest.mark.parametrize("file", ["test_batch", "batches.meta"])
def test_nothing_in_a_batch_is_run(write_files, tmp_path, file):
    marker = tmp_path / "ran"
    for _, content in payloads(marker).values():
        root = _ten(write_files, **{file: content})
        with pytest.raises(DataError, match=f"{file} (cannot be read .* nothing of it was run|holds no)"):
            open_images(root, "test")
        assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a batch of CIFAR"),
        (pickle.dumps([1]), "holds no 'labels'"),
        (pickle.dumps({"labels": [0, 1], "data": 7}), "holds no 'data'"),
        (pickle.dumps({"labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)}), "3072 bytes of pixels and 2 labels"),
        (pickle.dumps({"labels": [0], "data": np.zeros((1, 384))}), "pixels of type 'f8'; expected unsigned bytes"),
        (
            pickle.dumps({"labels": [0, 1], "data": np.zeros((2, 3072), np.uint8, "F")}),
            "in a form that CIFAR does not use",
        ),
        (pickle.dumps({"labels": ["x"], "data": np.zeros((1, 3072), np.uint8)}), "a label is"),
    ],
)
def test_batches_of_another_kind_are_refused(write_files, content, message):
    root = _ten(write_files, test_batch=content)
    with pytest.raises(DataError, match=message):
        open_images(root, "test")
