"""What a SAE is before it has weights: sizes, activation, the names and shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

ACTIVATIONS = ("relu", "topk", "jumprelu")
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
MOST = 2**53  # latents or dimensions; what is larger is no size


@dataclass(frozen=True)
class SAEConfig:
    """Sizes and activation of a SAE, and where its residual stream comes from.

    Attributes:
        d_in: D, width of the residual stream.
        d_sae: S, number of latents.
        activation: "relu"; "topk" (the k largest positive pre-activations); "jumprelu" (above a threshold per latent).
        k: with "topk" only.
        metadata: free entries, text or finite numbers; ``model``, ``pretrained`` and ``layer`` name the CLIP
            (`SplitCLIP.metadata`).
    """

    d_in: int
    d_sae: int
    activation: str = "relu"
    k: int | None = None
    metadata: Mapping[str, str | int | float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            size = getattr(self, name)
            if not _is_whole(size) or not 1 <= size <= MOST:
                raise ValueError(f"{name}={repr(size)[:40]}; expected an integer of at least 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={repr(self.activation)[:40]}; expected one of {', '.join(ACTIVATIONS)}")
        if self.k is not None and not _is_whole(self.k):
            raise ValueError(f"k={repr(self.k)[:40]}; expected an integer")
        if (self.k is not None) != (self.activation == "topk"):
            raise ValueError(f"k={self.k!r} with activation={self.activation!r}; expected k with 'topk' and only there")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k={self.k}; expected 1 <= k <= d_sae = {self.d_sae}")
        if not isinstance(self.metadata, Mapping):
            raise ValueError(f"metadata is a {type(self.metadata).__name__}; expected names with text or numbers")
        for name, value in self.metadata.items():
            finite = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
            if not isinstance(name, str) or not finite:
                raise ValueError(
                    f"metadata[{repr(name)[:60]}] is a {type(value).__name__}, {str(value)[:40]!r}; "
                    "expected text or a finite number"
                )

    @property
    def parameter_bytes(self) -> int:
        """What the parameters take in float32."""
        vectors = 2 if self.activation == "jumprelu" else 1
        return 4 * (2 * self.d_in * self.d_sae + vectors * self.d_sae + self.d_in)


def check_shape(name: str, shape: tuple[int, ...], config: SAEConfig) -> None:
    """Raise ValueError unless the tensor ``name`` of a SAE has the shape that ``config`` says."""
    d, s = config.d_in, config.d_sae
    symbols, expected = {
        "W_enc": ("[D, S]", (d, s)),
        "b_enc": ("[S]", (s,)),
        "W_dec": ("[S, D]", (s, d)),
        "b_dec": ("[D]", (d,)),
        "threshold": ("[S]", (s,)),
    }[name]
    if shape != expected:
        hint = ": transpose it" if shape == expected[::-1] else ""
        raise ValueError(f"{name} has shape {shape}; expected {symbols} = {expected}{hint}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
