"""The masking sweep written the obvious way: one full forward pass of CLIP per mask, with dense latents.

The oracle of the tests and the opponent of `benches.masking`. It goes through open_clip's own model with a forward
hook on the block, so it shares neither the split backbone nor a kernel with `patchsae.experiments.mask.embeddings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Replace = Callable[[Tensor], Tensor]


@torch.no_grad()
def naive_sweep(
    model: nn.Module,
    block: int,
    parameters: Mapping[str, Tensor],
    pixels: Tensor,
    labels: Tensor,
    rankings: Mapping[str, Tensor],
    ks: Sequence[int],
    bias_offset: float = 0.0,
) -> dict[tuple[str, str, int], Tensor]:
    """(ranking, mode, k) -> embeddings [B, E] of unit norm; the arguments are those of `sweep_embeddings`.

    model: open_clip's CLIP; block: index of the residual block whose output is replaced; parameters: W_enc [D, S],
    b_enc, W_dec [S, D] and b_dec.
    """

    def masked(keep: Tensor | None) -> Replace:
        return reconstruction(parameters, keep, bias_offset)

    result = {
        ("none", "unmodified", 0): forward(model, block, pixels, lambda residual: residual),
        ("none", "reconstruction", 0): forward(model, block, pixels, masked(None)),
    }
    for name, rank in rankings.items():
        per_image = rank[labels] if rank.ndim == 2 else rank.expand(len(labels), -1)
        for k in ks:
            result[name, "keep", k] = forward(model, block, pixels, masked(per_image < k))
            result[name, "ablate", k] = forward(model, block, pixels, masked(per_image >= k))
    return result


def reconstruction(parameters: Mapping[str, Tensor], keep: Tensor | None, bias_offset: float = 0.0) -> Replace:
    """What the residual stream [B, T, D] is replaced by, with only the latents ``keep`` [B, S]."""

    def replace(residual: Tensor) -> Tensor:
        centred = residual - parameters["b_dec"]
        latents = torch.relu(centred @ parameters["W_enc"] + parameters["b_enc"])  # [B, T, S], dense on purpose
        if keep is not None:
            latents = latents * keep[:, None, :]
        return latents @ parameters["W_dec"] + parameters["b_dec"] + bias_offset

    return replace


def forward(model: nn.Module, block: int, pixels: Tensor, replace: Replace) -> Tensor:
    """`encode_image` with the output [B, T, D] of one residual block passed through ``replace``."""
    handle = model.visual.transformer.resblocks[block].register_forward_hook(
        lambda _module, _inputs, output: replace(output)
    )
    try:
        return model.encode_image(pixels, normalize=True)
    finally:
        handle.remove()
