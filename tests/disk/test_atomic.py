import os
import stat

import pytest

from patchsae.disk import atomic


def test_file_holds_what_was_written_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old\r\n")
    atomic.write_text(path, "new\r\n")
    assert path.read_bytes() == b"new\r\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def fail():
        with atomic.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_of_the_old_file_keep_it(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    with path.open() as reader:
        atomic.write_text(path, "new")
        assert reader.read() == "old"


def test_new_files_get_the_permissions_of_ordinary_files(tmp_path):
    ordinary, written = tmp_path / "ordinary", tmp_path / "written"
    ordinary.touch()
    atomic.write_text(written, "x")
    assert stat.S_IMODE(os.stat(written).st_mode) == stat.S_IMODE(os.stat(ordinary).st_mode)


def test_remove_partial_removes_only_temporary_files(tmp_path):
    kept = [tmp_path / name for name in ("a.txt", ".hidden", "x.partial")]
    for path in kept:
        path.touch()
    with atomic.replacing(tmp_path / "b.txt") as temporary:
        assert atomic.is_partial(temporary)
        os.link(temporary, tmp_path / ".c.txt.1-0.partial")
    atomic.remove_partial(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "b.txt"])


def test_the_mode_is_the_users_whoever_writes(tmp_path):
    def private_writer(path):
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    with atomic.replacing(tmp_path / "tensors") as temporary:
        private_writer(temporary)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
