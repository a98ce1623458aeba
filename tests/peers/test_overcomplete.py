"""Overcomplete: state dicts, and whole modules, which say more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from overcomplete.sae import (
    OMPSAE,
    QSAE,
    SAE,
    BatchTopKSAE,
    JumpSAE,
    MpSAE,
    RAJumpSAE,
    RATopKSAE,
    TopKSAE,
)
from torch import Tensor, nn

from patchsae import load_sae
from tests.peers.same import D, K, S, loaded, randomise, require_same, tokens

KEPT = 0.7  # the running threshold of what is trained by batches
ENCODERS = ("linear", "mlp_ln_1", "mlp_bn_1")
TIED = ("tied", "tied, with a bias", "untied", "untied, with a bias")
ANSWERS: dict[type, dict[str, Any]] = {  # what a state dict does not say
    SAE: {"threshold": 0.0},
    TopKSAE: {"k": K},
    BatchTopKSAE: {"threshold": KEPT},
    JumpSAE: {},
    RATopKSAE: {"k": K},
    RAJumpSAE: {},
}
NORMALISATIONS = ("l2", "max_l2", "l1", "max_l1", "identity")


def theirs(kind: type, encoder: str = "linear", **settings: Any) -> Any:
    """A SAE of Overcomplete that is in training, with weights of no special form."""
    own = {"top_k": K} if "TopK" in kind.__name__ else {}
    if kind in (RATopKSAE, RAJumpSAE):
        own["points"] = torch.randn(30, D, generator=torch.Generator().manual_seed(2))
    sae = kind(D, S, encoder_module=encoder if encoder in ENCODERS else None, **own, **settings)
    if encoder in TIED:
        sae = getattr(sae, encoder.partition(",")[0])(bias=encoder.endswith("bias"))
    randomise(sae)
    _randomise_norms(sae)
    if kind in (JumpSAE, RAJumpSAE):
        sae.thresholds.data.copy_(torch.linspace(-3, 0.5, S))
    if kind is BatchTopKSAE:
        sae.running_threshold = torch.tensor(KEPT)
    return sae


def _randomise_norms(sae: nn.Module) -> None:
    for module in sae.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            module.weight.data.add_(1)
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(torch.linspace(-1, 1, S))
            module.running_var.copy_(torch.linspace(0.5, 2, S))


def answers(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and the reconstruction, evaluated."""
    _, latents, reconstruction = sae.eval()(x)
    return latents, reconstruction


@pytest.mark.parametrize("encoder", [*ENCODERS, *TIED])
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_state_dict(tmp_path: Path, kind: type, encoder: str) -> None:
    sae, x = theirs(kind, encoder).eval(), tokens()
    torch.save(sae.state_dict(), tmp_path / "sae.pt")
    require_same(loaded(tmp_path / "sae.pt", **ANSWERS[kind]), x, *answers(sae, x))


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("encoder", [*ENCODERS, *TIED])
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_whole_module(tmp_path: Path, kind: type, encoder: str, evaluated: bool) -> None:
    sae, x = theirs(kind, encoder).train(not evaluated), tokens()
    torch.save(sae, tmp_path / "sae.pth")
    require_same(loaded(tmp_path / "sae.pth"), x, *answers(sae, x))


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_whole_module_says_how_its_dictionary_is_normalised(
    tmp_path: Path, normalisation: str, evaluated: bool
) -> None:
    sae, x = theirs(TopKSAE, dictionary_params={"normalization": normalisation, "use_multiplier": True}), tokens()
    torch.save(sae.train(not evaluated), tmp_path / "sae.pth")
    require_same(loaded(tmp_path / "sae.pth"), x, *answers(sae, x))


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_whole_module_says_how_far_its_atoms_may_be_from_the_points(tmp_path: Path, evaluated: bool) -> None:
    sae, x = theirs(RATopKSAE, delta=0.3), tokens()
    torch.save(sae.train(not evaluated), tmp_path / "sae.pth")
    require_same(loaded(tmp_path / "sae.pth"), x, *answers(sae, x))


@pytest.mark.parametrize("encoder", ["mlp_ln_1", "mlp_bn_1"])
def test_a_whole_module_says_the_epsilon_of_its_norm(tmp_path: Path, encoder: str) -> None:
    sae, x = theirs(TopKSAE, encoder), tokens()
    sae.encoder.final_block[1].eps = 0.5
    torch.save(sae, tmp_path / "sae.pth")
    require_same(loaded(tmp_path / "sae.pth"), x, *answers(sae, x))


def test_a_module_that_was_trained_on_after_it_was_evaluated(tmp_path: Path) -> None:
    sae, x = theirs(TopKSAE).eval().train(), tokens()
    with torch.no_grad():
        sae.dictionary._weights.mul_(torch.linspace(0.5, 2, D))
    torch.save(sae, tmp_path / "sae.pth")
    require_same(loaded(tmp_path / "sae.pth"), x, *answers(sae, x))


def test_a_module_trained_in_parallel(tmp_path: Path) -> None:
    sae, x = theirs(BatchTopKSAE, "mlp_ln_1"), tokens()
    parallel = nn.DataParallel(sae)
    torch.save(parallel, tmp_path / "sae.pth")
    torch.save(parallel.state_dict(), tmp_path / "sae.pt")
    latents, reconstruction = answers(sae, x)
    require_same(loaded(tmp_path / "sae.pth"), x, latents, reconstruction)
    with pytest.warns(UserWarning, match="rows are not of length 1"):
        require_same(load_sae(tmp_path / "sae.pt", threshold=KEPT), x, latents, reconstruction)


@pytest.mark.parametrize("kind", [SAE, RATopKSAE])
def test_a_state_dict_of_a_last_step_that_nothing_constrained_yet(tmp_path: Path, kind: type) -> None:
    sae, x = theirs(kind), tokens()
    torch.save(sae.state_dict(), tmp_path / "sae.pt")
    with pytest.warns(UserWarning, match="its default constraint"):
        found = load_sae(tmp_path / "sae.pt", **ANSWERS[kind])
    require_same(found, x, *answers(sae, x))


def test_a_module_without_a_running_threshold_asks_for_it(tmp_path: Path) -> None:
    sae, x = theirs(BatchTopKSAE), tokens()
    sae.running_threshold = None
    torch.save(sae, tmp_path / "sae.pth")
    found = loaded(tmp_path / "sae.pth", threshold=KEPT)
    sae.running_threshold = torch.tensor(KEPT)
    require_same(found, x, *answers(sae, x))


@pytest.mark.parametrize("kind", [BatchTopKSAE, JumpSAE])
def test_a_latent_on_its_threshold_is_kept(tmp_path: Path, kind: type) -> None:
    sae, x = theirs(kind), tokens()
    linear = sae.encoder.final_block[0]
    linear.weight.data[3] = 0
    linear.bias.data[3] = KEPT if kind is BatchTopKSAE else sae.thresholds.data.exp()[3]
    torch.save(sae, tmp_path / "sae.pth")
    latents, reconstruction = answers(sae, x)
    assert bool((latents[:, 3] > 0).all())
    require_same(loaded(tmp_path / "sae.pth"), x, latents, reconstruction)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MpSAE(D, S, k=K), "matching pursuit"),
        (lambda: OMPSAE(D, S, k=K), "matching pursuit"),
        (lambda: QSAE(D, S), "rounds its latents"),
        (lambda: TopKSAE(D, S, encoder_module="mlp_ln_3"), "hidden layers"),
        (lambda: TopKSAE(D, S, encoder_module="mlp_bn_3"), "hidden layers"),
        (lambda: TopKSAE((4, D), S, encoder_module="attention_1b"), "of attention"),
        (lambda: TopKSAE((D, 4, 4), S, encoder_module="resnet_1b"), "of convolutions"),
    ],
)
def test_what_is_no_sae_of_ours_is_refused_by_name(tmp_path: Path, make: Any, reason: str, whole: bool) -> None:
    torch.save(make() if whole else make().state_dict(), tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=reason):
        load_sae(tmp_path / "sae.pt")
