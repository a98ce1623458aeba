"""Law: whatever a run says about itself, nothing outside of it is written or removed."""

import os

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from patchsae.disk.checksums import DamagedFile
from patchsae.disk.paths import OutsidePath, is_plain
from patchsae.disk.runs import Run
from tests.examples import examples

SAME_FOLDER = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.one_of(
    st.sampled_from(["/any/dir", "../../file", "..", ".", "/", "a/../../b", "a/b", "~", ".lock", "a b", "\t", "-x"]),
    st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=8),
)


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def begun(root, **options):
    stage = Run(root).stage("train", "train")
    stage.begin({"lr": 1}, **options)
    return stage


def goes_on(root):
    stage = begun(root)
    stage.append_metrics({"step": 2})
    stage.save_json("more", {})


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_manifest_that_names_other_things_is_refused_by_name(tmp_path, overwrite):
    mine = tmp_path / "mine"
    (mine / "dir").mkdir(parents=True)
    (mine / "file").write_text("kept")
    begun(tmp_path / "run").close()
    manifest = tmp_path / "run" / "train" / ".files"
    ours = manifest.read_text()

    @SAME_FOLDER
    @given(st.lists(NAMES, min_size=1, max_size=3).filter(lambda names: not all(map(is_plain, names))))
    def law(names):
        hostile = [
            name.replace("/any/dir", str(mine / "dir")).replace("../../file", "../../mine/file") for name in names
        ]
        manifest.write_text(ours + "".join(f"{name}\n" for name in hostile))
        before = contents(tmp_path)
        with pytest.raises(OutsidePath, match=r"train/\.files names .*Nothing was removed"):
            begun(tmp_path / "run", overwrite=overwrite)
        after = contents(tmp_path)
        # settings of a stage that goes on are compared before the list is read
        assert {p: c for p, c in after.items() if p.name not in (".lock", "config.toml", ".sums")} == {
            p: c for p, c in before.items() if p.name not in (".lock", "config.toml", ".sums")
        }

    law()


@pytest.mark.parametrize("name", [".lock", ".files", ".sums", "metrics.jsonl"])
def test_links_are_not_written_through(tmp_path, name):
    target = tmp_path / "precious"
    target.write_text("kept\n")
    stage = begun(tmp_path / "run")
    stage.append_metrics({"step": 1})
    stage.close()
    path = stage.path / name
    path.unlink()
    path.symlink_to(target)
    with pytest.raises((OSError, DamagedFile), match=name):
        goes_on(tmp_path / "run")
    assert target.read_text() == "kept\n"


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "000000001.safetensors").write_text("kept")
    with begun(tmp_path / "run") as stage:
        stage.folder("checkpoints").rmdir()
        (stage.path / "checkpoints").symlink_to(outside)
    with begun(tmp_path / "run") as stage, pytest.raises(FileExistsError, match="is a link and could lead anywhere"):
        stage.folder("checkpoints")
    begun(tmp_path / "run", overwrite=True).close()
    assert contents(outside) == {outside / "000000001.safetensors": b"kept"}


def test_a_link_that_a_run_says_it_wrote_is_removed_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("kept")
    with begun(tmp_path / "run") as stage:
        os.symlink(outside, stage.own("linked"))
        (stage.folder("own") / "inner").symlink_to(outside)
    begun(tmp_path / "run", overwrite=True).close()
    assert not (stage.path / "linked").is_symlink()
    assert not (stage.path / "own").exists()
    assert (outside / "a").read_text() == "kept"


def test_only_temporary_files_of_ours_are_swept_up(tmp_path):
    stage = begun(tmp_path / "run")
    stage.close()
    (stage.path / ".mine.partial").write_text("kept")
    (stage.path / ".a.json.123-0.partial").write_text("half")
    begun(tmp_path / "run").close()
    assert (stage.path / ".mine.partial").exists()
    assert not (stage.path / ".a.json.123-0.partial").exists()


@pytest.mark.parametrize("holder", ["٣", "99999999999999999999", "-1", "\xff", ""])
def test_a_lock_that_names_nobody_is_held_by_another_process(tmp_path, holder):
    from patchsae.disk.locks import FolderLock, StageLocked

    lock = FolderLock(tmp_path)
    (tmp_path / ".lock").write_bytes(holder.encode("utf-8"))
    with pytest.raises(StageLocked, match="another process"):
        FolderLock(tmp_path)
    lock.release()
