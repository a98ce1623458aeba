"""SparseLatents: the one sparse type, a CSR matrix over tokens."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae_kernels import plain
from patchsae_kernels.arithmetic import outside_of_autocast

VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
PER_TOKEN = ("token_mean", "token_scale")


@dataclass(frozen=True, eq=False)
class SparseLatents:
    """Latents of N tokens in CSR form.

    Row n holds the entries ``indptr[n]:indptr[n + 1]`` of ``indices`` and ``values``; inside a row the indices ascend.

    Attributes:
        values: ``[nnz]`` float32 or bfloat16 (float64 only when the oracle made it).
        indices: ``[nnz]`` int32, the latent of every entry, in ``0..S-1``.
        indptr: ``[N + 1]`` int64, starting at 0 and ending at nnz.
        shape: ``(N, S)``.
        token_mean, token_scale: ``[N]`` float32, what an autoencoder that normalises each token took from it and
            divided it by; None where it did not. They follow their tokens through every method, and decoding undoes
            them (`restore`).
    """

    values: Tensor
    indices: Tensor
    indptr: Tensor
    shape: tuple[int, int]
    token_mean: Tensor | None = None
    token_scale: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("values", "indices", "indptr"):
            plain.tensor(name, getattr(self, name), "[N + 1]" if name == "indptr" else "[nnz]")
        if self.values.dtype not in VALUE_DTYPES:
            raise TypeError(f"values has dtype {self.values.dtype}; expected one of {VALUE_DTYPES}")
        if self.indices.dtype != torch.int32:
            raise TypeError(f"indices has dtype {self.indices.dtype}; expected torch.int32")
        if self.indptr.dtype != torch.int64:
            raise TypeError(f"indptr has dtype {self.indptr.dtype}; expected torch.int64")
        if self.values.dim() != 1 or self.values.shape != self.indices.shape:
            raise ValueError(
                f"values has shape {tuple(self.values.shape)} and indices {tuple(self.indices.shape)}; "
                "expected the same [nnz] for both"
            )
        if self.indptr.dim() != 1 or self.indptr.shape[0] != self.shape[0] + 1:
            raise ValueError(f"indptr has shape {tuple(self.indptr.shape)}; expected [N + 1] = [{self.shape[0] + 1}]")
        for name in PER_TOKEN:
            self._check_per_token(name)

    @staticmethod
    def from_dense(dense: Tensor) -> SparseLatents:
        """The non-zero entries of ``dense`` ``[N, S]`` (float32, bfloat16 or float64)."""
        plain.tensor("dense", dense, "[N, S]")
        if dense.dim() != 2:
            raise ValueError(f"dense has shape {tuple(dense.shape)}; expected [N, S]")
        if dense.dtype not in VALUE_DTYPES:
            raise TypeError(f"dense has dtype {dense.dtype}; expected one of {VALUE_DTYPES}")
        rows, columns = dense.nonzero(as_tuple=True)
        return SparseLatents(
            dense[rows, columns],
            columns.to(torch.int32),
            indptr_from_counts(torch.bincount(rows, minlength=dense.shape[0])),
            (dense.shape[0], dense.shape[1]),
        )

    @staticmethod
    def cat(parts: Sequence[SparseLatents]) -> SparseLatents:
        """Stack along the token dimension. All parts have the same S; at least one part is needed."""
        if not parts:
            raise ValueError("parts is empty; expected at least one SparseLatents")
        widths = sorted({part.shape[1] for part in parts})
        if len(widths) > 1:
            raise ValueError(f"parts have {widths} latents; expected the same S in every part")
        csr = cat([(part.values, part.indices, part.indptr) for part in parts])
        per_token: dict[str, Any] = {
            name: _cat_per_token(name, [getattr(part, name) for part in parts]) for name in PER_TOKEN
        }
        return SparseLatents(*csr, (csr[2].shape[0] - 1, widths[0]), **per_token)

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.values.shape[0]

    @property
    def l0(self) -> float:
        """Mean number of stored entries per token; 0 for no tokens."""
        return self.nnz / self.shape[0] if self.shape[0] else 0.0

    @property
    def device(self) -> torch.device:
        return self.values.device

    def counts(self) -> Tensor:
        """``[N]`` int64, the number of entries of each token."""
        return self.indptr.diff()

    def rows(self) -> Tensor:
        """``[nnz]`` int64, the token of every entry."""
        tokens = torch.arange(self.shape[0], device=self.device)
        return torch.repeat_interleave(tokens, self.counts(), output_size=self.nnz)

    def row(self, n: int) -> tuple[Tensor, Tensor]:
        """``(indices, values)`` of token n, as views."""
        if not -self.shape[0] <= n < self.shape[0]:
            raise IndexError(f"token {n} is outside of {self.shape[0]} tokens")
        start, end = self.indptr[n % self.shape[0]].item(), self.indptr[n % self.shape[0] + 1].item()
        return self.indices[start:end], self.values[start:end]

    def to_dense(self) -> Tensor:
        """``[N, S]`` in the dtype of the values. For small N: at S = 49,152 a token is 197 KB."""
        dense = self.values.new_zeros(self.shape)
        dense[self.rows(), self.indices.long()] = self.values
        return dense

    def with_values(self, values: Tensor) -> SparseLatents:
        """The same pattern with other values ``[nnz]``."""
        return replace(self, values=values)

    def restore(self, y: Tensor) -> Tensor:
        """``y * token_scale + token_mean``: reconstructions ``[..., N, D]`` of normalised tokens as tokens.

        What no autoencoder normalised is returned as it is. Differentiable.
        """
        if self.token_scale is not None:
            y = y * self.token_scale[:, None]
        return y if self.token_mean is None else y + self.token_mean[:, None]

    def restore_(self, y: Tensor) -> Tensor:
        """`restore` in place."""
        if self.token_scale is not None:
            y.mul_(self.token_scale[:, None])
        return y if self.token_mean is None else y.add_(self.token_mean[:, None])

    def where(self, keep: Tensor) -> SparseLatents:
        """Only the entries for which ``keep`` (bool ``[nnz]``) holds."""
        plain.tensor("keep", keep, "[nnz]")
        if keep.dtype != torch.bool or keep.shape != self.values.shape:
            raise ValueError(
                f"keep has dtype {keep.dtype} and shape {tuple(keep.shape)}; expected torch.bool [nnz] = [{self.nnz}]"
            )
        kept = torch.zeros(self.nnz + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(keep, 0, out=kept[1:])
        return replace(self, values=self.values[keep], indices=self.indices[keep], indptr=kept[self.indptr])

    def select_rows(self, index: Tensor) -> SparseLatents:
        """Tokens ``index`` (int64 ``[M]``, any order, repeats allowed) as a new ``[M, S]`` matrix."""
        index = self._numbers("index", index, self.shape[0])
        counts = self.counts()[index]
        indptr = indptr_from_counts(counts)
        total = int(indptr[-1])
        start = torch.repeat_interleave(self.indptr[index] - indptr[:-1], counts, output_size=total)
        source = start + torch.arange(total, device=self.device)
        shape = (index.shape[0], self.shape[1])
        return SparseLatents(self.values[source], self.indices[source], indptr, shape, **self._per_token(index))

    def reshape_tokens(self, images: int, tokens: int) -> list[SparseLatents]:
        """Split ``[images * tokens, S]`` into one ``[tokens, S]`` matrix per image; values and indices are views."""
        images, tokens = plain.whole_number("images", images), plain.whole_number("tokens", tokens)
        if images * tokens != self.shape[0]:
            raise ValueError(
                f"images * tokens is {images} * {tokens} = {images * tokens}; expected N = {self.shape[0]}"
            )
        cuts = self.indptr[::tokens].tolist() if tokens else [0] * (images + 1)
        return [
            SparseLatents(
                self.values[cuts[i] : cuts[i + 1]],
                self.indices[cuts[i] : cuts[i + 1]],
                self.indptr[i * tokens : (i + 1) * tokens + 1] - cuts[i],
                (tokens, self.shape[1]),
                **self._per_token(slice(i * tokens, (i + 1) * tokens)),
            )
            for i in range(images)
        ]

    def scale(self, latents: Sequence[int] | Tensor, factor: float) -> SparseLatents:
        """Multiply the chosen latents by ``factor`` wherever they are active; 0 removes them."""
        chosen = self._chosen(latents)[self.indices.long()]
        if factor == 0:
            return self.where(~chosen)
        return self.with_values(torch.where(chosen, self.values * factor, self.values))

    def set(self, latents: Sequence[int] | Tensor, value: float) -> SparseLatents:
        """Give the chosen latents ``value`` at every token, active or not; 0 removes them."""
        rest = self.where(~self._chosen(latents)[self.indices.long()])
        return rest if value == 0 else rest._insert(latents, value)

    def add(self, latents: Sequence[int] | Tensor, value: float) -> SparseLatents:
        """Add ``value`` to the chosen latents at every token; an inactive one counts as 0, a sum of 0 is not stored."""
        chosen = self._chosen(latents)
        column = chosen.nonzero().squeeze(1)
        place = torch.cumsum(chosen, 0) - 1
        old = self.values.new_zeros(self.shape[0], column.shape[0])  # [N, chosen], never [N, S]
        hit = chosen[self.indices.long()]
        old[self.rows()[hit], place[self.indices[hit].long()]] = self.values[hit]
        merged = self.where(~hit)._merge(column, old + value)
        return merged.where(merged.values != 0)

    def permute(self, order: Sequence[int] | Tensor) -> SparseLatents:
        """Rename latents: latent j of the result is latent ``order[j]`` of this one, as ``dense[:, order]``."""
        order = self._numbers("order", order, self.shape[1])
        if order.shape != (self.shape[1],) or not torch.equal(
            order.sort().values, torch.arange(self.shape[1], device=self.device)
        ):
            raise ValueError(f"order has shape {tuple(order.shape)}; expected a permutation of 0..{self.shape[1] - 1}")
        return self._sorted(self.rows(), torch.argsort(order)[self.indices.long()], self.values)

    def to(self, device: torch.device | str) -> SparseLatents:
        """A copy on ``device`` (the same object when it is there already)."""
        if torch.device(device) == self.device:
            return self
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def detach(self) -> SparseLatents:
        """The same latents outside of the autograd graph."""
        return replace(self, **{name: tensor.detach() for name, tensor in self._tensors().items()})

    def validate(self) -> SparseLatents:
        """Check everything that the constructor cannot check for free; returns self, or raises naming what is wrong."""
        s = self.shape[1]
        counts = self.counts()
        if int(self.indptr[0]) != 0 or int(self.indptr[-1]) != self.nnz or bool((counts < 0).any()):
            raise ValueError(f"indptr does not ascend from 0 to nnz = {self.nnz}")
        if self.nnz and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < s:
            raise ValueError(f"indices reach {int(self.indices.min())}..{int(self.indices.max())}; expected 0..{s - 1}")
        keys = self.rows() * s + self.indices
        if bool((keys.diff() <= 0).any()):
            raise ValueError("indices do not ascend inside every row")
        return self

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, atomically."""
        from safetensors.torch import save_file

        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(handle)
        try:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()},
                temporary,
                metadata={"format": "patchsae.SparseLatents", "latents": str(self.shape[1])},
            )
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> SparseLatents:
        """Read what `save` wrote; a file that is something else, or is damaged, is refused."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "patchsae.SparseLatents":
                raise ValueError(f"{path} is not a SparseLatents file (format {metadata.get('format')!r})")
            held = [name for name in PER_TOKEN if name in file.keys()]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in ("values", "indices", "indptr", *held)}
        shape = (tensors["indptr"].shape[0] - 1, int(metadata["latents"]))
        return SparseLatents(shape=shape, **tensors).validate()

    def _tensors(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("values", "indices", "indptr", *PER_TOKEN)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _per_token(self, index: Tensor | slice) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self._tensors().items() if name in PER_TOKEN}

    def _check_per_token(self, name: str) -> None:
        values = getattr(self, name)
        if values is None:
            return
        plain.tensor(name, values, "[N]")
        if values.dtype not in VALUE_DTYPES or values.shape != (self.shape[0],):
            raise ValueError(
                f"{name} has dtype {values.dtype} and shape {tuple(values.shape)}; expected floats [N] = "
                f"[{self.shape[0]}]"
            )

    def _chosen(self, latents: Sequence[int] | Tensor) -> Tensor:
        """bool [S]: which latents are named; out of range is an error."""
        index = self._numbers("latents", latents, self.shape[1])
        chosen = torch.zeros(self.shape[1], dtype=torch.bool, device=self.device)
        chosen[index] = True
        return chosen

    def _numbers(self, name: str, numbers: Sequence[int] | Tensor, end: int) -> Tensor:
        """``numbers`` as int64 ``[M]``, every one of them in ``0..end-1``."""
        try:
            found = torch.as_tensor(numbers, device=self.device).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} is a {type(numbers).__name__}; expected whole numbers") from error
        plain.tensor(name, found)
        if not found.numel():
            return found.to(torch.int64)
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            hint = ": nonzero() of a mask gives them" if found.dtype == torch.bool else ""
            raise TypeError(f"{name} has dtype {found.dtype}; expected whole numbers{hint}")
        if torch.compiler.is_compiling():  # values are not known while tracing
            return found.to(torch.int64)
        least, most = torch.stack(found.aminmax()).tolist()
        if not 0 <= least <= most < end:
            raise IndexError(f"{name} reach {least}..{most}; expected 0..{end - 1}")
        return found.to(torch.int64)

    def _insert(self, latents: Sequence[int] | Tensor, value: float) -> SparseLatents:
        column = self._chosen(latents).nonzero().squeeze(1)
        return self._merge(column, self.values.new_full((self.shape[0], column.shape[0]), value))

    def _merge(self, column: Tensor, block: Tensor) -> SparseLatents:
        """Add entries block[n, j] at (n, column[j]); none of these columns may hold entries already."""
        tokens = torch.arange(self.shape[0], device=self.device).repeat_interleave(column.shape[0])
        return self.merged(tokens, column.repeat(self.shape[0]), block.reshape(-1))

    def merged(self, rows: Tensor, columns: Tensor, values: Tensor) -> SparseLatents:
        """With M more entries (int64 ``[M]`` rows and columns), none of which may be there already."""
        with outside_of_autocast(self.device):
            return self._sorted(
                torch.cat([self.rows(), rows]),
                torch.cat([self.indices.long(), columns]),
                torch.cat([self.values, values]),
            )

    def _sorted(self, rows: Tensor, columns: Tensor, values: Tensor) -> SparseLatents:
        order = torch.argsort(rows * self.shape[1] + columns)
        return replace(
            self,
            values=values[order],
            indices=columns[order].to(torch.int32),
            indptr=indptr_from_counts(torch.bincount(rows, minlength=self.shape[0])),
        )


def _cat_per_token(name: str, parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    if len(known) not in (0, len(parts)):
        raise ValueError(f"{len(known)} of {len(parts)} parts have a {name}; expected all or none")
    return torch.cat(known) if known else None


def cat(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices and indptr of several CSR matrices, one below the other."""
    if len(parts) == 1:
        return parts[0]
    values, indices, indptrs = zip(*parts, strict=True)
    with outside_of_autocast(parts[0][0].device):
        return torch.cat(values), torch.cat(indices), indptr_from_counts(torch.cat([p.diff() for p in indptrs]))


def indptr_from_counts(counts: Tensor) -> Tensor:
    """int64 ``[N + 1]`` row pointers from int64 ``[N]`` entries per row."""
    indptr = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=indptr[1:])
    return indptr
