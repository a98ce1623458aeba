from __future__ import annotations

import collections
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from patchsae.disk import archives
from patchsae.disk.claims import FalseClaim
from patchsae.disk.contents import UnexpectedContent
from tests import malice

CONFIG_CLASSES = {f"src.sae_training.config.{name}": archives.Inert for name in ("Config", "ViTSAERunnerConfig")}
NAMES = list(malice.payloads(Path("unused")))
MISUSES = list(malice.harmless_names(Path("unused")))
RUNS_WITHOUT_HELP = ["os.system", "eval", "exec", "python 3 eval", "INST", "OBJ", "STACK_GLOBAL", "getattr"]


@pytest.mark.parametrize("name", RUNS_WITHOUT_HELP)
def test_the_payloads_are_real(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "file").write_bytes(malice.payloads(marker)[name][1])
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=True)
    assert marker.exists()


@pytest.mark.parametrize("wrap", [malice.archive, bytes], ids=["archive", "bare pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_for_is_named_and_nothing_runs(tmp_path: Path, name: str, wrap: type) -> None:
    marker = tmp_path / "marker"
    wanted, pickled = malice.payloads(marker)[name]
    (tmp_path / "sae.pt").write_bytes(wrap(pickled))
    with pytest.raises(archives.UnsafeFileError) as refusal:
        archives.load_archive(tmp_path / "sae.pt", CONFIG_CLASSES)
    asked = list(archives.asked_for(pickled))
    assert wanted in asked
    first = next(item for item in asked if item not in CONFIG_CLASSES)
    assert first in str(refusal.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", MISUSES)
def test_allowed_names_cannot_be_misused(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    (tmp_path / "sae.pt").write_bytes(malice.archive(malice.harmless_names(marker)[name]))
    with pytest.raises(archives.UnsafeFileError):
        archives.load_archive(tmp_path / "sae.pt", CONFIG_CLASSES)
    assert not marker.exists()
    assert not hasattr(torch._utils._rebuild_tensor_v2, "evil")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def test_what_the_process_allows_torch_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(malice.archive(b"\x80\x02ccollections\nCounter\n)R."))
    with torch.serialization.safe_globals([eval]), pytest.raises(archives.UnsafeFileError, match="collections.Counter"):
        archives.load_archive(tmp_path / "file.pt", {})
    assert eval not in torch.serialization.get_safe_globals()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_pickles_under_one_name_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = malice.payloads(marker)["os.system"][1]
    for first, second in ((evil, b"\x80\x02N."), (b"\x80\x02N.", evil)):
        (tmp_path / "file.pt").write_bytes(malice.archive(first, twice=second))
        with pytest.raises(archives.UnsafeFileError, match=r"expected one data\.pkl"):
            archives.load_archive(tmp_path / "file.pt", {})
    assert not marker.exists()


def test_a_pickle_in_front_of_an_archive_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = malice.payloads(marker)["os.system"][1]
    (tmp_path / "file.pt").write_bytes(evil + malice.archive(b"\x80\x02N."))
    with pytest.raises(archives.UnsafeFileError, match=r"a bare pickle.*asks for posix\.system"):
        archives.load_archive(tmp_path / "file.pt", {})
    assert not marker.exists()


def test_files_of_old_torch_are_refused_with_what_they_ask_for(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = {"state_dict": {}, "cfg": malice.Reduced(eval, f"open({str(marker)!r}, 'w')")}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(archives.UnsafeFileError, match=r"torch < 1\.6 and asks for __builtin__\.eval"):
        archives.load_archive(tmp_path / "old.pt", CONFIG_CLASSES)
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnexpectedContent, match=r"a file of torch < 1\.6; expected .*save it again"):
        archives.load_archive(tmp_path / "plain.pt", {})
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 but no archive", pickle.dumps([1])])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(UnexpectedContent, match=r"file\.pt is .*; expected what torch\.save \(1\.6 or newer\) writes"):
        archives.load_archive(tmp_path / "file.pt", {})


def number(value: int | tuple[int, ...]) -> bytes:
    """Opcodes of a number or of a tuple of numbers."""
    return pickle.dumps(value, 2)[2:-1]


def claimed_tensor(numel: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Opcodes of a float32 tensor of this size and stride on storage 0, which is said to hold `numel`."""
    kind = b"ctorch\nFloatStorage\n"
    storage = b"(" + malice.text("storage") + kind + malice.text("0") + malice.text("cpu") + number(numel) + b"tQ"
    rest = number(0) + number(size) + number(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def nested_tuples(levels: int, each: bytes) -> bytes:
    """Opcodes of a dict whose key is tuples in tuples: `each` makes one of the one on the stack."""
    return b"}" + b")" + levels * each + b"K\x01s"


CLAIMS = {
    "a stride of 0": (claimed_tensor(1, (2**20, 2**14), (0, 0)), "claims 68,719,476,736 bytes of tensors and stores 4"),
    "many views of one storage": (
        b"(" + 9 * claimed_tensor(1, (1,), (1,)) + b"t",
        "claims 36 bytes of tensors and stores 4 for them",
    ),
    "a storage that is not there": (claimed_tensor(2**40, (2**40,), (1,)), "cannot be read as tensors"),
    "a view beyond its storage": (claimed_tensor(1, (2**30,), (1,)), "cannot be read as tensors"),
    "a storage made by a call": (b"ctorch.storage\nUntypedStorage\n" + number((2**40,)) + b"R", "UntypedStorage"),
    "2^60 entries in a key": (nested_tuples(60, b"q\0h\0\x86"), "a tuple of 131,071 entries"),
    "a key of a million levels": (nested_tuples(10**6, b"\x85"), "in 101 levels"),
    "more opcodes than fit": (b"N0" * 2**21 + b"N0N", "its pickle claims"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_no_memory_is_taken_by_what_a_pickle_claims(tmp_path: Path, name: str) -> None:
    pickled, message = CLAIMS[name]
    (tmp_path / "file.pt").write_bytes(malice.archive(b"\x80\x02" + pickled + b"."))
    with malice.little_memory(), pytest.raises(ValueError, match=message) as refusal:
        archives.load_archive(tmp_path / "file.pt", {})
    assert "file.pt" in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    ("compression", "zeros", "message"),
    [(zipfile.ZIP_DEFLATED, 65 * 2**20, "of compressed entries"), (zipfile.ZIP_LZMA, 8, "that torch never")],
)
def test_an_archive_is_no_larger_than_its_file(tmp_path: Path, compression: int, zeros: int, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", compression) as bomb:
        bomb.writestr("archive/data.pkl", b"\x80\x02N.")
        bomb.writestr("archive/data/0", bytes(zeros))
    with malice.little_memory(2**26), pytest.raises(ValueError, match=message):
        archives.load_archive(tmp_path / "bomb.pt", {})


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    content = malice.archive(b"\x80\x02N.", shared=(200, 100_000))
    (tmp_path / "file.pt").write_bytes(content)
    with malice.little_memory(), pytest.raises(FalseClaim, match="the archive claims 20,0"):
        archives.load_archive(tmp_path / "file.pt", {})


@pytest.mark.parametrize("name", ["half", "ordered", "tied"])
def test_what_is_stored_once_may_be_named_twice(tmp_path: Path, name: str) -> None:
    weight = torch.arange(12.0)
    content = {"half": {"a": weight[:6]}, "ordered": {"a": weight, "b": weight}, "tied": [weight, weight.view(3, 4).T]}
    torch.save(content[name], tmp_path / "file.pt")
    assert len(archives.load_archive(tmp_path / "file.pt", {})) == len(content[name])


def test_tensors_and_plain_values_round_trip(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    content = {
        "transposed": base.T,
        "half": base.half(),
        "brain": base.bfloat16(),
        "whole": torch.tensor([1, 2]),
        "parameter": nn.Parameter(base),
        "ordered": collections.OrderedDict(a=base),
        "settings": {
            "dtype": torch.float32,
            "device": torch.device("cpu"),
            "lr": 4e-4,
            "none": None,
            "list": [1, (2, 3)],
        },
        "shape": base.shape,
    }
    torch.save(content, tmp_path / "file.pt")
    loaded = archives.load_archive(tmp_path / "file.pt", {})
    assert loaded["settings"] == content["settings"]
    assert loaded["shape"] == base.shape
    assert torch.equal(loaded["ordered"]["a"], base)
    assert loaded["transposed"].stride() == (1, 4)
    for name in ("transposed", "half", "brain", "whole", "parameter"):
        assert torch.equal(loaded[name], content[name])


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))])
        self.scale = nn.Parameter(torch.randn(2))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.blocks[1](self.blocks[0](x)) * self.scale)


@pytest.fixture
def scripted(tmp_path: Path) -> tuple[nn.Module, Path]:
    module = Scripted().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the files that it wrote are what this is about
        torch.jit.save(torch.jit.script(module), tmp_path / "scripted.pt")
    return module, tmp_path / "scripted.pt"


def test_a_torchscript_archive_gives_its_state_dict_and_its_code(scripted: tuple[nn.Module, Path]) -> None:
    module, path = scripted
    state, code = archives.load_torchscript(path)
    expected = module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert "torch.sigmoid(" in code


def test_a_torchscript_archive_cannot_bring_a_pickle_that_runs(
    scripted: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    with zipfile.ZipFile(scripted[1]) as good, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
        for name in good.namelist():
            payload = malice.payloads(marker)["os.system"][1] if name.endswith("/data.pkl") else good.read(name)
            evil.writestr(name, payload)
    with pytest.raises(archives.UnsafeFileError, match=r"posix\.system"):
        archives.load_torchscript(tmp_path / "evil.pt")
    assert not marker.exists()


def test_what_a_library_says_of_a_damaged_archive_is_cut(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(20_000)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (begin,) = (entry.header_offset for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
    content[begin + 6 : begin + 8] = bytes(2)  # names in any bytes
    content[begin + 26 : begin + 28] = (20_000).to_bytes(2, "little")  # the length of the entry's name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        archives.load_archive(path, {})
    assert len(str(error.value)) < 800


def test_classes_of_a_package_are_inert_and_know_their_name(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "module.pt"
    path.write_bytes(malice.archive(b"cvendor.models\nSAE\n)\x81."))
    found = archives.load_archive(path, {}, packages=("vendor.",))
    assert isinstance(found, archives.Inert)
    assert type(found).__name__ == "vendor.models.SAE"
    assert not marker.exists()


@pytest.mark.parametrize("asked", ["vendored.models\nSAE", "os\nvendor.system", "vendor.a\x00b\nSAE", "vendor. \nSAE"])
def test_a_name_outside_of_a_package_is_refused(tmp_path: Path, asked: str) -> None:
    path = tmp_path / "module.pt"
    path.write_bytes(malice.archive(b"c" + asked.encode() + b"\n)\x81."))
    with pytest.raises(archives.UnsafeFileError, match=r"module\.pt asks for"):
        archives.load_archive(path, {}, packages=("vendor.",))
