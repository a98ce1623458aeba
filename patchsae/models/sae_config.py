"""What a SAE is before it has weights: sizes, activation, the names and shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

ACTIVATIONS = ("relu", "topk", "jumprelu", "topk_no_relu")
WITH_K = ("topk", "topk_no_relu")
NORMALISATIONS = ("none", "layer_norm", "norm_rescale", "unit_norm", "latent_norm")
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
SHAPES = {
    "W_enc": ("D", "S"),
    "b_enc": ("S",),
    "W_dec": ("S", "D"),
    "b_dec": ("D",),
    "threshold": ("S",),
    "scaled_bias": ("S",),
    "spread": ("D + 1", "D + 1"),
}
MOST = 2**53  # latents or dimensions; what is larger is no size
MOST_CAP = 1e30  # of latents, which are float32


@dataclass(frozen=True)
class SAEConfig:
    """Sizes and activation of a SAE, and where its residual stream comes from.

    Attributes:
        d_in: D, width of the residual stream.
        d_sae: S, number of latents.
        activation: "relu"; "topk" (the k largest positive pre-activations); "jumprelu" (above a threshold per latent);
            "topk_no_relu" (the k largest pre-activations, whatever their sign).
        k: with the two kinds of top-k only.
        metadata: free entries, text or finite numbers; ``model``, ``pretrained`` and ``layer`` name the CLIP
            (`SplitCLIP.metadata`).
        normalise: what is done to each token before it is encoded and undone when it is decoded: "none", "layer_norm",
            "norm_rescale", "unit_norm" (`patchsae.models.normalise`). Or "latent_norm": the pre-activations are
            normalised over the S latents.
        soft_cap: c where latents are bounded smoothly, c tanh(h / c); None where not.
    """

    d_in: int
    d_sae: int
    activation: str = "relu"
    k: int | None = None
    metadata: Mapping[str, str | int | float] = field(default_factory=dict, hash=False)
    normalise: str = "none"
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            size = getattr(self, name)
            if not _is_whole(size) or not 1 <= size <= MOST:
                raise ValueError(f"{name}={repr(size)[:40]}; expected an integer of at least 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={repr(self.activation)[:40]}; expected one of {', '.join(ACTIVATIONS)}")
        if self.k is not None and not _is_whole(self.k):
            raise ValueError(f"k={repr(self.k)[:40]}; expected an integer")
        if (self.k is not None) != (self.activation in WITH_K):
            raise ValueError(f"k={self.k!r} with activation={self.activation!r}; expected k with 'topk' and only there")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k={self.k}; expected 1 <= k <= d_sae = {self.d_sae}")
        if self.normalise not in NORMALISATIONS:
            raise ValueError(f"normalise={repr(self.normalise)[:40]}; expected one of {', '.join(NORMALISATIONS)}")
        if self.soft_cap is not None and not _is_positive(self.soft_cap):
            raise ValueError(f"soft_cap={repr(self.soft_cap)[:40]}; expected a positive number, or None")
        self._check_metadata()

    def _check_metadata(self) -> None:
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
    def buffers(self) -> tuple[str, ...]:
        """The names of the tensors that are not trained by gradients."""
        own = ("threshold",) if self.activation == "jumprelu" else ()
        return (*own, "scaled_bias", "spread") if self.normalise == "latent_norm" else own

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of such a SAE, by name."""
        sizes = {"D": self.d_in, "S": self.d_sae, "D + 1": self.d_in + 1}
        return {name: tuple(sizes[symbol] for symbol in SHAPES[name]) for name in (*PARAMETERS, *self.buffers)}

    @property
    def parameter_bytes(self) -> int:
        """What the parameters take in float32."""
        return 4 * sum(map(math.prod, self.shapes.values()))


def check_shape(name: str, shape: tuple[int, ...], config: SAEConfig) -> None:
    """Raise ValueError unless the tensor ``name`` of a SAE has the shape that ``config`` says."""
    expected = config.shapes[name]
    if shape != expected:
        hint = ": transpose it" if shape == expected[::-1] else ""
        raise ValueError(f"{name} has shape {shape}; expected [{', '.join(SHAPES[name])}] = {expected}{hint}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST_CAP
