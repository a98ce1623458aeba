"""What a command line names, and what a SAE remembers where it names nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patchsae.cli import opening
from patchsae.cli.choices import FewImages, Images, Model
from patchsae.cli.verbs.comparing import correlate
from patchsae.disk.runs import Run
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.models.clip import load_clip
from tests.small_clips import write_clip


@pytest.mark.parametrize("pretrained", [None, "", "no-such-tag"])
def test_the_command_line_refuses_what_the_library_refuses(pretrained: str | None) -> None:
    with pytest.raises(ValueError, match="expected a tag") as ours:
        opening.clip(Model("ViT-S-16-alt", pretrained), {})
    with pytest.raises(ValueError, match="expected a tag") as theirs:
        load_clip("ViT-S-16-alt", pretrained or "")
    assert str(ours.value) == str(theirs.value)


def test_random_is_random_for_the_shipped_clip_too() -> None:
    random, own = opening.clip(Model("tiny", "random"), {}), opening.clip(Model("tiny"), {})
    assert random.fingerprint == load_clip("tiny", "random").fingerprint
    assert own.fingerprint == load_clip("tiny").fingerprint
    assert random.fingerprint != own.fingerprint


@pytest.mark.parametrize("pretrained", ["", "random"])
def test_what_the_metadata_says_opens_the_same_clip_again(tmp_path: Path, pretrained: str) -> None:
    clip = load_clip(f"local-dir:{write_clip(tmp_path)}", pretrained, layer=1, seed=4)
    again = opening.clip(Model(), clip.metadata)
    assert (again.fingerprint, again.layer, again.metadata) == (clip.fingerprint, 1, clip.metadata)


def test_a_folder_of_the_name_of_a_model_or_tag_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny", "random"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert opening.clip(Model("tiny", "random"), {}).seed == 0


@pytest.mark.parametrize("origin", [{"layer": "last"}, {"layer": 1.5}, {"layer": True}, {"layer": 10**30}])
def test_metadata_that_is_no_number_is_named(origin: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the metadata of the SAE: layer is"):
        opening.clip(Model(), origin)


@pytest.mark.parametrize(
    ("name", "verb", "command"),
    [
        ("after", "compare", "compare --run {} --name after"),
        ("compare-b", "extract", "extract --run {} --name compare-b"),
    ],
)
def test_a_stage_that_was_stopped_says_which_verb_goes_on_with_it(
    tmp_path: Path, name: str, verb: str, command: str
) -> None:
    with Run(tmp_path).stage(name, verb) as stage:
        stage.begin({})
    with pytest.raises(FileNotFoundError, match=re.escape(f"run `patchsae {command.format(tmp_path)}` first")):
        correlate(tmp_path, (name,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes without splits, and what is no image."""
    for path in ("pets/cat/1.png", "pets/cat/2.png", "pets/dog/1.png", "pets/dog/2.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / path)
    (tmp_path / "pets/cat/3.heic").touch()
    return tmp_path / "pets"


def test_what_lies_beside_the_images_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opening.images(Images(str(folder)), {})
    note = "pets: not taken for images in the class folders: 1 .heic\n"
    assert capsys.readouterr().err == note
    opening.images(Images(str(folder), "[:50%]", 1), {})
    assert capsys.readouterr().err == note


def test_a_split_of_a_folder_without_splits_is_answered_by_the_option_and_what_to_type(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"""^--split is 'train', but .*pets has no splits; .*slice .*"\[:80%\]".*"""):
        opening.images(Images(str(folder), "train"), {})
    with pytest.raises(ValueError, match=r"^--other-split is 'test'"):
        opening.images(Images(str(folder), "test"), {}, option="--other-split")
    with pytest.raises(ValueError, match=r"^--split is 'train'"):
        opening.few_images(FewImages(str(folder)), {})
    with pytest.raises(ValueError, match=r"^--test-split is 'test'"):
        opening.few_images(FewImages(str(folder), "[:50%]"), {})
    train, test, _, _ = opening.few_images(FewImages(str(folder), "[:50%]", "[50%:]"), {})
    assert (len(train), len(test)) == (2, 2)


def test_what_a_verb_is_not_told_it_takes_from_the_training(folder: Path) -> None:
    asked = Images(str(folder), "[:50%]", limit=1, limit_seed=3, outside=True)
    _, origin = opening.images(asked, {})
    origin["on_bad_image"] = "skip"
    dataset, found = opening.images(Images(), origin)
    assert found == origin
    assert len(dataset) == 1
    rest, of_the_rest = opening.images(Images(split="[50%:]"), origin)
    assert len(rest) == 2
    assert (of_the_rest["outside"], of_the_rest["on_bad_image"]) == (True, "skip")
    _, others = opening.images(Images(str(folder)), origin)
    assert {"outside", "on_bad_image", "split", "limit"} & others.keys() == set()
    assert opening.as_trained(ExtractOptions(), origin).on_bad_image == "skip"
    assert opening.as_trained(ExtractOptions(on_bad_image="stop"), origin).on_bad_image == "stop"
    assert opening.as_trained(ExtractOptions(), {}).on_bad_image == "stop"


def test_a_path_that_is_no_text_is_refused_before_work_begins(folder: Path) -> None:
    other = folder.rename(Path(os.fsdecode(os.fsencode(folder) + b"\xe9")))
    with pytest.raises(ValueError, match=r"--images is .*pets\\\\xe9', whose bytes are not text"):
        opening.images(Images(str(other)), {})
