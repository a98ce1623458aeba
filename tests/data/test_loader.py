from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from PIL import Image

from patchsae.data import BadImage, BadImageRecord, DataError, batches, open_images, shuffled_order
from tests.examples import examples

N = 30
BAD = (3, 17, 18)


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def resize_by_content(image: Image.Image) -> torch.Tensor:
    return to_pixels(image.resize((4 + image.getpixel((0, 0))[0] % 2, 4)))


@dataclass(frozen=True)
class Give:
    """A preprocess that always gives one thing."""

    result: object

    def __call__(self, image: Image.Image) -> object:
        return self.result


@pytest.fixture
def dataset(write_files):
    return open_images(write_files({f"c{n % 3}/{n:02}.png": n for n in range(N)}))


@pytest.fixture
def damaged(write_files, encode):
    """Thirty images of which BAD cannot be read: truncated, not an image, empty."""
    contents = dict(zip(BAD, [encode(3)[:-26], b"<html>404</html>", b""], strict=True))
    return open_images(write_files({f"c{n // 10}/{n:02}.png": contents.get(n, n) for n in range(N)}))


def _numbers(batch):
    return (batch.pixels[:, 0, 0, 0] * 255).round().int().tolist()


def _rows(iterator):
    return [row for b in iterator for row in zip(b.index.tolist(), b.labels.tolist(), b.ids, _numbers(b), strict=True)]


def _same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.pixels, y.pixels)
        assert torch.equal(x.labels, y.labels)
        assert torch.equal(x.index, y.index)
        assert (x.ids, x.next_start) == (y.ids, y.next_start)


def test_every_image_comes_once_with_its_label_and_id(dataset):
    iterator = batches(dataset, to_pixels, 8)
    rows = _rows(iterator)
    assert [row[0] for row in rows] == list(range(N))
    for index, label, id, number in rows:
        assert id == dataset.ids(index) == f"c{number % 3}/{number:02}.png"
        assert label == dataset.labels[index]
    assert iterator.bad == []


def test_batches_have_the_promised_types(dataset):
    first, *_, last = batches(dataset, to_pixels, 8)
    assert (first.pixels.dtype, first.pixels.shape) == (torch.float32, (8, 3, 8, 8))
    assert first.labels.dtype == first.index.dtype == torch.int64
    assert last.pixels.shape == (6, 3, 8, 8)
    assert len(batches(dataset, to_pixels, 8)) == 4


def test_the_order_is_kept_and_may_repeat(dataset):
    order = np.array([5, 5, 29, 0, 5])
    assert [row[0] for row in _rows(batches(dataset, to_pixels, 2, order))] == order.tolist()


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, N), size=st.integers(1, N + 5), seed=st.integers(0, 9))
def test_start_resumes_to_exactly_the_rest(dataset, start, size, seed):
    order = shuffled_order(N, 0, seed)
    rows = _rows(batches(dataset, to_pixels, size, order, start=start))
    assert rows == _rows(batches(dataset, to_pixels, N, order))[start:]


def test_next_start_resumes_with_the_same_batches(damaged):
    order = shuffled_order(N, 0, 1)
    whole = list(batches(damaged, to_pixels, 4, order, on_bad_image="skip"))
    for i, batch in enumerate(whole):
        _same(list(batches(damaged, to_pixels, 4, order, on_bad_image="skip", start=batch.next_start)), whole[i + 1 :])


def test_the_number_of_workers_changes_nothing(damaged):
    order = shuffled_order(N, 0, 2)
    iterators = [batches(damaged, to_pixels, 4, order, workers=w, on_bad_image="skip") for w in (0, 2)]
    _same(list(iterators[0]), list(iterators[1]))
    assert iterators[0].bad == iterators[1].bad != []


def test_skip_leaves_the_others_in_their_batches(damaged):
    got = [batch.index.tolist() for batch in batches(damaged, to_pixels, 4, on_bad_image="skip")]
    whole = [range(first, min(first + 4, N)) for first in range(0, N, 4)]
    assert got == [[i for i in places if i not in BAD] for places in whole]
    rows = _rows(batches(damaged, to_pixels, 4, on_bad_image="skip"))
    assert all(index == number for index, _, _, number in rows)


def test_bad_images_are_reported_once_each_with_id_and_reason(damaged):
    iterator = batches(damaged, to_pixels, 5, np.tile(np.arange(N), 3), on_bad_image="skip")
    for _ in iterator:
        pass
    assert [record.id for record in iterator.bad] == ["c0/03.png", "c1/17.png", "c1/18.png"]
    assert isinstance(iterator.bad[0], BadImageRecord)
    for record, reason in zip(iterator.bad, ("truncated", "not an image format", "empty"), strict=True):
        assert reason in record.reason


def test_a_batch_of_only_bad_images_is_left_out(damaged):
    iterator = batches(damaged, to_pixels, 2, np.array([0, 1, 17, 18, 4, 5]), on_bad_image="skip")
    assert [batch.index.tolist() for batch in iterator] == [[0, 1], [4, 5]]
    assert len(iterator.bad) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_names_the_image_and_the_reason(damaged, workers):
    iterator = batches(damaged, to_pixels, 2, workers=workers)
    assert next(iterator).index.tolist() == [0, 1]
    with pytest.raises(BadImage, match=r"image 'c0/03\.png' cannot be read: .*truncated"):
        next(iterator)


def test_the_global_random_state_is_left_alone(dataset):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(batches(dataset, to_pixels, 8))
    assert torch.equal(torch.rand(3), expected)


def test_nothing_to_read_gives_no_batch(dataset):
    assert list(batches(dataset, to_pixels, 4, start=N)) == []
    assert list(batches(dataset.subset([]), to_pixels, 4)) == []
    assert list(batches(dataset, to_pixels, 4, [])) == []


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("text", r"preprocess gave a str for image 'c0/00.png'; expected a float tensor \[3, H, W\]"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"preprocess gave torch.uint8 \[3, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4), r"preprocess gave torch.float32 \[1, 3, 4, 4\]"),
        (torch.zeros(1, 4, 4), r"preprocess gave shape \[1, 4, 4\] .* expected \[3, 4, 4\]"),
    ],
)
def test_a_preprocess_that_gives_something_else_is_named(dataset, result, message):
    with pytest.raises(DataError, match=message):
        next(batches(dataset, Give(result), 2))


def test_images_of_different_sizes_are_named(dataset):
    with pytest.raises(DataError, match=r"preprocess gave shape \[3, 4, 5\] for image .*; expected \[3, 4, 4\]"):
        next(batches(dataset, resize_by_content, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": [0, N]}, "order holds 0 .. 30; expected positions within 0 .. 29"),
        ({"order": [-1]}, "order holds -1"),
        ({"order": [0.5]}, r"order is float64 \[1\]; expected integers \[m\]"),
        ({"order": [[0]]}, r"order is int64 \[1, 1\]"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"on_bad_image": "ignore"}, "on_bad_image is 'ignore'; expected 'stop' or 'skip'"),
        ({"start": N + 1}, r"start is 31; expected a place in the order, 0 .. 30"),
    ],
)
def test_arguments_out_of_range_are_named(dataset, arguments, message):
    with pytest.raises(DataError, match=message):
        batches(**{"dataset": dataset, "preprocess": to_pixels, "batch_size": 2, **arguments})
