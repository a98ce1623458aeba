"""What a format of others can hold of a SAE of ours, asked before any of it is written."""

from __future__ import annotations

from torch import Tensor

from patchsae.models.checkpoints.understood import NORMALISED
from patchsae.models.sae_config import SAEConfig


def require(
    config: SAEConfig, name: str, activations: tuple[str, ...], normalisations: tuple[str, ...] = ("none",)
) -> None:
    """Raise ValueError where a SAE has an activation, a normalisation or a soft cap that the format cannot say."""
    if config.activation not in activations:
        raise ValueError(f"{name} cannot hold the activation {config.activation}; it holds {', '.join(activations)}")
    if config.normalise not in normalisations:
        raise ValueError(f"{name} cannot hold what this SAE does to its input ({NORMALISED[config.normalise]})")
    if config.soft_cap is not None:
        raise ValueError(f"{name} cannot hold latents that are capped (soft_cap={config.soft_cap:g})")


def one_threshold(threshold: Tensor, name: str) -> Tensor:
    """The threshold ``[]`` that all latents share; ValueError where they have several, of a format with one."""
    if not bool((threshold == threshold[0]).all()):
        low, high = float(threshold.min()), float(threshold.max())
        raise ValueError(f"{name} cannot hold a threshold for each latent (from {low:g} to {high:g}); it holds one")
    return threshold[0].clone()
