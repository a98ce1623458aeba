"""What each op is called with: a record that goes from the dispatcher to whatever serves the call.

Fields have the names of the op's schema in `patchsae_kernels.ops`; public functions have validated them. N tokens of
width D, S latents; ``values``, ``indices`` (int32) and ``indptr`` (int64) as in `SparseLatents`; ``budget`` in bytes.

Nobody changes one. That is not enforced: ``frozen=True`` makes a record five times as slow to make, 2 us of an encode's
50 and a decode's 13 for one token (Intel Xeon).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class EncodeCall:
    x: Tensor  # [N, D]
    W_enc: Tensor  # [D, S]
    b_enc: Tensor  # [S]
    b_dec: Tensor  # [D]
    packed: list[Tensor]  # copies of the weights for this precision, or empty
    threshold: Tensor | None  # [S], of JumpReLU
    activation: str
    k: int  # 0 where the activation has none
    precision: str
    budget: int

    def arguments(self) -> tuple[Any, ...]:
        """Of the op `encode`, also from a call that has more of them."""
        return tuple(getattr(self, name) for name in _ENCODE)


_ENCODE = tuple(field.name for field in fields(EncodeCall))


@dataclass(slots=True)
class BoundedEncodeCall(EncodeCall):
    capacity: int  # places for entries


@dataclass(slots=True)
class ReconstructCall(EncodeCall):
    W_dec: Tensor  # [S, D]


@dataclass(slots=True)
class DecodeCall:
    values: Tensor
    indices: Tensor
    indptr: Tensor
    W_dec: Tensor  # [S, D]
    b_dec: Tensor  # [D]

    @property
    def csr(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.values, self.indices, self.indptr

    @property
    def tokens(self) -> int:
        return self.indptr.shape[0] - 1


@dataclass(slots=True)
class MaskedDecodeCall(DecodeCall):
    keep: Tensor  # bool [S], or [C, S] with class_ids
    class_ids: Tensor | None  # int64 [N]


@dataclass(slots=True)
class SweepCall(DecodeCall):
    rank: Tensor  # int32 [S], or [C, S] with class_ids
    ks: list[int]
    class_ids: Tensor | None  # int64 [N]


@dataclass(slots=True)
class EncodeBackwardCall:
    grad_values: Tensor  # [nnz]
    indices: Tensor
    indptr: Tensor
    x: Tensor  # [N, D]
    W_enc: Tensor  # [D, S]
    b_dec: Tensor  # [D]
    with_x: bool = True  # without, x is data: its gradient is left out

    @property
    def width(self) -> int:
        return self.W_enc.shape[0]

    @property
    def is_float32(self) -> bool:
        """Of everything but x, which is widened."""
        return self.grad_values.dtype == self.W_enc.dtype == self.b_dec.dtype == torch.float32


@dataclass(slots=True)
class DecodeBackwardCall:
    grad_y: Tensor  # [N, D]
    values: Tensor
    indices: Tensor
    indptr: Tensor
    W_dec: Tensor  # [S, D]
    budget: int

    @property
    def width(self) -> int:
        return self.W_dec.shape[1]

    @property
    def is_float32(self) -> bool:
        return self.grad_y.dtype == self.values.dtype == self.W_dec.dtype == torch.float32


@dataclass(slots=True)
class StatsCall:
    values: Tensor
    indices: Tensor
    indptr: Tensor
    tokens_per_image: int
    threshold: float
    labels: Tensor | None  # int64 [images], -1: none
    first_image: int
    sums: Tensor  # this and the following: the accumulators of `LatentStats`, changed in place
    counts: Tensor
    image_counts: Tensor
    max_values: Tensor
    max_position: Tensor
    class_counts: Tensor | None

    @property
    def latents(self) -> int:
        return self.sums.shape[0]

    @property
    def totals(self) -> tuple[Tensor, ...]:
        """The accumulators ``[S]``."""
        return self.sums, self.counts, self.image_counts, self.max_values, self.max_position


@dataclass(slots=True)
class PoolCall:
    values: Tensor
    indices: Tensor
    indptr: Tensor
    latents: int
    tokens_per_image: int
    budget: int


@dataclass(slots=True)
class StepCall:
    """``packed``, ``share`` and ``path`` are for implementations that have packed weights and two ways to go."""

    x: Tensor  # [N, D]
    W_enc: Tensor  # [D, S]
    b_enc: Tensor  # [S]
    W_dec: Tensor  # [S, D]
    b_dec: Tensor  # [D]
    dead: Tensor | None  # int64, the dead latents; None without the ghost term
    l1: float
    cls_weight: float
    tokens_per_image: int  # 0: no CLS tokens
    budget: int
    precision: str = "exact"
    packed: Sequence[Tensor] | None = None
    share: float = -1.0  # of active latents, where it is known
    path: str = ""  # "sparse" or "dense", "" for the implementation's own choice

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.W_enc, self.b_enc, self.W_dec, self.b_dec


@dataclass(slots=True)
class AdamCall:
    p: Tensor  # this and the moments: changed in place
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int  # counts from 1
    lr: float
    beta1: float
    beta2: float
    eps: float
    unit_rows: bool
    seed: int = 0  # of the noise that rounds bfloat16 moments

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is changed."""
        return self.p, self.exp_avg, self.exp_avg_sq
