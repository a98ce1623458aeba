"""What is fetched from the Hugging Face Hub, from one that runs in this process."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from patchsae import load_sae
from patchsae.disk.paths import OutsidePath
from patchsae.models.checkpoints import hub, published
from patchsae.models.checkpoints.hub import HubId
from tests.models.checkpoints.local_hub import LocalHub, serving

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def there() -> LocalHub:
    """Two commits: the first is tagged v1, the second is main and a branch with a slash in its name."""
    first = {
        ".gitattributes": b"*",
        "README.md": b"# words",
        "config.json": b"{}",
        "sae.pt": b"first weights",
        "preview.png": b"pixels",
        "layer_6/run/sae.pt": b"of layer 6",
        "layer_6/run/config.yaml": b"k: 1",
        "layer_6/run/log.txt": b"lines",
        "layer_6/run/deeper/other.pt": b"another",
        "layer_7/run/sae.safetensors": b"of layer 7",
    }
    second = {**first, "sae.pt": b"second weights", "layer_6/run/sae.pt": b"of layer 6, again"}
    return LocalHub({FIRST: first, SECOND: second}, {"main": SECOND, "v1": FIRST, "user/branch": FIRST})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before it asks again
    return tmp_path / "hub"


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_ENDPOINT is read when huggingface_hub is imported, which it is by now."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def served(there: LocalHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with serving(there) as address:
        point_at(address, monkeypatch)
        yield there


@pytest.fixture
def downed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server at all."""
    with serving(LocalHub({}, {})) as address:
        point_at(address, monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below ``folder``, by their paths there."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("owner/name", HubId("owner/name")),
        ("owner/name/", HubId("owner/name")),
        ("owner/name@v1", HubId("owner/name", "", "v1")),
        ("owner/name/a/b.c", HubId("owner/name", "a/b.c")),
        ("owner/name/a b/x~y_0.0.pth@refs/pr/1", HubId("owner/name", "a b/x~y_0.0.pth", "refs/pr/1")),
        (f"owner/na.me@{FIRST}", HubId("owner/na.me", "", FIRST)),
    ],
)
def test_an_id_names_a_place(source: str, place: HubId) -> None:
    assert hub.parse(source) == place


@pytest.mark.parametrize(
    "source",
    [
        *("name", "", "/", "owner/", "./owner/name", "../owner/name", "/owner/name", "owner/..", "owner/name/../x"),
        *("owner/name/a//b", "owner/name/./a", "owner/name@", "owner/name@../main", "owner/name@a@b", "owner/name@-x"),
        *("owner/name/a\\b", "owner/name/a\nb", "owner/name@a//b", "owner/name@/etc", "C:\\owner\\name"),
    ],
)
def test_what_is_no_id_is_said(source: str) -> None:
    assert hub.parse(source) is None
    with pytest.raises(FileNotFoundError, match="is no Hugging Face Hub id"):
        hub.fetch(source)


@pytest.mark.parametrize(
    ("source", "commit", "inside", "files"),
    [
        ("owner/name", SECOND, "", {"config.json": b"{}", "sae.pt": b"second weights"}),
        ("owner/name@v1", FIRST, "", {"config.json": b"{}", "sae.pt": b"first weights"}),
        ("owner/name/layer_6/run", SECOND, "layer_6/run", {"sae.pt": b"of layer 6, again", "config.yaml": b"k: 1"}),
        ("owner/name/layer_6/run@v1", FIRST, "layer_6/run", {"sae.pt": b"of layer 6", "config.yaml": b"k: 1"}),
        ("owner/name/layer_6/run@user/branch", FIRST, "layer_6/run", {"sae.pt": b"of layer 6", "config.yaml": b"k: 1"}),
        (f"owner/name/layer_7/run@{FIRST}", FIRST, "layer_7/run", {"sae.safetensors": b"of layer 7"}),
    ],
)
def test_a_folder_is_fetched_with_its_weights_and_configurations_alone(
    served: LocalHub, cache: Path, source: str, commit: str, inside: str, files: dict[str, bytes]
) -> None:
    path = hub.fetch(source)
    assert path == cache / "models--owner--name" / "snapshots" / commit / inside
    assert contents(path) == files
    assert sorted(served.downloaded) == sorted(f"{inside}/{name}".strip("/") for name in files)


def test_a_file_is_fetched_with_the_configurations_beside_it(served: LocalHub) -> None:
    served.files[SECOND]["layer_6/run/older.pt"] = b"older"
    path = hub.fetch("owner/name/layer_6/run/sae.pt")
    assert path.read_bytes() == b"of layer 6, again"
    assert contents(path.parent).keys() == {"sae.pt", "config.yaml"}


def test_a_branch_that_moved_is_fetched_anew(served: LocalHub) -> None:
    assert (hub.fetch("owner/name@user/branch") / "sae.pt").read_bytes() == b"first weights"
    served.names["user/branch"] = SECOND
    for served.dead in (False, True):
        assert (hub.fetch("owner/name@user/branch") / "sae.pt").read_bytes() == b"second weights"


def test_a_cache_that_takes_no_more_names_does(served: LocalHub, cache: Path) -> None:
    (cache / "models--owner--name").mkdir(parents=True)
    (cache / "models--owner--name" / "refs").write_text("in the way")
    assert (hub.fetch("owner/name") / "sae.pt").read_bytes() == b"second weights"


@pytest.mark.parametrize("source", ["owner/name", "owner/name/layer_6/run@v1", f"owner/name@{FIRST}"])
def test_without_a_server_the_cache_serves(
    served: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    first = hub.fetch(source)
    assert hub.fetch(source) == first
    asked = len(served.downloaded)
    served.dead = True
    assert hub.fetch(source) == first
    assert len(served.downloaded) == asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.fetch(source) == first
    assert contents(first)


@pytest.mark.parametrize(
    ("source", "lacks"),
    [
        ("owner/name/layer_6/run", "; what was fetched of owner/name on the Hugging Face Hub has no layer_6/run"),
        ("owner/name/sae.pth", "; what was fetched of owner/name on the Hugging Face Hub has no sae.pth"),
        ("owner/name@v1", ""),
        ("owner/other", ""),
    ],
)
@pytest.mark.usefixtures("served")
def test_without_a_server_the_cache_serves_nothing_that_was_not_fetched(
    monkeypatch: pytest.MonkeyPatch, source: str, lacks: str
) -> None:
    hub.fetch("owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="could not be had from the Hugging Face Hub: .*HF_HUB_OFFLINE") as no:
        hub.fetch(source)
    assert str(no.value).endswith(f"to where it was downloaded{lacks}")


@pytest.mark.usefixtures("downed")
def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"could not be had .*\(ConnectError\); try again with a network, or nam"
    ):
        hub.fetch("owner/name")


@pytest.mark.parametrize("cut", ["sae.pt", "config.json"])
def test_a_download_that_is_cut_off_leaves_nothing(served: LocalHub, cache: Path, cut: str) -> None:
    served.files[SECOND][cut] = b"content" * 10_000
    served.cut = cut
    with pytest.raises(FileNotFoundError, match=r"could not be had from the Hugging Face Hub: .*; try again"):
        hub.fetch("owner/name")
    left = contents(cache)
    assert not any(b"content" in content for content in left.values())
    for source in ("owner/name", f"owner/name@{SECOND}"):
        with pytest.raises(FileNotFoundError, match="could not be had"):
            hub.fetch(source)
    served.dead, served.cut = False, ""
    assert (hub.fetch("owner/name") / cut).read_bytes() == b"content" * 10_000


def test_a_server_that_lists_files_and_gives_none_is_said(served: LocalHub, cache: Path) -> None:
    served.broken = True
    with pytest.raises(
        FileNotFoundError, match="could not be had from the Hugging Face Hub: .*LocalEntryNotFoundError"
    ):
        hub.fetch("owner/name")
    assert contents(cache) == {}


def test_a_folder_without_weights_names_those_that_have_some(served: LocalHub) -> None:
    for name in ("sae.pt", "config.json"):
        del served.files[SECOND][name]
    with pytest.raises(FileNotFoundError) as refusal:
        hub.fetch("owner/name")
    assert "has no weights (.safetensors, .pt, .pth, .ckpt, .bin) in its root; folders that have some are " in str(
        refusal.value
    )
    assert "layer_6/run, layer_6/run/deeper, layer_7/run: name one, such as owner/name/layer_6/run" in str(
        refusal.value
    )
    with pytest.raises(FileNotFoundError, match="in layer_7; folders that have some are layer_7/run: name one"):
        hub.fetch("owner/name/layer_7")
    assert served.downloaded == []


def test_of_many_folders_a_few_are_named(served: LocalHub) -> None:
    served.files[SECOND] = {f"run_{i:02}/sae.pt": b"x" for i in range(60)}
    with pytest.raises(FileNotFoundError, match=r"run_07 and 52 more: name one, such as owner/name/run_00$"):
        hub.fetch("owner/name")
    served.files[SECOND] = {"README.md": b"soon"}
    with pytest.raises(FileNotFoundError, match="in its root, nor in folders below: expected the repository of a SAE"):
        hub.fetch("owner/name")


def test_a_folder_of_many_weights_is_no_sae(served: LocalHub) -> None:
    served.files[SECOND] = {f"all/{i}.pth": b"x" for i in range(5)}
    with pytest.raises(FileNotFoundError, match="5 files of weights in all, more than one SAE has: name one, such as "):
        hub.fetch("owner/name/all")
    assert hub.fetch("owner/name/all/3.pth").name == "3.pth"
    assert served.downloaded == ["all/3.pth"]


def test_a_large_json_is_no_configuration(served: LocalHub) -> None:
    served.files[SECOND]["latents.json"] = b" " * (hub.MOST_CONFIGURATION + 1)
    hub.fetch("owner/name")
    assert served.downloaded == ["config.json", "sae.pt"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("owner/nothing", "Hub has no such repository or shows it to its members only: look at the name, or log in"),
        ("owner/name@v2", r"has no revision v2: http://127.0.0.1:\d+/owner/name lists its branches, tags"),
        ("owner/name/layer_8", "owner/name on the Hugging Face Hub has no layer_8"),
        ("owner/name/layer_6/run/sae.pth", "owner/name on the Hugging Face Hub has no layer_6/run/sae.pth"),
        ("owner/name/layer_8/sae.pt", "owner/name on the Hugging Face Hub has no layer_8/sae.pt"),
        ("owner/name--x", "could not be had from the Hugging Face Hub: "),
    ],
)
@pytest.mark.usefixtures("served")
def test_what_the_hub_does_not_have_is_said_in_a_line(source: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message) as refusal:
        hub.fetch(source)
    assert "\n" not in str(refusal.value)


def test_a_gated_repository_is_said(served: LocalHub) -> None:
    served.gated = True
    with pytest.raises(FileNotFoundError, match=r"is gated: ask for access at http.*/owner/name, then log in with"):
        hub.fetch("owner/name")


@pytest.mark.parametrize("name", ["../sae.pt", "/etc/sae.pt", "layer_6/../../sae.pt", "a\\..\\sae.pt", "a\nb.pt"])
def test_a_listed_path_that_lies_elsewhere_is_refused(served: LocalHub, cache: Path, name: str) -> None:
    served.answers[f"/api/models/owner/name/tree/{SECOND}"] = [{"type": "file", "path": name, "size": 1, "oid": "0"}]
    with pytest.raises(
        OutsidePath, match=r"owner/name on the Hugging Face Hub lists the file .* in its root; expected"
    ):
        hub.fetch("owner/name")
    assert contents(cache) == {}


def test_a_listed_path_of_another_folder_is_refused(served: LocalHub) -> None:
    of_another = [{"type": "file", "path": "layer_7/run/sae.pt", "size": 1, "oid": "0"}]
    served.answers[f"/api/models/owner/name/tree/{SECOND}/layer_6"] = of_another
    with pytest.raises(OutsidePath, match="lists the file 'layer_7/run/sae.pt' in layer_6"):
        hub.fetch("owner/name/layer_6")


def test_files_of_folders_below_that_are_listed_are_not_fetched(served: LocalHub) -> None:
    files = [{"type": "file", "path": path, "size": 9, "oid": "0"} for path in served.files[SECOND]]
    served.answers[f"/api/models/owner/name/tree/{SECOND}"] = files
    hub.fetch("owner/name")
    assert served.downloaded == ["config.json", "sae.pt"]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("revision/main", {"id": "owner/name", "sha": "../../../x"}),
        ("revision/main", {"id": "owner/name"}),
        ("revision/main", []),
        ("revision/main", "words"),
        (f"tree/{SECOND}", {"error": "words"}),
        (f"tree/{SECOND}", [["sae.pt"]]),
        (f"tree/{SECOND}", [{"type": "file", "path": 3, "size": 1, "oid": "0"}]),
        (f"tree/{SECOND}", [{"type": "file", "path": "sae.pt", "size": "large", "oid": "0"}]),
    ],
)
def test_an_answer_that_is_none_is_said(served: LocalHub, cache: Path, asked: str, answer: object) -> None:
    served.answers[f"/api/models/owner/name/{asked}"] = answer
    with pytest.raises(FileNotFoundError, match="could not be had from the Hugging Face Hub: "):
        hub.fetch("owner/name")
    assert contents(cache) == {}


def test_a_short_name_brings_its_tower_along(
    served: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = io.BytesIO(b'{"schema": 5, "cfg": {"activation": {"cls": "Relu", "params": {}}}}\n')
    held.seek(0, io.SEEK_END)
    torch.save(
        {"W_enc": torch.ones(3, 5), "b_enc": torch.ones(5), "W_dec": torch.ones(5, 3), "b_dec": torch.ones(3)}, held
    )
    served.files[SECOND]["layer_6/run/sae.pt"] = held.getvalue()
    known = published.find("saev/clip-b16-in1k")
    assert known is not None
    there = dataclasses.replace(known, source="owner/name/layer_6/run")
    monkeypatch.setattr(published, "find", {"saev/clip-b16-in1k": there}.get)
    sae = load_sae("saev/clip-b16-in1k", "cpu")
    assert {key: sae.config.metadata[key] for key in known.metadata} == known.metadata
    assert "ViT-B-16-quickgelu openai, output of block 10, patches" in capsys.readouterr().err
