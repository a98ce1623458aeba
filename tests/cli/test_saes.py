"""`patchsae sae show | check | convert | list`, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from patchsae import load_clip, load_sae
from patchsae.cli.entry import main
from patchsae.models import checkpoints
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

WIDTH, LATENTS = 128, 256  # of the shipped CLIP


@pytest.fixture(scope="module")
def pixels_seen() -> torch.Tensor:
    """The mean token of the shipped CLIP's residual stream on some noise, which is near that on images."""
    clip = load_clip("tiny", device="cpu")
    with torch.no_grad():
        return clip.residual(torch.randn(2, 3, *clip.image_size)).flatten(0, 1).mean(0)


@pytest.fixture
def old(tmp_path: Path, pixels_seen: torch.Tensor) -> Path:
    """A saev file of before its encoder changed: good where b_dec is subtracted."""
    eye = torch.eye(WIDTH)
    W_dec = torch.cat([eye, -eye])
    state = {"W_enc": W_dec.T.clone(), "b_enc": torch.full((LATENTS,), -0.05), "W_dec": W_dec, "b_dec": pixels_seen}
    with (tmp_path / "sae.pt").open("wb") as file:
        file.write(json.dumps({"schema": 1, "cls": "Relu", "cfg": {"d_model": WIDTH}}).encode() + b"\n")
        torch.save(state, file)
    return tmp_path / "sae.pt"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_show_says_what_the_file_says_and_what_not(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sae", "show", str(old)])
    shown = lines(capsys)
    assert shown[0].startswith("saev schema 1, relu: relu, D 128, S 256; b_dec subtracted, tokens as they are")
    rows = dict(line.strip().split("  ", 1) for line in shown[1:])
    assert rows["decoder rows"].strip() == "length 1"
    assert rows["file"].strip().startswith(str(old))
    assert "until 2025-07-31" in rows["not said: b_dec"]


def test_show_takes_what_the_file_leaves_open(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sae", "show", str(old), "--subtract-b-dec", "False", "--std", "2"])
    shown = capsys.readouterr().out
    assert "b_dec not subtracted, x / std" in shown
    assert "not said: b_dec" not in shown


def test_convert_calibrates_writes_and_reads_again(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["sae", "convert", str(old), str(out), "--to", "saev", "--calibrate", "shapes", "--model", "tiny"])
    shown = lines(capsys)
    assert shown[0].split() == ["reading", "FVU", "L0"]
    assert shown[1].startswith("b_dec subtracted")
    assert shown[1].endswith("taken")
    assert shown[2].startswith("b_dec not subtracted")
    assert shown[3].startswith(f"{out}: saev; read again, and its reconstructions of random tokens are the same to")
    x = torch.randn(50, WIDTH)
    torch.testing.assert_close(load_sae(out, "cpu")(x), load_sae(old, "cpu", subtract_b_dec=True)(x))


@pytest.mark.parametrize("to", checkpoints.writable())
def test_every_format_that_is_written_is_one_to_convert_to(tmp_path: Path, to: str) -> None:
    SparseAutoencoder(SAEConfig(8, 12, "topk_no_relu" if to == "saev" else "topk", 3)).save(tmp_path / "sae")
    main(["sae", "convert", str(tmp_path / "sae"), str(tmp_path / "out"), "--to", to])
    x = torch.randn(50, 8)
    torch.testing.assert_close(load_sae(tmp_path / "out", "cpu")(x), load_sae(tmp_path / "sae", "cpu")(x))


def test_convert_loses_nothing(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    command = ["sae", "convert", str(old), str(out), "--to", "saelens"]
    assert f"{out} is not empty; --overwrite writes into it" in fails(command, capsys)
    main([*command, "--overwrite"])
    assert (out / "thesis.tex").read_text() == "mine"
    assert f"{old} is a file; expected a directory" in fails([*command[:3], str(old), "--to", "saelens"], capsys)


def test_convert_refuses_what_the_format_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SparseAutoencoder(SAEConfig(8, 12, soft_cap=2.0)).save(tmp_path / "sae")
    said = fails(["sae", "convert", str(tmp_path / "sae"), str(tmp_path / "out"), "--to", "saelens"], capsys)
    assert "saelens cannot hold latents that are capped" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_check_measures_and_complains(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--images", "shapes", "--split", "test", "--limit", "20", "--model", "tiny"]
    main(["sae", "check", str(old), *where])
    shown = lines(capsys)
    assert shown[0] == "20 images, 1,300 tokens (all tokens)"
    assert [line.split()[0] for line in shown[1:5]] == ["measured", "FVU", "L0", "dead"]
    assert float(shown[2].split()[1]) < 0.5
    sae = load_sae(old, "cpu", subtract_b_dec=True)
    sae.W_dec.data *= 3
    sae.save(old.parent / "tripled")
    with pytest.raises(SystemExit) as stop:
        main(["sae", "check", str(old.parent / "tripled"), *where])
    assert stop.value.code == 1
    assert "the mean token is a better reconstruction" in capsys.readouterr().out


def test_check_wants_a_sae_of_the_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SparseAutoencoder(SAEConfig(8, 12)).save(tmp_path / "sae")
    said = fails(["sae", "check", str(tmp_path / "sae"), "--images", "shapes", "--model", "tiny"], capsys)
    assert "the SAE reads tokens of width 8; tiny has width 128" in said


def test_mean_is_given_or_calibrated(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sae", "convert", str(old), str(tmp_path / "o"), "--to", "saev", "--calibrate", "shapes", "--std", "2"]
    assert "leave --mean and --std out, or --calibrate" in fails(command, capsys)


def test_list_is_a_table_that_words_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    main(["sae", "list"])
    everything = lines(capsys)
    assert everything[0].split()[:4] == ["name", "tower", "block", "tokens"]
    main(["sae", "list", "saev", "dinov2"])
    some = lines(capsys)
    assert 2 < len(some) < len(everything)
    assert all("saev" in line and "dinov2" in line for line in some[1:-1])
    assert "no published SAE has 'nowhere' in its line" in fails(["sae", "list", "nowhere"], capsys)


def test_converting_into_a_folder_of_another_format_changes_nothing(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sae", "convert", str(old), str(tmp_path / "out"), "--subtract-b-dec", "True", "--to"]
    main([*command, "saelens"])
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert "holds other weights, sae_weights.safetensors" in fails([*command, "saev", "--overwrite"], capsys)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sae.pt"]


@pytest.mark.parametrize("to", ["saelens", "saev", "dictionary_learning"])
@pytest.mark.parametrize(
    "metadata",
    [
        {"model": "ViT-B-32", "pretrained": "openai", "layer": 7, "tokens": "patches"},
        {"model": "ViT-B-32", "pretrained": "openai", "hook": "blocks.3.hook_mlp_out"},
    ],
)
def test_what_a_sae_reads_survives_conversion(tmp_path: Path, to: str, metadata: dict[str, str | int]) -> None:
    SparseAutoencoder(SAEConfig(8, 12, metadata=metadata)).save(tmp_path / "sae")
    main(["sae", "convert", str(tmp_path / "sae"), str(tmp_path / "out"), "--to", to])
    said = load_sae(tmp_path / "out", "cpu").config.metadata
    assert {key: said.get(key) for key in metadata} == metadata
    assert {"layer", "hook"} & said.keys() == {"layer", "hook"} & metadata.keys()


def test_a_reading_that_is_worse_than_the_mean_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = SparseAutoencoder(SAEConfig(WIDTH, LATENTS)).requires_grad_(False)
    sae.W_dec.mul_(50)
    sae.save(tmp_path / "sae")
    command = ["sae", "convert", str(tmp_path / "sae"), str(tmp_path / "out"), "--to", "patchsae"]
    main([*command, "--calibrate", "shapes", "--model", "tiny"])
    assert "no reading reconstructs these tokens better than their mean does" in capsys.readouterr().err
