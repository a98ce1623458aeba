from __future__ import annotations

import pytest

from patchsae.data import DataError, check


def _text(report):
    return "\n".join(report.lines())


def test_classes_counts_and_sizes(tmp_path, draw):
    for path, size in (("a/1.png", (8, 8)), ("a/2.png", (8, 8)), ("b/3.png", (4, 6))):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        draw(1, size).save(tmp_path / path)
    report = check(tmp_path)
    (part,) = report.splits
    assert (report.layout, part.split, part.images, part.unlabelled) == ("class folders", None, 3, 0)
    assert (part.classnames, part.class_counts) == (["a", "b"], [2, 1])
    assert list(part.sizes.items()) == [((8, 8), 2), ((4, 6), 1)]
    assert report.ok
    text = _text(report)
    for expected in ("3 images, 2 classes of 1 to 2 images", "2  0: a", "1  1: b", "width: 4 to 8 px, median 8"):
        assert expected in text
    assert "2 sizes, most often 8x8 (67%), 4x6 (33%)" in text
    assert "bad files: 0" in text


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_listed_for_every_split(write_files, encode, workers):
    files = {f"train/a/{n:03}.png": n for n in range(130)}
    bad = {"train/a/007.png": encode(7)[:-26], "train/a/129.png": b""}
    report = check(write_files({**files, **bad, "test/a/x.png": 1, "test/b/y.png": 2}), workers=workers)
    assert [(part.split, part.images, len(part.bad)) for part in report.splits] == [("train", 130, 2), ("test", 2, 0)]
    assert [(r.index, r.id) for r in report.splits[0].bad] == [(7, "train/a/007.png"), (129, "train/a/129.png")]
    assert sum(report.splits[0].sizes.values()) == 128
    assert not report.ok
    text = _text(report)
    assert "train/a/129.png: it is empty (0 bytes)" in text
    assert "1 class has no image here" in text


def test_one_split_by_argument_or_by_name(write_files):
    root = write_files({"train/a/1.png": 1, "test/a/2.png": 2, "test/b/3.png": 3})
    for report in (check(root, "test"), check(f"{root}:test")):
        assert [part.name for part in report.splits] == ["root:test"]


def test_unlabelled_images_and_repeated_names(write_files):
    assert "2 images, no labels" in _text(check(write_files({"1.png": 1, "2.png": 2})))


def test_repeated_class_names_are_noted(write_files):
    root = write_files({"classnames.txt": "n1 missile\nn2 missile\n", "n1/1.png": 1, "n2/2.png": 2})
    assert "2 classes are called 'missile'; they stay apart, by label" in _text(check(root))


def test_progress_reaches_the_end(write_files):
    seen = []
    root = write_files({f"a/{n}.png": n for n in range(70)} | {"b/x.png": 1})
    check(root, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 71), (71, 71)]


def test_a_source_that_cannot_be_opened_is_an_error(write_files):
    with pytest.raises(DataError, match="no images found in this folder"):
        check(write_files({"a/x.txt": "", "b/x.txt": ""}))


def test_everything_that_is_wrong_is_listed_and_the_rest_described(write_files, encode):
    root = write_files(
        {
            "a/1.png": 1,
            "a/torn.png": encode(2)[:-26],
            "a/notes.txt": "",
            "b/1.heic": "",
            "c/3.png": 3,
            "d/.x": "",
            "0.png": 0,
        }
    )
    report = check(root)
    text = _text(report)
    assert not report.ok
    assert "2 of 4 class folders without images: b (1 .heic), d; looked for .jpg" in text
    assert "not taken for images in the class folders: 1 .heic, 1 .txt" in text
    assert "not taken, without a class: 1 image beside the class folders: 0.png" in text
    assert "a/torn.png: " in text
    assert report.splits[0].classnames == ["a", "b", "c", "d"]
    assert report.splits[0].class_counts == [2, 0, 1, 0]
