import re
import subprocess

import pytest

from patchsae.disk import environment


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "environment.py").write_text("tracked")
    git(tmp_path, "init")
    git(tmp_path, "add", "environment.py")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag does not take the commit's place")
    return tmp_path


def test_the_commit_of_a_checkout(checkout):
    assert re.fullmatch("[0-9a-f]{40}", environment.git_commit(checkout))
    (checkout / "environment.py").write_text("changed")
    assert re.fullmatch("[0-9a-f]{40}-dirty", environment.git_commit(checkout))


def test_an_installed_copy_inside_somebody_s_repository_has_none(checkout):
    installed = checkout / ".venv"
    installed.mkdir()
    (installed / "environment.py").write_text("not tracked")
    assert environment.git_commit(installed) is None
    assert environment.git_commit(checkout / "missing") is None


def test_versions_name_what_decides_the_numbers():
    found = environment.versions()
    assert {"python", "torch", "numpy"} <= found.keys()
    assert all(isinstance(version, str) for version in found.values())
