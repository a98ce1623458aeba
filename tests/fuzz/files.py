"""Attacks on weights: autoencoders, CLIPs, adapters and official checkpoints, damaged, hostile, or something else.

Laws: ValueError, OSError or PatchsaeError that names the file in few words, or weights that are finite numbers of the
shapes that they should have; nothing runs; memory and time stay small.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import struct
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from patchsae import load_adapter, load_clip, load_maple, load_sae
from patchsae.adapters import save_adapter
from patchsae.adapters.maple import MaPLeConfig
from patchsae.disk import archives
from patchsae.errors import PatchsaeError
from patchsae.models.clip_weights import read_weights
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests import malice
from tests.adapters.checkpoints import write_official
from tests.adapters.towers import NAMES, make_adapter, make_clip
from tests.disk.test_contents import KINDS
from tests.fuzz.memory import at_most
from tests.models.checkpoints.formats import overcomplete_modules
from tests.small_clips import write_clip

MEMORY, SECONDS, WORDS = 400e6, 20.0, 1000
_ODD: list[Any] = [
    0,
    1,
    -1,
    2**31,
    2**53 + 1,
    10**12,
    10**40,
    10**400,
    0.5,
    1e300,
    -0.0,
    True,
    None,
    "",
    "6",
    "\ud800",
    "x" * 5000,
    [],
    [1],
    [[[[]]]],
    {},
    {"a": {}},
    [0] * 1000,
]
_ODD_TEXT = ["NaN", "-Infinity", "1e999", "[" * 5000, '{"a":' * 5000, "9" * 5000, '{"a":1,"a":2}', '"\\ud800"', "{", ""]


def damaged(rng: random.Random) -> None:
    """Bytes of a real file changed, cut, doubled, or taken from another."""
    kind = rng.choice(list(_real()))
    with _copied(kind) as (path, read):
        file = rng.choice(_files(path))
        file.write_bytes(_mutated(rng, file.read_bytes()))
        _try(path, read)


def damaged_inside(rng: random.Random) -> None:
    """A torch archive that is whole, around a pickle with changed bytes, or with entries that are not."""
    kind = rng.choice(
        [
            kind
            for kind in _real()
            if kind in ("released SAE", "CLIP pt", "TorchScript", "official MaPLe", "overcomplete")
        ]
    )
    with _copied(kind) as (path, read):
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(
            [name for name in entries if name.endswith((".pkl", "byteorder", "version"))] * 3 + [*entries]
        )
        entries[name] = _mutated(rng, entries[name])
        with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        _try(path, read)


def pickled(rng: random.Random) -> None:
    """Opcodes that ask for nothing forbidden, in any order and with any claim."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.pt"
        path.write_bytes(
            malice.archive(b"\x80\x02" + b"".join(_fragment(rng) for _ in range(rng.randint(1, 30))) + b".")
        )
        _try(path, rng.choice([load_sae, read_weights, _official, _archive]))


def header(rng: random.Random) -> None:
    """A safetensors file whose header claims anything."""
    with _copied(rng.choice(["SAE", "adapter", "CLIP folder", "CLIP safetensors"])) as (path, read):
        file = next(file for file in _files(path) if file.suffix == ".safetensors")
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        _change(rng, entries)
        text = _spoiled(rng, json.dumps(entries)).encode("utf-8", "replace")
        claimed = len(text) if rng.random() < 0.8 else rng.choice([0, 1, 2**26, 2**40, 2**63, len(text) + 1])
        file.write_bytes(struct.pack("<Q", claimed) + text + content[8 + length :])
        _try(path, read)


def configured(rng: random.Random) -> None:
    """A configuration beside real weights, or in their header, of which an entry is something else."""
    kind = rng.choice(
        ["SAE", "adapter", "CLIP folder", "prisma", "visaebench", "dictionary_learning", "sparsify", "llamascopium"]
    )
    with _copied(kind) as (path, read):
        if kind == "adapter":
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            entries = json.loads(content[8 : 8 + length])
            record = json.loads(entries["__metadata__"]["patchsae_adapter"])
            _change(rng, record)
            path.write_bytes(save(load(content), {"patchsae_adapter": _spoiled(rng, json.dumps(record))}))
        else:
            file = next(file for file in _files(path) if file.suffix == ".json")
            record = json.loads(file.read_text())
            _change(rng, record)
            text = _spoiled(rng, json.dumps(record))
            file.write_text(text)
            if kind == "SAE":  # which the weights have to agree with
                weights = path / "sae.safetensors"
                weights.write_bytes(save(load(weights.read_bytes()), {"config": text}))
        _try(path, read)


def tensors(rng: random.Random) -> None:
    """Weights of other types and shapes, not finite, or views of each other."""
    with _copied(rng.choice(["SAE", "released SAE", "adapter", "CLIP pt", "official MaPLe"])) as (path, read):
        if path.is_dir():
            path = path / "sae.safetensors"
        if path.suffix == ".safetensors":
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            state, about = load(content), json.loads(content[8 : 8 + length]).get("__metadata__")
            name = rng.choice(list(state))
            path.write_bytes(save({**state, name: _other(rng, state[name]).contiguous()}, about))
        else:
            whole = torch.load(path, weights_only=False)
            state = whole.get("state_dict", whole)
            name = rng.choice(list(state))
            state[name] = _other(rng, state[name].detach())
            torch.save(whole, path)
        _try(path.parent if path.name == "sae.safetensors" else path, read)


def something_else(rng: random.Random) -> None:
    """A file of another kind under the name of weights."""
    content, _ = KINDS[rng.choice(list(KINDS))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / rng.choice(["sae.pt", "clip.safetensors", "model.pth.tar-5", "weights.bin", "x"])
        path.write_bytes(content[: rng.choice([len(content), rng.randint(0, len(content))])])
        _try(path, rng.choice([load_sae, read_weights, _official, _adapter, _pretrained, _archive]))


def names(rng: random.Random) -> None:
    """Names of models, weights and checkpoints that are none."""
    parts = [
        "ViT-B-32",
        "openai",
        "hf-hub:",
        "local-dir:",
        "/",
        "..",
        "tiny",
        "random",
        "~",
        "\0",
        "\n",
        "猫",
        "\udce9",
    ]
    name = "".join(rng.choice(parts) for _ in range(rng.randint(1, 4))) * rng.choice([1, 1, 1, 500])
    if rng.random() < 0.5:
        _try(name, lambda name: load_clip(f"local-dir:{name}" if rng.random() < 0.3 else name))
    else:
        _try(name, lambda name: load_clip("ViT-S-32-alt", f"no {name}"))


ATTACKS: dict[str, Callable[[random.Random], None]] = {
    attack.__name__: attack
    for attack in (damaged, damaged_inside, pickled, header, configured, tensors, something_else, names)
}


def _try(path: Path | str, read: Callable[[Any], Any]) -> None:
    """Read what lies at a path, or is called so, and hold the answer to the laws."""
    begun, told, found = time.monotonic(), None, None
    try:
        with at_most(MEMORY, str(path)[:200]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path)
    except (ValueError, OSError, PatchsaeError) as error:
        told = f"{type(error).__name__}: {error}"
    if told is not None:
        assert isinstance(path, str) or str(path) in told, f"without the file's name: {told[:300]}"
        assert len(told) < WORDS + 2 * len(str(path)[:1000]), f"{len(told)} letters: {told[:300]}"
    for name, tensor in _weights(found):
        assert bool(tensor.isfinite().all()), f"{name} of {path} is not finite"
    assert time.monotonic() - begun < SECONDS, f"{path}: took {time.monotonic() - begun:.0f} s"


def _weights(found: Any) -> Iterator[tuple[str, Tensor]]:
    """What is to be finite in what a reader returns."""
    model = getattr(found, "model", found)
    if isinstance(model, nn.Module):
        yield from model.named_parameters()
    elif hasattr(found, "trainable"):
        yield from found.trainable().items()


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def _real() -> dict[str, tuple[Path, Callable[[Any], Any]]]:
    """A real one of each format, and its reader."""
    root = Path(_kept().name)
    sae = SparseAutoencoder(SAEConfig(6, 20, metadata={"model": "tiny", "layer": 2}))
    sae.save(root / "sae")
    torch.save({"cfg": {"d_in": 6, "d_sae": 20}, "state_dict": dict(sae.state_dict())}, root / "sae.pt")
    with (root / "saev.pt").open("wb") as file:
        file.write(b'{"schema": 1, "cls": "TopK", "cfg": {"d_model": 6, "d_sae": 20, "top_k": 3}}\n')
        torch.save(dict(sae.state_dict()), file)
    clip = write_clip(root / "clip")
    state = load((clip / "open_clip_model.safetensors").read_bytes())
    small = {name: value for name, value in state.items() if value.numel() < 10_000}
    (root / "clip.safetensors").write_bytes(save(small))
    torch.save(small, root / "clip.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))), root / "script.pt")
    adapted = make_adapter("maple", make_clip(), MaPLeConfig(2, 2))
    save_adapter(adapted, root / "adapter.safetensors")
    write_official(adapted, root / "official.pt")
    return {
        "SAE": (root / "sae", load_sae),
        "released SAE": (root / "sae.pt", load_sae),
        "saev": (root / "saev.pt", load_sae),
        **{name: (path, load_sae) for name, path in _of_vision_libraries(root, dict(sae.state_dict())).items()},
        **{name: (path, load_sae) for name, path in _of_text_libraries(root, dict(sae.state_dict())).items()},
        **{name: (path, load_sae) for name, path in _of_concept_libraries(root, dict(sae.state_dict())).items()},
        "CLIP folder": (clip, lambda path: load_clip(f"local-dir:{path}", device="cpu")),
        "CLIP safetensors": (root / "clip.safetensors", read_weights),
        "CLIP pt": (root / "clip.pt", read_weights),
        "TorchScript": (root / "script.pt", read_weights),
        "adapter": (root / "adapter.safetensors", _adapter),
        "official MaPLe": (root / "official.pt", _official),
    }


def _of_vision_libraries(root: Path, state: dict[str, Tensor]) -> dict[str, Path]:
    """A SAE in the formats of other libraries."""
    prisma = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "cls_token_only": False, "d_in": 6}
    prisma |= {"hook_point_layer": 2, "layer_subtype": "hook_resid_post", "model_name": "tiny"}
    visaebench = {"encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"], "decoder.weight": state["W_dec"]}
    said = {"input_dim": 6, "hidden_dim": 20, "activation": "batchtopk", "threshold": 0.5}
    openai = {"pre_bias": state["b_dec"], "encoder.weight": state["W_dec"], "latent_bias": state["b_enc"]}
    topk = {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}}
    torch.save({**openai, **topk, "decoder.weight": state["W_dec"].T}, root / "openai.pt")
    return {
        "openai": root / "openai.pt",
        "prisma": _beside(root / "prisma", prisma, state),
        "visaebench": _beside(root / "visaebench", said, visaebench),
    }


def _of_text_libraries(root: Path, state: dict[str, Tensor]) -> dict[str, Path]:
    """A SAE in the formats of libraries that began with language."""
    batched = {**state, "k": torch.tensor(3), "threshold": torch.tensor(0.1), "group_sizes": torch.tensor([8, 12])}
    trainer = {"dict_class": "MatryoshkaBatchTopKSAE", "activation_dim": 6, "dict_size": 20, "k": 3, "layer": 2}
    linear = {"encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"]}
    sparsify = linear | {name: state[name] for name in ("W_dec", "b_dec")}
    topk = {"activation": "topk", "num_latents": 20, "k": 3, "skip_connection": False, "transcode": False, "d_in": 6}
    llamascopium = {"W_E": state["W_enc"], "b_E": state["b_enc"], "W_D": state["W_dec"], "b_D": state["b_dec"]}
    llamascopium |= {"dataset_average_activation_norm.x": torch.tensor(3.0)}
    scaled = {"d_model": 6, "act_fn": "topk", "top_k": 3, "norm_activation": "dataset-wise", "hook_point_in": "x"}
    scaled |= {"sae_type": "sae", "expansion_factor": 20 / 6, "hook_point_out": "x"}
    return {
        "dictionary_learning": _beside(root / "dictionary_learning", {"trainer": trainer}, batched),
        "sparsify": _beside(root / "sparsify", topk, sparsify),
        "llamascopium": _beside(root / "llamascopium", scaled, llamascopium),
    }


def _of_concept_libraries(root: Path, state: dict[str, Tensor]) -> dict[str, Path]:
    """A SAE in the formats of those who look for concepts: Overcomplete, its fork, and of image embeddings."""
    W_enc, b_enc, W_dec, b_dec = (state[name].contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    final = "encoder.final_block"
    linear = {f"{final}.0.weight": W_enc.T.contiguous(), f"{final}.0.bias": b_enc}
    normed = linear | {f"{final}.1.weight": b_enc + 1, f"{final}.1.bias": b_enc}
    batched = normed | {f"{final}.1.running_mean": b_enc, f"{final}.1.running_var": b_enc + 1}
    archetypal = {"W": torch.rand(20, 20), "C": W_dec, "Relax": 0.1 * W_dec, "multiplier": torch.tensor(0.1)}
    named = {f"dictionary.{name}": value for name, value in archetypal.items()}
    msae = {"encoder": W_enc, "latent_bias": b_enc, "pre_bias": b_dec, "decoder": W_dec}
    components = {"encoder._weight": W_enc.T, "encoder._bias": b_enc, "decoder._weight": W_dec.T, "tied_bias": b_dec}
    with overcomplete_modules.library() as made:
        sae = overcomplete_modules.whole(made, "BatchTopKSAE", normed | named, running_threshold=torch.tensor(0.3))
        torch.save(nn.DataParallel(sae.eval()), root / "overcomplete.pth")
    contents = {
        "overcomplete state dict": (batched | {"dictionary._weights": W_dec}, "overcomplete.pt"),
        "universal-sae": ({"epoch": 1, "model_state_dict": batched | {"dictionary._weights": W_dec}}, "universal.pth"),
        "msae": (
            {"model": msae, "mean_center": b_dec, "scaling_factor": 0.3, "target_norm": 1.0},
            "20_6_TopKReLU_3_RW_False_False_1.5_x.pth",
        ),
        "dn-cbm": ({name: value[None] for name, value in components.items()}, "dn_cbm.pt"),
        "sae-ft": ({"b_pre": b_dec, "encoder.weight": W_enc.T, "decoder.weight": W_dec.T}, "sae_3_2.pt"),
    }
    for content, name in contents.values():
        torch.save(content, root / name)
    paths = {kind: root / name for kind, (_, name) in contents.items()}
    return {"overcomplete": root / "overcomplete.pth", **paths}


def _beside(folder: Path, config: dict[str, Any], state: dict[str, Any]) -> Path:
    """A folder with weights and a configuration."""
    folder.mkdir()
    torch.save(state, folder / "sae.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def _copied(kind: str) -> Iterator[tuple[Path, Callable[[Any], Any]]]:
    source, read = _real()[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / source.name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
        yield path, read


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _adapter(path: Path) -> Any:
    return load_adapter(make_clip(), path, NAMES)


def _official(path: Path) -> Any:
    return load_maple(make_clip(), path, NAMES)


def _archive(path: Path) -> Any:
    return archives.load_archive(path, {})


def _pretrained(path: Path) -> Any:
    return load_clip("tiny", str(path), device="cpu")


def _mutated(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(min(len(changed), rng.choice([64, 4096, 2**40])) or 1)
        end = min(len(changed), at + rng.choice([1, 4, 100, 10**6]))
        action = rng.choice(["flip", "cut", "drop", "double", "zero", "random", "splice"])
        if action == "flip" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del changed[at:]
        elif action == "drop":
            del changed[at:end]
        elif action == "double":
            changed[at:at] = changed[at:end]
        elif action == "zero":
            changed[at:end] = bytes(end - at)
        elif action == "random":
            changed[at:end] = rng.randbytes(min(end - at, 1000))
        elif action == "splice":
            other = rng.choice(list(KINDS.values()))[0]
            changed[at:end] = other
    return bytes(changed)


def _fragment(rng: random.Random) -> bytes:
    number = rng.choice([0, 1, 3, 2**31 - 1])
    claim = struct.pack("<i", number)
    storage = b"ctorch\n" + rng.choice([b"FloatStorage", b"HalfStorage", b"LongStorage"]) + b"\n"
    persistent = b"(" + malice.text("storage") + storage + malice.text("0") + malice.text("cpu") + b"J" + claim + b"tQ"
    size = (
        b"("
        + b"".join(b"J" + struct.pack("<i", rng.choice([0, 1, 2**20, -1])) for _ in range(rng.randint(0, 3)))
        + b"t"
    )
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + b"K\x00" + size + size + b"\x89"
    return rng.choice(
        [
            b"}",
            b"]",
            b"(",
            b")",
            b"t",
            b"\x85",
            b"\x86",
            b"s",
            b"u",
            b"a",
            b"e",
            b"b",
            b"R",
            b"0",
            b"N",
            b"K" + bytes([number % 256]),
            b"\x8a\x04" + claim,
            b"r" + struct.pack("<I", number),
            b"j" + struct.pack("<I", rng.choice([0, 1, number])),
            b"q\x00h\x00",
            malice.text(rng.choice(["state_dict", "cfg", "W_enc", "epoch", "x" * 1000])),
            b"ccollections\nOrderedDict\n)R",
            b"ctorch\nSize\n" + size + b"\x85R",
            b"ctorch\ndevice\n" + malice.text(rng.choice(["cpu", "cuda:7", "meta", "x"])) + b"\x85R",
            b"ctorch\nfloat32\n",
            persistent,
            rebuilt + b"ccollections\nOrderedDict\n)RtR",
            b"}"
            + malice.text("state_dict")
            + b"}"
            + malice.text("W_enc")
            + rebuilt
            + b"ccollections\nOrderedDict\n)RtRss",
        ]
    )


def _change(rng: random.Random, record: Any) -> None:
    """Give one entry, anywhere in a tree of JSON, another value or name."""
    places = [record]
    for place in places:
        inner = place.values() if isinstance(place, dict) else place
        places += [value for value in inner if isinstance(value, dict | list)]
    place = rng.choice([place for place in places if place])
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    action = rng.random()
    if action < 0.8:
        place[key] = rng.choice(_ODD)
    elif action < 0.9 and isinstance(place, dict):
        place[rng.choice(["", "extra", "__class__", "x" * 3000])] = place[key]
    else:
        del place[key]


def _spoiled(rng: random.Random, text: str) -> str:
    """Mostly the text itself; else with a value in it that JSON has not, twice, or without end."""
    if rng.random() < 0.7:
        return text
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(_ODD_TEXT) + text[at + rng.choice([0, 0, 1]) :]


def _other(rng: random.Random, tensor: Tensor) -> Tensor:
    return rng.choice(
        [
            lambda: tensor.to(rng.choice([torch.complex64, torch.int8, torch.bool, torch.float16, torch.float64])),
            lambda: tensor.double() * 1e300,
            lambda: torch.full_like(tensor.float(), rng.choice([torch.nan, torch.inf, -torch.inf])),
            lambda: tensor.reshape(-1),
            lambda: tensor.T if tensor.dim() == 2 else tensor[None],
            lambda: tensor.reshape(-1)[:0],
            lambda: tensor.float().to(torch.float8_e4m3fn),
            lambda: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape),
        ]
    )()
