"""The n largest entries of every row, collected from any number of pieces in any order."""

from __future__ import annotations

import torch
from torch import Tensor

POSITIONS = 2**32
_EMPTY = -1


class TopTable:
    """Keep, for each of ``rows`` rows, the ``n`` largest (value, position) pairs seen.

    A larger value wins; between equal values the lower position wins. A pair is one int64 key (the bits of the positive
    float32 in the upper half, the complement of the position in the lower), so comparing pairs is comparing integers,
    and the table is the same whatever the order and the grouping in which pairs arrive.

    Args:
        rows: number of rows, S for a table over latents.
        n: entries kept per row, at least 1.
        device: where the table (int64 [rows, n], its only lasting memory) lives.
        chunk: pairs taken in at a time, which bounds the temporaries at about 100 bytes each.
    """

    def __init__(self, rows: int, n: int, device: torch.device | str = "cpu", chunk: int = 1 << 22) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; expected at least 1 entry per row")
        self.chunk = chunk
        self.keys = torch.full((rows, n), _EMPTY, dtype=torch.int64, device=device)

    @property
    def n(self) -> int:
        return self.keys.shape[1]

    def insert(self, rows: Tensor, values: Tensor, positions: Tensor) -> None:
        """Offer the pairs (values[i], positions[i]) to row ``rows[i]``.

        rows: integers [m]; values: float [m], entries that are not positive are ignored; positions: int64 [m] in
        [0, 2**32). A position may be offered once per row only.
        """
        for start in range(0, rows.numel(), self.chunk):
            part = slice(start, start + self.chunk)
            self._insert_chunk(rows[part].to(torch.int64), _keys(values[part], positions[part]))

    def merge(self, other: TopTable) -> None:
        """Take in what another table saw (of pairs that this one did not see)."""
        if other.keys.shape != self.keys.shape:
            raise ValueError(f"other holds a table of {tuple(other.keys.shape)}; expected {tuple(self.keys.shape)}")
        both = torch.cat([self.keys, other.keys.to(self.keys.device)], dim=1)
        self.keys = both.topk(self.n, dim=1).values

    def values(self) -> Tensor:
        """float32 [rows, n], descending; 0 where a row holds fewer than n entries."""
        bits = (self.keys >> 32).clamp_min(0).to(torch.int32)
        return bits.view(torch.float32)

    def positions(self) -> Tensor:
        """int64 [rows, n]; -1 where a row holds fewer than n entries."""
        positions = (POSITIONS - 1) - (self.keys & (POSITIONS - 1))
        return torch.where(self.keys == _EMPTY, -1, positions)

    def _insert_chunk(self, rows: Tensor, keys: Tensor) -> None:
        wanted = keys > self.keys[rows, -1]
        rows, keys = rows[wanted], keys[wanted]
        if rows.numel() == 0:
            return
        order = keys.argsort(descending=True)
        order = order[rows[order].argsort(stable=True)]
        rows, keys = rows[order], keys[order]
        touched, group, sizes = rows.unique_consecutive(return_inverse=True, return_counts=True)
        within = torch.arange(rows.numel(), device=rows.device) - (sizes.cumsum(0) - sizes)[group]
        first = within < self.n
        offered = torch.full((touched.numel(), self.n), _EMPTY, dtype=torch.int64, device=rows.device)
        offered[group[first], within[first]] = keys[first]
        self.keys[touched] = torch.cat([self.keys[touched], offered], dim=1).topk(self.n, dim=1).values


def _keys(values: Tensor, positions: Tensor) -> Tensor:
    """int64 [m] that order as (value descending, position ascending) when read from the largest; -1 if not positive."""
    if positions.numel() and int(positions.max()) >= POSITIONS:
        raise ValueError(f"position {int(positions.max())} does not fit the table; expected below {POSITIONS}")
    bits = values.to(torch.float32).contiguous().view(torch.int32).to(torch.int64)
    return torch.where(values > 0, (bits << 32) | (POSITIONS - 1 - positions), _EMPTY)
