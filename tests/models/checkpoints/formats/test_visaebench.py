"""ViSAEBench's files, by both sets of names, written by hand at D 3 and S 5, against its formulas in numpy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file

from patchsae import load_sae
from patchsae.disk import archives
from patchsae.models.checkpoints import understood
from patchsae.models.sae import SparseAutoencoder
from tests import malice

D, S, N, K = 3, 5, 60, 3
SAID = {"input_dim": D, "hidden_dim": S, "expansion_factor": 16, "k": K, "activation": "topk"}
RAW_THRESHOLDS = torch.tensor([-1.0, 0.0, 0.3, 0.5, 2.0])
Array = NDArray[np.float64]


def own(bias: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (S, D), "encoder.bias": (S,), "decoder.weight": (S, D), "decoder.bias": (D,)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return found if bias else {name: found[name] for name in list(found)[:3]}


def overcomplete(multiplier: float = 0.7) -> dict[str, torch.Tensor]:
    weights = own()
    return {
        "encoder.final_block.0.weight": weights["encoder.weight"],
        "encoder.final_block.0.bias": weights["encoder.bias"],
        "dictionary._weights": weights["decoder.weight"],  # no row of length 1
        "dictionary.multiplier": torch.tensor(multiplier),
    }


def write(folder: Path, weights: dict[str, Any] | None = None, **changes: Any) -> Path:
    record = {name: value for name, value in (SAID | changes).items() if value != "absent"}
    torch.save(own() if weights is None else weights, folder / "sae.pt")
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def quietly(path: Path, **answers: Any) -> SparseAutoencoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_sae(path, "cpu", **answers)


def tokens() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1))


def theirs(x: Array, kind: str, threshold: Any = 0.0, bias: bool = True, scale: float = 1.0) -> tuple[Array, Array]:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in own().items()}
    z = np.maximum(x @ w["encoder.weight"].T + w["encoder.bias"], 0)
    if kind == "topk":
        z[z < np.sort(z, axis=1)[:, -K, None]] = 0
    if kind == "batchtopk":
        z = z * (z >= threshold)
    if kind == "jumprelu":
        z = z * (z > threshold)
    return z, z @ (w["decoder.weight"] * scale) + (w["decoder.bias"] if bias else 0)


def require_equal(sae: SparseAutoencoder, x: torch.Tensor, expected: tuple[Array, Array]) -> None:
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().detach().numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(sae.decode(z).detach().numpy(), expected[1], atol=1e-5)


@pytest.mark.parametrize("key", ["activation", "sae_type", "architecture"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["TopK", "BatchTopK", "JumpReLU"])
def test_a_file_of_its_own_names_answers_as_visaebench_does(tmp_path: Path, key: str, bias: bool, kind: str) -> None:
    weights = own(bias) | ({"jump_thresholds": RAW_THRESHOLDS} if kind == "JumpReLU" else {})
    path = write(tmp_path, weights, **({"activation": "absent", key: kind} | {"threshold": 0.4}))
    threshold = 0.4 if kind == "BatchTopK" else RAW_THRESHOLDS.numpy().astype(np.float64)
    x = tokens()
    expected = theirs(x.numpy().astype(np.float64), kind.lower(), threshold, bias)
    assert bool(((expected[0] > 0).sum(1) < K).any())  # fewer than k are positive somewhere
    require_equal(quietly(path), x, expected)


@pytest.mark.parametrize("multiplier", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_a_file_by_overcompletes_names_is_read_as_visaebench_reads_it(
    tmp_path: Path, multiplier: float, kind: str
) -> None:
    """Atoms keep their length, and thresholds are no logarithms."""
    weights = overcomplete(multiplier) | {"_running_threshold": torch.tensor(0.4)}
    path = write(tmp_path, weights | ({"thresholds": RAW_THRESHOLDS} if kind == "jumprelu" else {}), activation=kind)
    threshold = RAW_THRESHOLDS.numpy().astype(np.float64) if kind == "jumprelu" else 0.4
    x = tokens()
    expected = theirs(x.numpy().astype(np.float64), kind, threshold, bias=False, scale=np.exp(np.float64(multiplier)))
    require_equal(quietly(path), x, expected)


@pytest.mark.parametrize(("kind", "kept"), [("batchtopk", [0.5, 0.75]), ("jumprelu", [0.75])])
def test_a_latent_at_its_threshold_is_kept_by_the_one_alone(tmp_path: Path, kind: str, kept: list[float]) -> None:
    weights = {
        "encoder.weight": torch.eye(D),
        "encoder.bias": torch.zeros(D),
        "decoder.weight": torch.eye(D),
        "jump_thresholds": torch.full((D,), 0.5),
    }
    sae = quietly(write(tmp_path, weights, activation=kind, threshold=0.5, hidden_dim=D))
    assert sae.encode(torch.tensor([[0.25, 0.5, 0.75]])).values.tolist() == kept


def test_the_threshold_of_the_configuration_counts_before_that_of_the_weights(tmp_path: Path) -> None:
    weights = own() | {"_running_threshold": torch.tensor(0.4)}
    for said, expected in ((1.5, 1.5), (None, 0.4), ("absent", 0.4)):
        sae = quietly(write(tmp_path, weights, activation="batchtopk", threshold=said))
        np.testing.assert_allclose(sae.threshold.numpy(), expected, rtol=1e-6)


def test_jump_thresholds_count_before_thresholds(tmp_path: Path) -> None:
    weights = own() | {"thresholds": torch.ones(S), "jump_thresholds": RAW_THRESHOLDS}
    sae = quietly(write(tmp_path, weights, activation="jumprelu"))
    assert torch.equal(sae.threshold, RAW_THRESHOLDS.clamp(min=0))


@pytest.mark.parametrize("name", ["config.yaml", "config.yml"])
def test_yaml_and_safetensors_are_read_alike(tmp_path: Path, name: str) -> None:
    for folder in ("json", "yaml"):
        (tmp_path / folder).mkdir()
    save_file(own(), tmp_path / "yaml" / "model.safetensors")
    (tmp_path / "yaml" / name).write_text(yaml.safe_dump(SAID))
    x = tokens()
    same = quietly(write(tmp_path / "json")).encode(x).to_dense()
    assert torch.equal(quietly(tmp_path / "yaml").encode(x).to_dense(), same)


def test_mean_and_deviation_are_asked_for_and_folded(tmp_path: Path) -> None:
    path = write(tmp_path, activation="batchtopk", threshold=0.4)
    with pytest.warns(UserWarning, match=r"\(x - mean\) / std of its tower's patches, which the file does not hold"):
        load_sae(path, "cpu")
    mean, std = torch.tensor([0.5, -1.0, 2.0]), 1.7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae = load_sae(path, "cpu", mean=mean, std=std)
    x = tokens() * 2
    latents, y = theirs(((x - mean) / std).numpy().astype(np.float64), "batchtopk", 0.4)
    require_equal(sae, x, (latents, y * std + mean.numpy()))


OPEN = [
    ({"activation": "absent"}, "does not say which latents it keeps; taken as topk 3, as ViSAEBench does"),
    ({"activation": "batchtopk"}, "it says no threshold; taken as 0, which keeps every positive latent, as ViSAE"),
    ({"activation": "jumprelu"}, "it holds no thresholds; taken as 0.01 for each, as ViSAEBench does"),
]


@pytest.mark.parametrize(("changes", "message"), OPEN)
def test_what_a_token_keeps_is_asked_for_where_it_is_not_said(tmp_path: Path, changes: dict, message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.warns(UserWarning, match=f"{message}.*k=K or threshold=NUMBER decides it"):
        sae = load_sae(path, "cpu", mean=0.0)
    x = tokens()
    kind = changes["activation"].replace("absent", "topk")
    require_equal(sae, x, theirs(x.numpy().astype(np.float64), kind, 0.01 if kind == "jumprelu" else 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_sae(path, "cpu", mean=0.0, k=2).config.k == 2
        decided = load_sae(path, "cpu", mean=0.0, threshold=0.4)
    require_equal(decided, x, theirs(x.numpy().astype(np.float64), "batchtopk", 0.4))


def test_a_topk_without_k_is_not_guessed(tmp_path: Path) -> None:
    for changes in ({"k": "absent"}, {"k": None, "activation": "absent"}):
        path = write(tmp_path, **changes)
        with pytest.raises(ValueError, match=r"sae\.pt holds a topk SAE whose configuration has no k; k=K or thresh"):
            quietly(path)
        assert quietly(path, k=2).config.k == 2


def test_a_decided_file_takes_no_argument(tmp_path: Path) -> None:
    for changes in ({}, {"activation": "batchtopk", "threshold": 0.0}):
        with pytest.raises(ValueError, match="leaves nothing to decide there: visaebench"):
            quietly(write(tmp_path, **changes), threshold=0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "the activation gelu; this patchsae reads topk, batchtopk, jumprelu"),
        ({"activation": ["topk"]}, r"the activation \['topk'\]; this patchsae"),
        ({"k": "all"}, "k='all'; expected an integer"),
        ({"k": 6}, "k=6; expected 1 <= k <= d_sae = 5"),
        ({"activation": "batchtopk", "threshold": "0.4"}, "threshold is 0.4; expected a finite number"),
        ({"activation": "batchtopk", "threshold": True}, "threshold is True; expected a finite number"),
        ({"activation": "batchtopk", "threshold": 1e300}, r"threshold is 1e\+300; expected a finite number"),
        ({"activation": "batchtopk", "threshold": 10**400}, "threshold is 1000.*; expected a finite number"),
        ({"input_dim": 4}, "input_dim is 4, and the tensors have D = 3"),
        ({"hidden_dim": 10**12}, "hidden_dim is 1000000000000, and the tensors have S = 5"),
    ],
)
def test_a_configuration_that_says_otherwise_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        quietly(write(tmp_path, **changes))
    assert "sae.pt" in str(refusal.value)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), 10**400])
def test_a_threshold_that_is_no_number_is_refused(tmp_path: Path, threshold: float) -> None:
    path = write(tmp_path, activation="batchtopk")
    with pytest.raises(ValueError, match=r"sae\.pt: threshold is .*; expected a finite number"):
        quietly(path, threshold=threshold)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (own() | {"decoder.weight": torch.zeros(D, S)}, r"decoder.weight has shape \(3, 5\); .*\(5, 3\): transpose it"),
        (own() | {"encoder.weight": torch.full((S, D), torch.nan)}, "encoder.weight has 15 entries that are NaN"),
        (own() | {"encoder.bias": torch.zeros(S, dtype=torch.int64)}, "encoder.bias has dtype int64"),
        (own() | {"W_skip": torch.zeros(D, D)}, "also holds W_skip"),
        (own() | {"_running_threshold": torch.tensor(torch.inf)}, "_running_threshold has 1 entries that are NaN"),
        (overcomplete() | {"encoder.final_block.1.weight": torch.ones(S)}, "also holds encoder.final_block.1.weight"),
        (overcomplete() | {"decoder.bias": torch.zeros(D)}, "also holds decoder.bias"),
        (overcomplete(1000.0), r"sae\.pt: W_dec has 15 entries that are NaN or infinite"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, weights: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quietly(write(tmp_path, weights))


def test_a_file_that_begins_with_json_is_not_its_own(tmp_path: Path) -> None:
    path = write(tmp_path) / "sae.pt"
    path.write_bytes(b'{"d_vit": 3, "exp_factor": 2}\n' + path.read_bytes())
    with pytest.raises(ValueError, match="has no W_enc; expected W_enc, b_enc, W_dec, b_dec"):
        quietly(path)


@pytest.mark.parametrize("name", list(malice.payloads(Path("unused"))))
def test_nothing_in_its_weights_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", write(tmp_path)
    (path / "sae.pt").write_bytes(malice.archive(malice.payloads(marker)[name][1]))
    with pytest.raises(archives.UnsafeFileError, match=r"sae\.pt asks for"):
        load_sae(path, "cpu")
    assert not marker.exists()


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    end = "; a tower that is not said, a block that is not said, patches"
    assert understood.line(quietly(write(tmp_path), mean=1.0, std=2.0).config) == (
        f"visaebench topk: topk 3, D 3, S 5; b_dec not subtracted, (x - mean) / std{end}"
    )
    by_their_names = quietly(write(tmp_path, overcomplete(), activation="batchtopk", threshold=0.4), std=2.0)
    assert understood.line(by_their_names.config) == (
        f"visaebench batchtopk by the names of Overcomplete: jumprelu, D 3, S 5; no b_dec, x / std{end}"
    )


@pytest.mark.parametrize("value", [None, [], "x", {}])
def test_what_is_no_tensor_under_the_name_of_one_is_refused(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, own() | {"decoder.bias": value}, k=K)
    with pytest.raises(ValueError, match=r"has no decoder\.bias; expected encoder\.weight"):
        load_sae(path, "cpu")
