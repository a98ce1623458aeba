"""Which format a path has, and what the Hub adds."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from pathlib import Path

import pytest
import torch

from patchsae import load_sae
from patchsae.cli.entry import main
from patchsae.models.checkpoints import published, writable
from patchsae.models.checkpoints.formats import known
from patchsae.models.checkpoints.load import read, with_input
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    SparseAutoencoder(SAEConfig(4, 8), torch.Generator().manual_seed(0)).save(tmp_path / "sae")
    return tmp_path / "sae"


def in_hub_cache(cache: Path, saved: Path, folder: str) -> None:
    """Lay ``saved`` out as huggingface_hub keeps a downloaded repository."""
    repository = cache / "models--owner--name"
    target = repository / "snapshots" / ("0" * 40) / folder
    target.mkdir(parents=True)
    for file in saved.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub without network, with a cache of the test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_every_format_has_its_own_name() -> None:
    names = [candidate.name for candidate in known()]
    assert len(names) == len(set(names))
    assert {"patchsae", "patchsae-pt", "saev"} <= set(names)


def test_every_format_has_its_line_in_the_table_of_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "saes.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|.*\|.*\| (yes )?\|$", text, re.MULTILINE)
    assert sorted(name for name, _ in rows) == [format_.name for format_ in known()]
    assert sorted(name for name, written in rows if written) == writable()


def test_a_path_of_no_format_lists_the_formats(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=r"holds weight without a configuration, .*: .*patchsae, patchsae-pt"):
        load_sae(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no weights \(\*\.safetensors, "):
        load_sae(tmp_path)


def test_a_path_that_is_neither_there_nor_a_hub_id_is_missing(tmp_path: Path) -> None:
    for source in (str(tmp_path / "missing"), "no-such-file.pt", "./runs/sae", "../owner/name"):
        with pytest.raises(FileNotFoundError, match="is no Hugging Face Hub id"):
            load_sae(source)


@pytest.mark.parametrize("folder", ["", "checkpoints/last"])
def test_a_hub_id_is_loaded_from_the_hub(saved: Path, offline_hub: Path, folder: str) -> None:
    in_hub_cache(offline_hub, saved, folder)
    assert load_sae(f"owner/name/{folder}".rstrip("/")).config.d_sae == 8


def test_a_folder_that_the_hub_does_not_have_is_named(saved: Path, offline_hub: Path) -> None:
    in_hub_cache(offline_hub, saved, "")
    with pytest.raises(FileNotFoundError, match="owner/name on the Hugging Face Hub has no other/folder"):
        load_sae("owner/name/other/folder")


@pytest.mark.usefixtures("offline_hub")
def test_a_hub_that_does_not_answer_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="owner/name does not exist here, and could not be had"):
        load_sae("owner/name")


def test_a_path_goes_before_the_hub(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    saved.rename(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert load_sae("owner/name").config.d_sae == 8


def test_without_the_hub_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"owner/name does not exist here.*pip install 'patchsae\[hub\]'"):
        load_sae("owner/name")


def test_a_name_that_is_nearly_one_of_the_list_is_suggested(offline_hub: Path) -> None:
    assert not offline_hub.exists()
    with pytest.raises(FileNotFoundError, match=r"; did you mean saev/clip-b16-in1k\?$"):
        load_sae("saev/clip-b16-in1kk")
    with pytest.raises(FileNotFoundError, match="^saev/clip-b16-in1k: osunlp/SAE_CLIP_24K"):
        load_sae("saev/clip-b16-in1k")


def test_two_files_that_libraries_would_load_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("ae.pt", "sae.pt", "optimizer.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match=r"several files of weights: name one, such as .*/ae\.pt"):
        load_sae(tmp_path)


def test_folders_below_that_hold_weights_are_named(tmp_path: Path) -> None:
    for name in ("trainer_0", "trainer_1"):
        (tmp_path / name).mkdir()
        torch.save({}, tmp_path / name / "ae.pt")
    with pytest.raises(ValueError, match=r"no weights .*; name a folder that holds some: .*trainer_0, .*trainer_1$"):
        load_sae(tmp_path)


def test_a_listed_sae_has_the_format_and_the_input_that_the_list_says(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = published.find("saev/dinov2-b14-in1k")
    assert entry is not None
    listed = {"some/sae": entry, "ours/sae": dataclasses.replace(entry, format="patchsae", note="know this")}
    monkeypatch.setattr(published, "find", listed.get)
    monkeypatch.setattr("patchsae.models.checkpoints.hub.fetch", lambda source: saved)
    with pytest.raises(ValueError, match="is of the format patchsae; saev/dinov2-b14-in1k is of saev"):
        load_sae("some/sae", "cpu")
    with pytest.warns(UserWarning, match=r"trained it on \(x - mean\) / 2\.018"):
        load_sae("ours/sae", "cpu")
    main(["sae", "show", "ours/sae"])
    assert "note" in (shown := capsys.readouterr().out)
    assert "know this" in shown


def test_what_is_no_mean_is_named(saved: Path) -> None:
    found = read(saved)
    found = dataclasses.replace(found, config=dataclasses.replace(found.config, metadata={"format": "saev"}))
    with pytest.raises(TypeError, match=r"mean is a str; expected a number or a tensor \[D\] = \[4\]"):
        with_input(found, "x", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: !!int ''", "is not YAML that can be read"),
        ("k: !!bool x", "is not YAML that can be read"),
        ("k: !!timestamp x", "is not YAML that can be read"),
        ("[" * 1000, "it opens more than 500 lists and tables"),
        ("a: " + "x" * 2**16, "holds more than 32,768 bytes of YAML"),
        ("a: &a [1]\nb: *a", "it repeats a part of itself by an alias"),
        ("\x00", "is not YAML that can be read"),
    ],
)
def test_yaml_that_is_odd_is_named_at_once(tmp_path: Path, text: str, message: str) -> None:
    torch.save({"W_enc": torch.zeros(2)}, tmp_path / "sae.pt")
    (tmp_path / "config.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as refusal:
        load_sae(tmp_path)
    assert time.perf_counter() - start < 5
    assert str(tmp_path / "config.yaml") in str(refusal.value)
