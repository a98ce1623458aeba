"""Rankings: orderings with named ties, and the classes experiment on a constructed case."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchsae.disk.runs import Run
from patchsae.experiments import classes
from patchsae.experiments.classes import Rankings
from patchsae.experiments.classes.experiment import rankings, top_latents
from patchsae.experiments.classes.options import ClassesOptions
from patchsae.experiments.classes.rankings import common_latents, order_of, random_rank, rank_by
from patchsae.experiments.classes.section import first_latents, shared_counts
from patchsae.experiments.extract import Extraction
from patchsae.experiments.stream.accumulators import TopImagesResult, TopPatchesResult


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=3))
def test_rank_is_the_place_in_a_stable_descending_sort(scores) -> None:
    rank = rank_by(torch.tensor(scores))
    for row, ranked in zip(scores, rank.tolist(), strict=True):
        order = sorted(range(6), key=lambda s: (-row[s], s))
        assert [ranked[latent] for latent in order] == list(range(6))
    assert rank.dtype == torch.int32
    assert torch.equal(order_of(rank, 6).gather(1, rank.long()), torch.arange(6).expand(len(scores), 6))


def test_the_random_ranking_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = random_rank(50, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, random_rank(50, seed=3))
    assert not torch.equal(first, random_rank(50, seed=4))
    assert torch.equal(first.sort().values, torch.arange(50, dtype=torch.int32))


def test_common_latents_are_those_that_many_classes_share() -> None:
    counts = torch.tensor([[9, 5, 0, 0], [9, 0, 5, 0], [9, 0, 0, 5]])
    assert common_latents(counts, top=2, classes=1).tolist() == [True, False, False, False]
    # a count of 0 does not put a latent among the first
    assert common_latents(counts, top=4, classes=1).tolist() == [True, False, False, False]


def constructed(classnames: tuple[str, ...], class_counts: list[list[int]]) -> Extraction:
    counts = torch.tensor(class_counts)
    latents = counts.shape[1]
    nothing = torch.full((latents, 1), -1)
    return Extraction(
        images=10,
        tokens_per_image=5,
        threshold=0.2,
        classnames=classnames,
        sums=counts.sum(0).double(),
        counts=counts.sum(0),
        image_counts=(counts.sum(0) > 0).long(),
        class_counts=counts,
        class_images=torch.full((len(counts),), 5),
        top_images=TopImagesResult(torch.zeros(latents, 1), nothing),
        top_patches=TopPatchesResult(torch.zeros(latents, 1), nothing, nothing),
        top_labels=nothing,
        made_from={},
    )


TWINS = constructed(("missile", "missile", "crane"), [[4, 0, 1, 0], [0, 7, 2, 0], [1, 1, 9, 0]])


@pytest.mark.usefixtures("drawn")
def test_classes_of_one_name_are_ranked_apart(tmp_path) -> None:
    stage = Run(tmp_path).stage("classes")
    result = classes.run(TWINS, stage, ClassesOptions(top=2))
    assert result.classnames == ("missile", "missile", "crane")
    assert result.ranks["class"].tolist() == [[0, 2, 1, 3], [2, 0, 1, 3], [1, 2, 0, 3]]
    assert result.ranks["dataset"].tolist() == [2, 1, 0, 3]
    table = stage.read_table("top_latents.csv")
    assert table["label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["class"] == ["missile"] * 4 + ["crane"] * 2
    assert table["latent"].tolist() == [0, 2, 1, 2, 2, 0]
    assert table["tokens"].tolist() == [4, 1, 7, 2, 9, 1]
    assert table["tokens_in_dataset"].tolist() == [5, 12, 8, 12, 12, 5]
    again = Rankings.load(stage)
    assert all(torch.equal(again.ranks[name], rank) for name, rank in result.ranks.items())
    html = stage.load_json("section")["html"]
    assert html.count(">missile<") == 2 + 2 * 2  # the table, the whole names on both axes of the heat map
    assert html.count(">missile (1)<") == html.count(">missile (2)<") == 2
    with Image.open(stage.path / "shared_latents.png") as picture:
        assert picture.format == "PNG"


def test_shared_latents_are_counted_for_every_pair_of_classes() -> None:
    columns = top_latents(TWINS, rankings(TWINS), top=2)
    assert first_latents(columns, 3) == [[0, 2], [1, 2], [2, 0]]
    assert first_latents(columns, 2) == [[0, 2], [1, 2]]
    assert shared_counts([[0, 2], [1, 2], [2, 0], []]).tolist() == [
        [2, 1, 2, 0],
        [1, 2, 1, 0],
        [2, 1, 2, 0],
        [0, 0, 0, 0],
    ]


def test_the_heat_map_stops_at_forty_classes(tmp_path) -> None:
    many = constructed(tuple(f"c{i:02d}" for i in range(43)), [[1, 0, 0, 0]] * 43)
    stage = Run(tmp_path).stage("classes")
    classes.run(many, stage)
    html = stage.load_json("section")["html"]
    assert "c39" in html
    assert "c40" not in html
    assert "The first 40 of 43 classes" in html


def test_common_latents_go_to_the_end() -> None:
    ranks = rankings(TWINS, ClassesOptions(common_top=3, common_classes=2)).ranks
    assert ranks["class"][:, 2].tolist() == [3, 3, 3]
    assert ranks["dataset"].tolist() == [2, 1, 0, 3]


def test_latents_that_a_class_never_saw_are_not_listed() -> None:
    table = top_latents(TWINS, rankings(TWINS), top=4)
    assert all(tokens > 0 for tokens in table["tokens"])


def test_images_without_labels_have_no_class_ranking() -> None:
    unlabelled = Extraction(**{**vars(TWINS), "class_counts": None, "class_images": None, "classnames": None})
    with pytest.raises(ValueError, match="without labels"):
        rankings(unlabelled)
