"""What a command line names, and what a SAE remembers where it names nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patchsae import opening
from patchsae.choices import Model
from patchsae.clip import load_clip

from .small_clips import write_clip


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
