"""Which latents have not fired for a while."""

from __future__ import annotations

import torch
from torch import Tensor


class DeadCounter:
    """Steps since each latent last fired, as the released trainer counts them.

    All counters start at 0, so that no latent is dead before `window + 1` steps have passed.

    Args:
        latents: number of latents S.
        window: a latent is dead when its counter exceeds this number of steps.
        device: where the counters live.
    """

    def __init__(self, latents: int, window: int, device: torch.device | str = "cpu") -> None:
        self.window = window
        self.since_fired = torch.zeros(latents, dtype=torch.int64, device=device)
        """Counters, int64 [S]."""

    def mask(self) -> Tensor:
        """Bool [S]: the latents that are dead before the step that comes next."""
        return self.since_fired > self.window

    def update(self, fired: Tensor) -> None:
        """Counts one step in which the latents of `fired`, bool [S], were active on any token of the batch."""
        if fired.shape != self.since_fired.shape or fired.dtype != torch.bool:
            raise ValueError(
                f"fired has shape {tuple(fired.shape)} and dtype {fired.dtype}; "
                f"expected [S] = {tuple(self.since_fired.shape)} and torch.bool"
            )
        self.since_fired += 1
        self.since_fired[fired] = 0

    def reset(self, restarted: Tensor) -> None:
        """The latents of `restarted`, bool [S], count as if they had just fired."""
        self.since_fired[restarted] = 0
