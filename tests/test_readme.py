"""Every command and every piece of Python in the README is run: on a folder with splits, and on one without."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchsae.cli.entry import main

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"(?:^    \S.*\n)+", README, re.MULTILINE)
COMMANDS = [line.split("   #")[0].strip() for block in BLOCKS for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# What a laptop has no time, and a test no network for; everything else is run as it stands.
IN_PLACE_OF = {
    "--model ViT-B-16-quickgelu --pretrained openai": "--model tiny",
    "--preset paper": "--preset paper --model tiny --images shapes",
    "--preset quick": "--preset quick --total-images 48 --batch-size 8 --expansion 1 --warm-up-steps 2",
    "--size paper": "--size small --op decode --rounds 1",
}
MORE = {
    "patchsae adapt": "--epochs 2 --batch-size 4",
    "patchsae mask": "--templates 'a photo of a {}.'",
    "patchsae evaluate": "--templates 'a photo of a {}.'",
    "patchsae compare": "--templates 'a photo of a {}.'",
}
ELSEWHERE = ("make demo", "make test", "make bench", "python -m benches")  # by the whole suite, and tests of their own
"""Beginnings of the commands that this file leaves out."""
SLICES = {" train": ' "[:80%]"', " test": ' "[80%:]"'}  # the README's rule for images without splits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with train/ and test/, one without, a photograph."""
    root = tmp_path_factory.mktemp("readme")
    draw = np.random.default_rng(0)
    for number in range(40):
        name, split = ("cat", "dog")[number % 2], "train" if number < 32 else "test"
        image = Image.fromarray(draw.integers(0, 256, (72, 96, 3), dtype=np.uint8))
        for folder in (root / "splits" / split / name, root / "plain" / name):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.jpg")
    image.save(root / "photo.jpg")
    return root


def adjusted(command: str, kind: str) -> str:
    """A line of the README for a folder of one kind."""
    for said, small in IN_PLACE_OF.items():
        command = command.replace(said, small)
    for beginning, more in MORE.items():
        if command.startswith(beginning):
            command += f" {more}"
    if kind == "plain":
        command = re.sub(r"(--(?:test-)?split)( train| test)", lambda m: m[1] + SLICES[m[2]], command)
    return re.sub(r"\bPATH\b", kind, command)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["splits", "plain"])
def test_every_command_in_its_order(folders, kind, monkeypatch, capsys):
    work = folders / f"run-{kind}"
    work.mkdir()
    for name in (kind, "photo.jpg"):
        (work / name).symlink_to(folders / name)
    ours = [adjusted(line, kind) for line in COMMANDS if line.startswith("patchsae")]
    assert len(ours) > 15
    monkeypatch.chdir(work)
    for command in ours:
        print(command)  # for whoever reads a failure
        main(shlex.split(command)[1:])
        if command.startswith("patchsae check"):
            assert capsys.readouterr().out.endswith("all are whole\n")
    assert (work / "runs/mine/report.html").stat().st_size > 50_000


def test_no_command_is_left_out():
    assert all(line.startswith(("patchsae ", *ELSEWHERE)) for line in COMMANDS), COMMANDS


def test_the_python_of_the_readme_runs(folders, monkeypatch):
    """As it stands, with random weights in place of a download and the sizes of a small model."""
    import torch

    import patchsae
    from patchsae.models.sae import SparseAutoencoder
    from patchsae.models.sae_config import SAEConfig

    clip = patchsae.load_clip("tiny")
    SparseAutoencoder(SAEConfig(clip.width, 2000)).save(folders / "sae")
    monkeypatch.chdir(folders)
    draw = torch.Generator().manual_seed(0)
    weights = SparseAutoencoder(SAEConfig(16, 2000), draw)
    x = torch.randn(8, 16, generator=draw)
    names = {
        **{name: getattr(weights, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")},
        "x": x,
        "rank": torch.randperm(2000, generator=draw).to(torch.int32),
    }
    for block in PYTHON:
        code = block.replace('"ViT-B-16-quickgelu", pretrained="openai"', '"tiny"')
        code = code.replace('"path/or/hub-id"', '"sae"').replace('"PATH"', '"splits"')
        exec(code.replace("capacity=400 *", "capacity=2000 *"), names)
    assert names["pixels"].shape == (1, 3, *clip.image_size)
    assert names["result"].scores_after.shape == (1, 2)
    assert (folders / "runs/mine/extract/latents.parquet").exists()
