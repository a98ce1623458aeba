"""Prepared encoder weights: the one place where packed copies live."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import checks, servers


class PreparedWeights:
    """Encoder weights together with whatever packed copies the implementations want, made once per weight version.

    Attributes:
        W_enc, b_enc, b_dec: the tensors given to `prepare`, not copies: gradients reach them.
    """

    def __init__(self, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> None:
        checks.encoder_weights(W_enc, b_enc, b_dec)
        self.W_enc, self.b_enc, self.b_dec = W_enc, b_enc, b_dec
        # None yet: a first refresh while tracing leaves the check to a later one.
        self._versions: tuple[object, ...] = ()
        self._packed: dict[str, list[Tensor]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Call after the weights changed in place (an optimiser step, a load): checks them anew.

        Packed copies are made again when they are next asked for.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        if torch.compiler.is_compiling():  # values are not known while tracing
            return
        for name in ("W_enc", "b_enc", "b_dec"):
            checks.finite_weight(name, getattr(self, name))
        self._packed.clear()
        self._versions = self._current()

    def refresh_if_stale(self) -> None:
        """`refresh` when the weights changed in place since the last time (not while tracing)."""
        if not torch.compiler.is_compiling() and self._versions != self._current():
            self.refresh()

    def packed(self, precision: str) -> list[Tensor]:
        """The copies that the implementation for this device wants at a precision; made on first use, maybe none.

        A traced graph gets none of weights that are being trained: they would be constants of it, and stale after a
        step, so the op packs anew. Weights that it does not train must not change under a traced graph.

        Raises:
            RuntimeError: a CUDA graph is being captured and the copies are not there yet.
        """
        if torch.compiler.is_compiling():
            return [] if self.W_enc.requires_grad or self.b_enc.requires_grad else self._packed.get(precision, [])
        if precision not in self._packed:
            if self.W_enc.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"weights are not packed for precision={precision!r} yet, and a captured graph cannot keep them: "
                    "encode once, or call packed(precision), before the capture"
                )
            self._packed[precision] = servers.pack(self.W_enc, self.b_enc, precision)
        return self._packed[precision]

    def packed_in_place(self) -> list[Tensor] | None:
        """The copies of one precision that a GPU may bring up to date together with W_enc; the others are dropped.

        None where there are none, where they are stale, or where the rows are a copy of W_enc themselves. Whoever
        changes them calls `adopt` once W_enc and b_enc have changed, too.
        """
        kept = [name for name in ("exact", "bf16") if self._packed.get(name)]
        if not kept or not servers.has_triton(self.W_enc.device) or self._versions != self._current():
            return None
        from patchsae_kernels.triton.pack import Packed

        packed = self._packed[kept[0]]
        self._packed = {kept[0]: packed}
        return packed if Packed(*packed).rows.data_ptr() == self.W_enc.data_ptr() else None

    def adopt(self) -> None:
        """The packed rows are those of W_enc as it is now: complete the copies, and take them for current."""
        for packed in self._packed.values():
            servers.pack_biases(self.b_enc, packed)
        self._versions = self._current()

    @property
    def shape(self) -> tuple[int, int]:
        """``(D, S)``."""
        return self.W_enc.shape[0], self.W_enc.shape[1]

    def _current(self) -> tuple[object, ...]:
        return tuple(version(t) for t in (self.W_enc, self.b_enc, self.b_dec))


def version(t: Tensor) -> object:
    """Something that differs from what it was before ``t`` changed in place.

    What was made in inference mode does not count its changes: its version is another one every time.
    """
    return object() if t.is_inference() else t._version


def prepare(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> PreparedWeights:
    """Prepare encoder weights for `encode`.

    Args:
        W_enc: ``[D, S]`` float32 (any strides; latent-major, strides ``(1, D)``, is the fast layout).
        b_enc: ``[S]`` float32.
        b_dec: ``[D]`` float32, subtracted from the input.

    Changes in place are noticed when the weights are next used. Tensors made under `torch.inference_mode` cannot tell,
    so that such weights are checked and packed at every use: make them outside of it.

    Raises:
        ValueError, TypeError: shapes that do not fit, dtypes other than float32 (float64 for the oracle), NaN or inf.
    """
    return PreparedWeights(W_enc, b_enc, b_dec)


def as_prepared(weights: PreparedWeights | Tensor, b_enc: Tensor | None, b_dec: Tensor | None) -> PreparedWeights:
    """`encode` takes prepared weights or the raw tensors."""
    if isinstance(weights, PreparedWeights):
        if b_enc is not None or b_dec is not None:
            raise TypeError("b_enc and b_dec are part of the prepared weights; pass them only with a raw W_enc")
        weights.refresh_if_stale()
        return weights
    if b_enc is None or b_dec is None:
        raise TypeError("a raw W_enc needs b_enc and b_dec as well: encode(x, W_enc, b_enc, b_dec, ...)")
    return prepare(weights, b_enc, b_dec)
