"""Overcomplete's files, written by hand at D 3 and S 5, against its formulas in numpy."""

from __future__ import annotations

import json
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from patchsae import load_sae
from patchsae.disk import archives
from patchsae.disk.claims import FalseClaim
from patchsae.models.checkpoints.formats import dictionaries
from tests import malice
from tests.models.checkpoints.formats import overcomplete_modules
from tests.models.checkpoints.formats.overcomplete_modules import FINAL, whole

pytestmark = pytest.mark.filterwarnings("ignore:.*(not of length 1|which latents a token keeps):UserWarning")

D, S, N, K = 3, 5, 4, 2
ENCODERS = ["linear", "mlp_ln_1", "mlp_bn_1", "tied", "untied"]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoder(kind: str) -> dict[str, Tensor]:
    if kind == "tied":
        return {"encoder.bias": random(2, S)}
    if kind == "untied":
        return {"encoder.weight": random(1, S, D)}
    state = {f"{FINAL}.0.weight": random(1, S, D), f"{FINAL}.0.bias": random(2, S)}
    if kind == "linear":
        return state
    state |= {f"{FINAL}.1.weight": random(3, S), f"{FINAL}.1.bias": random(4, S)}
    if kind == "mlp_ln_1":
        return state
    state |= {f"{FINAL}.1.running_mean": random(5, S), f"{FINAL}.1.running_var": random(6, S).abs()}
    return state | {f"{FINAL}.1.num_batches_tracked": torch.tensor(7)}


def plain() -> dict[str, Tensor]:
    return {"dictionary._weights": random(7, S, D), "dictionary.multiplier": torch.tensor(0.3)}


def archetypal() -> dict[str, Tensor]:
    relax = 0.3 * random(10, S, D)
    relax[1] *= 10  # longer than delta
    relax[2] = 0
    points = {"dictionary.W": random(8, S, N), "dictionary.C": random(9, N, D)}
    return points | {"dictionary.Relax": relax, "dictionary.multiplier": torch.tensor(-0.2)}


def state(kind: str = "linear", dictionary: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    dictionary = plain() if dictionary is None else dictionary
    tied = {name.replace("dictionary", "encoder.tied_to"): value for name, value in dictionary.items()}
    return encoder(kind) | (tied if kind == "tied" else {}) | dictionary


def wide(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}


def their_atoms(w: dict[str, np.ndarray], normalisation: str = "l2", delta: float = 1.0) -> np.ndarray:
    if "dictionary.W" in w:
        positive = np.maximum(w["dictionary.W"], 0)
        relax = w["dictionary.Relax"]
        lengths = np.sqrt((relax**2).sum(1, keepdims=True))
        relax = np.where(lengths > delta, relax * delta / np.maximum(lengths, 1e-30), relax)
        atoms = positive / (positive.sum(1, keepdims=True) + 1e-8) @ w["dictionary.C"] + relax
    else:
        rows = w["dictionary._weights"]
        l2, l1 = np.sqrt((rows**2).sum(1, keepdims=True)), np.abs(rows).sum(1, keepdims=True)
        atoms = (
            rows
            / {"l2": l2 + 1e-8, "l1": l1 + 1e-8, "max_l2": l2.max(), "max_l1": l1.max(), "identity": 1}[normalisation]
        )
    return atoms * np.exp(w["dictionary.multiplier"])


def their_pre(x: np.ndarray, kind: str, w: dict[str, np.ndarray], atoms: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    if kind in ("tied", "untied"):
        return x @ (atoms if kind == "tied" else w["encoder.weight"]).T + w.get("encoder.bias", 0)
    pre = x @ w[f"{FINAL}.0.weight"].T + w[f"{FINAL}.0.bias"]
    if kind == "linear":
        return pre
    mean, var = (pre.mean(1, keepdims=True), pre.var(1, keepdims=True))
    if kind == "mlp_bn_1":
        mean, var = w[f"{FINAL}.1.running_mean"], w[f"{FINAL}.1.running_var"]
    return (pre - mean) / np.sqrt(var + eps) * w[f"{FINAL}.1.weight"] + w[f"{FINAL}.1.bias"]


def largest(z: np.ndarray, k: int) -> np.ndarray:
    kept = np.zeros_like(z)
    order = np.argsort(-z, axis=1)[:, :k]
    np.put_along_axis(kept, order, np.take_along_axis(z, order, 1), 1)
    return kept


def tokens() -> Tensor:
    return 2 * random(11, 60, D) + 0.5


def close(path: Path, latents: np.ndarray, y: np.ndarray, **more: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = load_sae(path, "cpu", **more)
    z = sae.encode(tokens())
    np.testing.assert_allclose(z.to_dense().detach().numpy(), latents, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), y, atol=2e-5)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("dictionary", [plain(), archetypal()], ids=["plain", "archetypal"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_state_dict_answers_as_overcomplete_does(tmp_path: Path, kind: str, dictionary: dict[str, Tensor]) -> None:
    w = wide(state(kind, dictionary))
    atoms = their_atoms(w)
    z = np.maximum(their_pre(tokens().numpy().astype(np.float64), kind, w, atoms), 0)
    path = write(tmp_path / "sae.pt", state(kind, dictionary))
    close(path, z, z @ atoms)
    close(path, largest(z, K), largest(z, K) @ atoms, k=K)
    kept = np.where(z >= 0.4, z, 0)
    close(path, kept, kept @ atoms, threshold=0.4)


@pytest.mark.parametrize("kind", ["linear", "mlp_ln_1", "mlp_bn_1"])
def test_a_standardised_input_is_folded_below_every_norm(tmp_path: Path, kind: str) -> None:
    w, mean, std = wide(state(kind)), torch.tensor([0.5, -1.0, 2.0]), 1.7
    u = (tokens().numpy().astype(np.float64) - mean.numpy()) / std
    atoms = their_atoms(w)
    z = np.maximum(their_pre(u, kind, w, atoms), 0)
    close(write(tmp_path / "sae.pt", state(kind)), z, z @ atoms * std + mean.numpy(), mean=mean, std=std)


@pytest.mark.parametrize("thresholds", [random(12, S), torch.zeros(S)])
def test_thresholds_are_logarithms_and_keep_what_equals_them(tmp_path: Path, thresholds: Tensor) -> None:
    tensors = encoder("linear") | {f"{FINAL}.0.weight": torch.ones(S, D), f"{FINAL}.0.bias": torch.zeros(S)} | plain()
    sae = load_sae(write(tmp_path / "sae.pt", tensors | {"thresholds": thresholds}), "cpu")
    theta = np.exp(thresholds.numpy())
    for token in (0.0, 1.0, -1.0, float(theta[0]), 0.5):
        pre = np.full(S, np.float32(token))
        z = sae.encode(torch.tensor([[token, 0.0, 0.0]])).to_dense()[0].detach().numpy()
        np.testing.assert_array_equal(z, np.where((pre >= theta) & (pre > 0), pre, 0))


def test_the_running_threshold_beside_a_state_dict_keeps_what_equals_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"running_threshold": 1}')
    tensors = encoder("linear") | {f"{FINAL}.0.weight": torch.ones(S, D), f"{FINAL}.0.bias": torch.zeros(S)} | plain()
    save_file(tensors, tmp_path / "model.safetensors")
    x = torch.tensor([[1.0, 0.0, 0.0], [1 - 2**-24, 0.0, 0.0]])
    assert load_sae(tmp_path, "cpu").encode(x).to_dense().sum(1).tolist() == [S, 0]


@pytest.mark.parametrize("value", ["true", '"0.8"', "NaN", "[0.8]", "{}"])
def test_a_running_threshold_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"running_threshold": {value}}}')
    write(tmp_path / "sae.pt", state())
    with pytest.raises(ValueError, match="running_threshold is|config.json"):
        load_sae(tmp_path, "cpu")


@pytest.fixture
def library() -> Iterator[types.SimpleNamespace]:
    with overcomplete_modules.library() as made:
        yield made


@pytest.mark.parametrize("dictionary", [plain(), archetypal()], ids=["plain", "archetypal"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_whole_module_answers_as_overcomplete_does(
    tmp_path: Path, library: types.SimpleNamespace, kind: str, dictionary: dict[str, Tensor]
) -> None:
    w = wide(state(kind, dictionary))
    atoms = their_atoms(w)
    z = largest(np.maximum(their_pre(tokens().numpy().astype(np.float64), kind, w, atoms), 0), K)
    sae = whole(library, "TopKSAE", state(kind, dictionary), top_k=K)
    close(write(tmp_path / "sae.pth", sae), z, z @ atoms)
    close(write(tmp_path / "wrapped.pth", nn.DataParallel(sae)), z, z @ atoms)


@pytest.mark.parametrize("normalisation", dictionaries.NORMALISATIONS)
def test_a_whole_module_says_how_its_dictionary_is_normalised(
    tmp_path: Path, library: types.SimpleNamespace, normalisation: str
) -> None:
    sae, w = whole(library, "SAE", state()), wide(state())
    sae.dictionary.normalization = getattr(library, f"normalize_{normalisation}")
    z = np.maximum(their_pre(tokens().numpy().astype(np.float64), "linear", w, np.empty(0)), 0)
    close(write(tmp_path / "sae.pth", sae), z, z @ their_atoms(w, normalisation))


def test_the_dictionary_that_eval_made_is_used_until_training_goes_on(
    tmp_path: Path, library: types.SimpleNamespace
) -> None:
    sae, w = whole(library, "SAE", state("linear", archetypal())), wide(state("linear", archetypal()))
    sae.dictionary.delta, sae.dictionary._fused_dictionary = 0.5, random(13, S, D)
    z = np.maximum(their_pre(tokens().numpy().astype(np.float64), "linear", w, np.empty(0)), 0)
    close(write(tmp_path / "training.pth", sae), z, z @ their_atoms(w, delta=0.5))
    close(write(tmp_path / "sae.pth", sae.eval()), z, z @ random(13, S, D).numpy().astype(np.float64))


@pytest.mark.parametrize("kind", ["mlp_ln_1", "mlp_bn_1"])
def test_a_whole_module_says_the_epsilon_of_its_norm(tmp_path: Path, library: types.SimpleNamespace, kind: str) -> None:
    sae, w = whole(library, "SAE", state(kind)), wide(state(kind))
    sae.encoder.final_block[1].eps = 0.5
    z = np.maximum(their_pre(tokens().numpy().astype(np.float64), kind, w, np.empty(0), 0.5), 0)
    close(write(tmp_path / "sae.pth", sae), z, z @ their_atoms(w))
    sae.encoder.final_block[1].eps = -1.0
    with pytest.raises(ValueError, match=r"eps of encoder\.final_block\.1 is -1\.0; expected a positive number"):
        load_sae(write(tmp_path / "sae.pth", sae), "cpu")


@pytest.mark.parametrize(
    ("name", "attributes", "activation"),
    [
        ("SAE", {}, "relu"),
        ("BatchTopKSAE", {"running_threshold": torch.tensor(0.25), "top_k": 100}, "jumprelu"),
        ("BatchTopKSAE", {"running_threshold": 0.25, "top_k": 100}, "jumprelu"),
        ("JumpSAE", {"thresholds": nn.Parameter(torch.full((S,), 0.25).log())}, "jumprelu"),
    ],
)
def test_the_class_says_which_latents_a_token_keeps(
    tmp_path: Path, library: types.SimpleNamespace, name: str, attributes: dict[str, Any], activation: str
) -> None:
    sae = load_sae(write(tmp_path / "sae.pth", whole(library, name, state(), **attributes)), "cpu")
    assert sae.config.activation == activation
    if activation == "jumprelu":
        assert torch.nextafter(sae.threshold, torch.tensor(1.0)).tolist() == pytest.approx([0.25] * S, abs=1e-7)


def test_a_batch_top_k_without_its_threshold_takes_the_one_beside_it(
    tmp_path: Path, library: types.SimpleNamespace
) -> None:
    sae = whole(library, "BatchTopKSAE", state(), running_threshold=None, top_k=100)
    path = write(tmp_path / "sae.pth", sae)
    with pytest.warns(UserWarning, match=r"this BatchTopKSAE, which has no running threshold, .* taken as relu"):
        assert load_sae(path, "cpu").config.activation == "relu"
    assert load_sae(path, "cpu", k=K).config.k == K
    (tmp_path / "config.json").write_text('{"running_threshold": 0.829}')
    assert load_sae(path, "cpu").threshold.max() < 0.829


def test_a_state_dict_does_not_say_which_latents_a_token_keeps(tmp_path: Path) -> None:
    path = write(tmp_path / "sae.pt", encoder("linear") | {"dictionary._weights": torch.eye(S)[:, :D]})
    with pytest.warns(UserWarning, match=r"does not say which latents a token keeps; taken as relu.* k=K keeps"):
        load_sae(path, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_sae(path, "cpu", threshold=0.5)


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [(plain(), "5 of 5 rows are not of length 1"), (archetypal(), "Relax has rows of length .*, beyond 1")],
)
def test_a_dictionary_of_another_constraint_than_the_default_is_warned_of(
    tmp_path: Path, dictionary: dict[str, Tensor], message: str
) -> None:
    with pytest.warns(UserWarning, match=f"{message}.* A whole module .* says it"):
        load_sae(write(tmp_path / "sae.pt", state("linear", dictionary)), "cpu", k=K)


def test_the_state_dict_of_a_wrapped_module_is_the_same(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = load_sae(write(tmp_path / "1.pt", {f"module.{key}": v for key, v in state().items()}), "cpu")
        sae = load_sae(write(tmp_path / "2.pt", state()), "cpu")
    assert all(torch.equal(value, sae.state_dict()[name]) for name, value in wrapped.state_dict().items())


WITHOUT = {name: value for name, value in state().items() if not name.startswith("encoder")}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (WITHOUT, "no encoder: matching pursuit chooses latents one after the other"),
        (state() | {"Q": torch.zeros(4)}, "holds a QSAE, .*: it rounds its latents to levels"),
        (state() | {"encoder.mlp_blocks.0.0.weight": torch.zeros(D, D)}, "encoder with hidden layers"),
        (state() | {"encoder.attention_blocks.0.norm1.weight": torch.zeros(D)}, "encoder of attention"),
        (state() | {"encoder.resnet_blocks.0.conv1.weight": torch.zeros(D)}, "encoder of convolutions"),
        (state() | {"encoder.final_block.2.weight": torch.zeros(D)}, r"also holds encoder\.final_block\.2\.weight"),
        (WITHOUT | {"encoder.linear.weight": torch.zeros(D)}, r"has no encoder\.final_block\.0\.weight"),
        (state("mlp_bn_1") | {f"{FINAL}.1.running_var": -torch.ones(S)}, "running_var has 5 negative entries"),
        (state("tied") | {"encoder.tied_to._weights": torch.zeros(S, D)}, "expected an encoder tied to it"),
        (state() | {"thresholds": torch.zeros(S + 1)}, r"thresholds has shape \(6,\)"),
        (state() | {"dictionary._weights": torch.zeros(D, S)}, r"dictionary\._weights has shape \(3, 5\)"),
        (state() | {"dictionary._weights": torch.full((S, D), torch.nan)}, "15 entries that are NaN"),
        (state() | {"dictionary.multiplier": torch.tensor(1000.0)}, "W_dec has .* NaN or infinite"),
        (state("linear", archetypal()) | {"dictionary.C": torch.zeros(N + 1, D)}, r"dictionary\.C has shape"),
        (state() | {f"{FINAL}.0.bias": torch.zeros(S, dtype=torch.int64)}, "dtype int64"),
    ],
)
def test_what_cannot_be_represented_is_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=rf"sae\.pt.*{message}"):
        load_sae(write(tmp_path / "sae.pt", tensors), "cpu")


def test_modules_that_cannot_be_represented_are_refused(tmp_path: Path, library: types.SimpleNamespace) -> None:
    path = tmp_path / "sae.pth"
    with pytest.raises(ValueError, match="holds a MpSAE, which this patchsae does not represent: .* matching pursuit"):
        load_sae(write(path, whole(library, "MpSAE", state(), k=K)), "cpu")
    with pytest.raises(ValueError, match=r"holds a overcomplete\.sae\.modules\.MLPEncoder; this patchsae reads SAE"):
        load_sae(write(path, whole(library, "SAE", state()).encoder), "cpu")
    sae = whole(library, "TopKSAE", state(), top_k=True)
    with pytest.raises(ValueError, match=r"sae\.pth: k=True; expected an integer"):
        load_sae(write(path, sae), "cpu")
    sae.encoder.final_activation = nn.GELU()
    with pytest.raises(ValueError, match=r"encoder that ends with torch\.nn\.modules\.activation\.GELU"):
        load_sae(write(path, sae), "cpu")
    sae = whole(library, "SAE", state())
    sae.dictionary.normalization = library.normalize_own
    with pytest.raises(ValueError, match="normalises its dictionary by overcomplete.sae.dictionary.normalize_own"):
        load_sae(write(path, sae), "cpu")


def test_a_module_within_itself_ends(tmp_path: Path, library: types.SimpleNamespace) -> None:
    sae = whole(library, "SAE", state())
    sae.encoder._modules["again"] = sae
    with pytest.raises(FalseClaim, match=r"sae\.pth claims modules in modules without end"):
        load_sae(write(tmp_path / "sae.pth", sae), "cpu")


@pytest.mark.parametrize("name", list(malice.payloads(Path("unused"))))
def test_nothing_in_a_whole_module_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "sae.pth"
    module = b"\x80\x02covercomplete.sae.base\nSAE\n)\x81}" + malice.text("dictionary")
    path.write_bytes(malice.archive(module + malice.payloads(marker)[name][1][2:-1] + b"sb."))
    with pytest.raises(archives.UnsafeFileError, match=r"sae\.pth asks for|sae\.pth holds a damaged pickle"):
        load_sae(path, "cpu")
    assert not marker.exists()


def test_what_was_understood(
    tmp_path: Path, library: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = whole(library, "BatchTopKSAE", state("mlp_ln_1", archetypal()), running_threshold=torch.tensor(0.25))
    path = write(tmp_path / "sae.pth", sae)
    load_sae(path, "cpu").save(tmp_path / "ours")
    assert capsys.readouterr().err.startswith(
        "sae: overcomplete BatchTopKSAE, mlp_ln_1, archetypal: jumprelu, D 3, S 5; no b_dec, pre-activations "
        "layer-normed over the latents; a tower that is not said"
    )
    x = tokens()
    assert torch.equal(load_sae(tmp_path / "ours", "cpu").encode(x).values, load_sae(path, "cpu").encode(x).values)


def test_mean_and_deviation_are_folded(tmp_path: Path) -> None:
    path, w, mean = write(tmp_path / "sae.pt", state()), wide(state()), np.array([0.5, -1.0, 2.0])
    atoms = their_atoms(w)
    z = largest(np.maximum(their_pre((tokens().numpy() - mean) / 1.7, "linear", w, atoms), 0), K)
    close(path, z, z @ atoms * 1.7 + mean, k=K, mean=torch.tensor(mean), std=1.7)


def test_json_beside_that_says_nothing_of_thresholds_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"input_dim": D}))
    write(tmp_path / "sae.pt", state())
    with pytest.warns(UserWarning, match="taken as relu"):
        load_sae(tmp_path, "cpu")


def test_behind_a_line_of_json_it_is_not_overcompletes(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    with path.open("wb") as file:
        file.write(b'{"schema": 1, "cls": "Relu", "cfg": {}}\n')
        torch.save(state(), file)
    with pytest.raises(ValueError, match=r"sae\.pt has no W_enc"):  # as saev reads it, and it alone
        load_sae(path, "cpu")


def test_a_layer_norm_over_fewer_latents_than_dimensions_is_refused(tmp_path: Path) -> None:
    tensors = {f"{FINAL}.0.weight": (1, 400), f"{FINAL}.0.bias": (1,), "dictionary._weights": (1, 400)}
    tensors |= {f"{FINAL}.1.weight": (1,), f"{FINAL}.1.bias": (1,)}
    path = write(tmp_path / "sae.pt", {name: torch.ones(shape) for name, shape in tensors.items()})
    with pytest.raises(ValueError, match=r"sae\.pt: a layer norm over S = 1 latents of D = 400 dim"):
        load_sae(path, "cpu")


def test_an_integer_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"running_threshold": {10**400}}}')
    write(tmp_path / "sae.pt", state())
    with pytest.raises(ValueError, match="running_threshold is 1000.*; expected a finite number"):
        load_sae(tmp_path, "cpu")
