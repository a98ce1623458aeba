"""Checkpoints of the official MaPLe code: read, refused, written."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import torch

from patchsae import load_adapter, load_maple
from patchsae.adapters import create, official
from patchsae.adapters.maple import MaPLe, MaPLeConfig
from patchsae.disk import archives
from tests import malice
from tests.adapters.checkpoints import official_state, write_official
from tests.adapters.towers import NAMES, make_adapter, make_clip
from tests.small_clips import pixels

LEARNER = "prompt_learner."


@pytest.fixture
def trained() -> MaPLe:
    adapted = make_adapter("maple", make_clip("plain"), MaPLeConfig(2, 3))
    assert isinstance(adapted, MaPLe)
    return adapted


def test_a_checkpoint_is_read_for_any_classes(trained: MaPLe, tmp_path: Path) -> None:
    file = write_official(trained, tmp_path / "model.pth.tar-5")
    with zipfile.ZipFile(file) as archive:
        asked = set(archives.asked_for(archive.read(f"{archive.namelist()[0].partition('/')[0]}/data.pkl")))
    assert asked >= {"torch.optim.sgd.SGD", "torch.optim.lr_scheduler.CosineAnnealingLR", "collections.defaultdict"}
    loaded = load_maple(trained.clip, file, ["cow", "tabby cat"], n_ctx=2, depth=3)
    assert loaded.config == trained.config
    assert loaded.classnames == ("cow", "tabby cat")
    for name, parameter in loaded.trainable().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, trained.trainable()[name].half().float())
    # The prefix and the suffix in the file are of seven other classes.
    torch.testing.assert_close(loaded.text_classifier()[1], trained.text_classifier()[0], rtol=0, atol=5e-3)
    assert official.read(file).epoch == 5
    assert {value.dtype for value in official.read(file).learned.values()} == {torch.float32}
    assert load_adapter(trained.clip, file, NAMES).config == trained.config


def test_what_we_write_is_read_back_bit_for_bit(trained: MaPLe, tmp_path: Path) -> None:
    for epoch in (2, 10, 9):
        trained.trainable()["ctx"].data += 1
        file = official.write(trained, tmp_path, epoch)
        assert file == tmp_path / "MultiModalPromptLearner" / f"model.pth.tar-{epoch}"
        assert load_maple(trained.clip, file, NAMES).fingerprint == trained.fingerprint
    assert official.find(tmp_path).name == "model.pth.tar-10"
    assert official.read(tmp_path / "MultiModalPromptLearner").epoch == 10
    assert (file.parent / "checkpoint").read_text() == "model.pth.tar-9\n"
    assert sorted(path.name for path in file.parent.iterdir()) == ["checkpoint"] + [
        f"model.pth.tar-{epoch}" for epoch in (10, 2, 9)
    ]
    content = torch.load(file, weights_only=True)
    assert content.keys() >= {"state_dict", "epoch"}
    assert content["state_dict"].keys() <= official_state(trained).keys()  # the official model knows every name
    again = file.read_bytes()
    assert official.write(trained, tmp_path / "elsewhere", 9).read_bytes() == again


def test_the_one_that_was_best_is_taken_where_there_is_no_other(trained: MaPLe, tmp_path: Path) -> None:
    write_official(trained, tmp_path / "MultiModalPromptLearner" / "model-best.pth.tar")
    assert official.find(tmp_path).name == "model-best.pth.tar"
    write_official(trained, tmp_path / "MultiModalPromptLearner" / "model.pth.tar-1")
    assert official.find(tmp_path).name == "model.pth.tar-1"


def test_names_of_data_parallel_are_understood(trained: MaPLe, tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in official_state(trained).items()}
    file = write_official(trained, tmp_path / "model.pth.tar-5", state_dict=state)
    assert load_maple(trained.clip, file, NAMES).fingerprint == trained.fingerprint


@pytest.mark.parametrize("asked", [{"n_ctx": 4}, {"depth": 9}, {"n_ctx": 2, "depth": 2}, {"n_ctx": 0, "depth": 3}])
def test_another_size_than_asked_for_is_an_error(trained: MaPLe, tmp_path: Path, asked: dict[str, int]) -> None:
    wanted = {"n_ctx": 2, "depth": 3, **asked}
    message = rf"holds n_ctx=2 and depth=3; asked for were n_ctx={wanted['n_ctx']} and depth={wanted['depth']}: ask"
    file = write_official(trained, tmp_path / "model.pth.tar-5")
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} {message}"):
        load_maple(trained.clip, file, NAMES, **asked)


def test_a_clip_of_other_widths_is_named(trained: MaPLe, tmp_path: Path) -> None:
    file = write_official(trained, tmp_path / "model.pth.tar-5")
    with pytest.raises(ValueError, match="text width 16 and image width 32; .* has 24 and 16"):
        load_maple(make_clip("more_text"), file, NAMES)


def test_a_clip_of_fewer_blocks_is_named(tmp_path: Path) -> None:
    deep = make_adapter("maple", make_clip("plain"), MaPLeConfig(2, 4))
    file = write_official(deep, tmp_path / "model.pth.tar-5", state_dict=_prompts_alone(deep))
    with pytest.raises(ValueError, match=r"depth=4; expected 1\.\.3"):
        load_maple(make_clip("quick_gelu"), file, NAMES)


def test_another_clip_of_the_same_shape_is_an_error(trained: MaPLe, tmp_path: Path) -> None:
    other = make_clip("plain", seed=3)
    file = write_official(trained, tmp_path / "model.pth.tar-5")
    with pytest.raises(ValueError, match=r"learned on another CLIP .*image_encoder\.conv1\.weight differs"):
        load_maple(other, file, NAMES)
    with pytest.raises(ValueError, match="learned on another CLIP"):
        load_maple(other, official.write(trained, tmp_path, 5), NAMES)
    state = official_state(trained)
    state |= {name: value for name, value in official_state(make_adapter("maple", other)).items() if "text_" in name}
    file = write_official(trained, tmp_path / "model.pth.tar-6", state_dict=state)
    with pytest.raises(ValueError, match=r"text_encoder\.transformer\.resblocks\.2\.mlp\.c_proj\.weight differs"):
        load_maple(trained.clip, file, NAMES)
    # A file that says nothing about its CLIP cannot be checked.
    file = write_official(trained, tmp_path / "model.pth.tar-7", state_dict=_prompts_alone(trained))
    assert load_maple(other, file, NAMES).config == trained.config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_clip_in_low_precision_is_the_same(trained: MaPLe, tmp_path: Path, dtype: torch.dtype) -> None:
    file = write_official(trained, tmp_path / "model.pth.tar-5")
    low = load_maple(make_clip("plain", dtype=dtype), file, NAMES)
    assert low.logits(pixels(1)).isfinite().all()


def _prompts_alone(adapted: MaPLe) -> dict[str, torch.Tensor]:
    return {name: value for name, value in official_state(adapted).items() if name.startswith(LEARNER)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("proj.bias", torch.zeros(5), r"proj\.bias has shape \(5,\); expected \(32,\)"),
        ("compound_prompts_text.1", torch.zeros(3, 16), r"compound_prompts_text\.1 has shape \(3, 16\); expected \(2,"),
        ("compound_prompt_projections.0.weight", torch.zeros(16, 32), r"shape \(16, 32\); expected \(32, 16\)"),
        ("compound_prompts_text.1", None, r"lacks the tensors \[\] and has \['compound_prompt_projections\.1\.bias"),
        ("compound_prompts_text.0", None, r"lacks the tensors \['compound_prompts_text\.0'\]"),
        ("proj.weight", None, r"expected MaPLe's matrices 'ctx', 'proj\.weight'"),
        ("ctx", torch.zeros(3, 2, 16), "class-specific contexts"),
        ("ctx", None, "expected MaPLe's matrices"),
        ("extra", torch.zeros(1), r"has \['extra'\] too many"),
    ],
)
def test_every_tensor_is_checked(
    trained: MaPLe, tmp_path: Path, name: str, value: torch.Tensor | None, message: str
) -> None:
    state = {**official_state(trained), LEARNER + name: value}
    state = {key: tensor for key, tensor in state.items() if tensor is not None}
    file = write_official(trained, tmp_path / "model.pth.tar-5", state_dict=state)
    with pytest.raises(ValueError, match=rf"(?s)model\.pth\.tar-5.*{message}"):
        load_maple(trained.clip, file, NAMES)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": 4, "epoch": 3}])
def test_files_of_something_else_are_refused(trained: MaPLe, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth.tar-5")
    with pytest.raises(ValueError, match="expected 'state_dict' and 'epoch'"):
        load_maple(trained.clip, tmp_path, NAMES)


@pytest.mark.parametrize("name", malice.payloads(Path("unused")))
def test_nothing_in_a_malicious_file_runs(trained: MaPLe, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    _, pickled = malice.payloads(marker)[name]
    (tmp_path / "model.pth.tar-5").write_bytes(malice.archive(pickled))
    with pytest.raises(archives.UnsafeFileError, match="nothing of it was run"):
        load_maple(trained.clip, tmp_path, NAMES)
    assert not marker.exists()


@pytest.mark.parametrize("where", ["optimizer", "scheduler", "epoch", "val_result"])
def test_nothing_beside_the_tensors_runs_either(trained: MaPLe, tmp_path: Path, where: str) -> None:
    marker = tmp_path / "marker"
    call = malice.Reduced(eval, f"open({str(marker)!r}, 'w')")
    file = write_official(trained, tmp_path / "model.pth.tar-5", **{where: call})
    with pytest.raises(archives.UnsafeFileError, match=r"eval.*nothing of it was run"):
        load_maple(trained.clip, file, NAMES)
    assert not marker.exists()


def test_missing_files_are_named(trained: MaPLe, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_maple(trained.clip, tmp_path / "nowhere", NAMES)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.pth\.tar-N"):
        load_maple(trained.clip, tmp_path, NAMES)
    with pytest.raises(ValueError, match="give classnames"):
        load_adapter(trained.clip, write_official(trained, tmp_path / "model.pth.tar-5"))


def test_only_maple_has_an_official_layout(trained: MaPLe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind 'coop'"):
        official.write(create("coop", trained.clip, NAMES), tmp_path, 1)
    with pytest.raises(ValueError, match="epoch=-1"):
        official.write(trained, tmp_path, -1)
    assert list(tmp_path.iterdir()) == []
