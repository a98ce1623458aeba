"""The sparse autoencoder as a module; its arithmetic is in patchsae_kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import patchsae_kernels as pk
from patchsae.disk.claims import require_memory
from patchsae.disk.tensor_files import require_float32
from patchsae.models import normalise
from patchsae.models.checkpoints.formats import ours
from patchsae.models.given import described, outside_inference_mode, require_tensor
from patchsae.models.sae_config import PARAMETERS, SAEConfig, check_shape


class SparseAutoencoder(nn.Module):
    """h = act((r - b_dec) W_enc + b_enc), r_hat = h W_dec + b_dec (Lim et al., arXiv 2412.05276, equation 1).

    Parameters are float32: ``W_enc [D, S]`` (stored latent-major, strides (1, D), which `.to`, `load_state_dict`,
    copies and optimisers keep), ``b_enc [S]``, ``W_dec [S, D]``, ``b_dec [D]``; with "jumprelu" also the buffer
    ``threshold [S]``.

    What a SAE does to each token before it encodes it (``config.normalise``) travels with its latents
    (`SparseLatents.token_mean`, `token_scale`), and every `decode` undoes it. With "latent_norm" W_enc is
    ``g (W - mean(W))``, b_enc what the norm adds, and the buffers ``scaled_bias [S]`` and ``spread [D + 1, D + 1]`` are
    those of `normalise.over_latents`; such an encoder is not trained: W_enc and b_enc require no gradient.

    Args:
        config: sizes and activation.
        generator: source of the random start; None is torch's global one.
    """

    config: SAEConfig
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    threshold: Tensor
    scaled_bias: Tensor
    spread: Tensor
    _prepared: pk.PreparedWeights | None
    _sources: tuple[Tensor, ...]

    @outside_inference_mode
    def __init__(self, config: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self._allocate(config)
        self.reset_parameters(generator)

    @classmethod
    @outside_inference_mode
    def from_tensors(cls, config: SAEConfig, tensors: Mapping[str, Tensor]) -> SparseAutoencoder:
        """A SAE with copies of these weights (the names of the state dict); other float dtypes become float32.

        Raises:
            ValueError: a tensor is missing, left over, has another shape than ``config`` says, or holds what is no real
                number that float32 has.
        """
        expected = config.shapes
        if tensors.keys() != expected.keys():
            named = str(sorted(map(str, tensors)))[:200]
            raise ValueError(f"the tensors are named {named}; expected {sorted(expected)}")
        for name, tensor in tensors.items():
            check_shape(name, tuple(tensor.shape), config)
        state = {name: require_float32(name, tensor) for name, tensor in tensors.items()}
        sae = cls.__new__(cls)
        nn.Module.__init__(sae)
        sae._allocate(config)
        sae.load_state_dict(state)
        return sae

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The released start but for b_dec: Kaiming-uniform W_enc and W_dec, W_dec rows to unit norm, the rest 0.

        The fan-in of a matrix is its second dimension, as in `torch.nn.init`: bounds sqrt(6 / S) and sqrt(6 / D).
        """
        enc_bound, dec_bound = math.sqrt(6 / self.config.d_sae), math.sqrt(6 / self.config.d_in)
        self.W_enc.uniform_(-enc_bound, enc_bound, generator=generator)
        self.W_dec.uniform_(-dec_bound, dec_bound, generator=generator)
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        for name in ("b_enc", "b_dec", *self.config.buffers):
            getattr(self, name).zero_()

    @property
    def prepared(self) -> pk.PreparedWeights:
        """The encoder weights as `patchsae_kernels.encode` wants them; made on first use, shared by all calls."""
        if torch.compiler.is_compiling():  # what is made while tracing belongs to the graph
            return pk.prepare(*self._encoder())
        sources = (self.W_enc, self.b_enc, self.b_dec, *self._joined())
        if self._prepared is None or any(old is not new for old, new in zip(self._sources, sources, strict=True)):
            self._prepared, self._sources = pk.prepare(*self._encoder()), sources
        return self._prepared

    def refresh(self) -> None:
        """Tell the prepared weights that the parameters changed in place behind autograd's back (through ``.data``).

        Optimiser steps and `load_state_dict` are noticed without it.
        """
        if self._prepared is not None:
            self.prepared.refresh()

    def encode(self, r: Tensor) -> pk.SparseLatents:
        """Latents of ``r`` ``[..., D]``: leading dimensions are flattened to N tokens. Differentiable.

        Raises:
            TypeError: ``r`` is no tensor.
            ValueError: the last dimension is not D, or a token holds NaN or an infinity.
        """
        tokens = self.normalised(r)
        z = pk.encode(
            self._seen(tokens.tokens),
            self.prepared,
            activation=self.config.activation,
            k=self.config.k,
            threshold=self.threshold if self.config.activation == "jumprelu" else None,
        )
        if self.config.soft_cap is not None:
            z = z.with_values(self.config.soft_cap * torch.tanh(z.values / self.config.soft_cap))
        return z if tokens.scale is None else replace(z, token_mean=tokens.mean, token_scale=tokens.scale)

    def normalised(self, r: Tensor) -> normalise.Normalised:
        """``r`` ``[..., D]`` as N tokens ``[N, D]``, as the encoder sees them, with what was done to each of them."""
        require_tensor("r", r, f"the residual stream [..., D] with D = {self.config.d_in}")
        if r.dim() == 0 or r.shape[-1] != self.config.d_in:
            pixels = r.dim() in (3, 4) and r.shape[-3] == 3
            hint = ": these look like pixels, of which `clip.residual(pixels)` makes r" if pixels else ""
            raise ValueError(f"r has shape {tuple(r.shape)}; expected [..., D] with D = {self.config.d_in}{hint}")
        x = r.reshape(-1, self.config.d_in)
        per_token = normalise.PER_TOKEN.get(self.config.normalise)
        return normalise.Normalised(x) if per_token is None else per_token(x.float())

    def decode(self, z: pk.SparseLatents, like: Tensor | None = None, offset: float = 0.0) -> Tensor:
        """Reconstruction of N tokens, float32 ``[N, D]``, or in the shape of ``like`` ``[..., D]``. Differentiable.

        Args:
            offset: is added to every element of the reconstruction.

        Raises:
            TypeError: ``z`` are no sparse latents, or ``like`` is no tensor.
            ValueError: the shapes do not fit.
        """
        _require_latents(z)
        if like is not None:
            require_tensor("like", like, f"tokens [..., D] with D = {self.config.d_in}")
            if like.numel() != z.shape[0] * self.config.d_in:
                raise ValueError(f"like has shape {tuple(like.shape)}; expected the {z.shape[0]:,} tokens of z")
        before, after = self._offsets(z, offset)
        y = pk.decode(z, self.W_dec, self.b_dec + before if before else self.b_dec)
        y = y + after if after else y
        return y if like is None else y.reshape(like.shape)

    def decode_masked(self, z: pk.SparseLatents, keep: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """`decode` of the latents in a keep set, ``[N, D]``; arguments and errors are `pk.decode_masked`'s."""
        _require_latents(z)
        return pk.decode_masked(z, keep, self.W_dec, self.b_dec, class_ids)

    def decode_sweep(
        self,
        z: pk.SparseLatents,
        rank: Tensor,
        ks: Sequence[int],
        class_ids: Tensor | None = None,
        offset: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """All reconstructions of a top-k masking sweep, ``[K, N, D]`` each: `pk.decode_sweep`. Not differentiable.

        offset: is added to every element of every reconstruction.
        """
        _require_latents(z)
        before, after = self._offsets(z, offset)
        b_dec = self.b_dec + before if before else self.b_dec
        on, off = pk.decode_sweep(z, rank, ks, self.W_dec, b_dec, class_ids)
        return (on.add_(after), off.add_(after)) if after else (on, off)

    def forward(self, r: Tensor) -> Tensor:
        """Reconstruction of ``r`` ``[..., D]`` in its shape, float32."""
        return self.decode(self.encode(r), like=r)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The four parameters, as `patchsae_kernels.sae_step` and `adam_step` take them."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def save(self, directory: str | Path) -> None:
        """Write ``sae.safetensors`` and ``config.json`` into ``directory``; each file is complete or as it was."""
        ours.save(self.config, self.state_dict(), Path(directory))

    def extra_repr(self) -> str:
        config = self.config
        more = {"k": config.k, "normalise": config.normalise, "soft_cap": config.soft_cap}
        said = [f"{name}={value!r}" for name, value in more.items() if value not in (None, "none")]
        return ", ".join([f"d_in={config.d_in}, d_sae={config.d_sae}, activation={config.activation!r}", *said])

    def __getstate__(self) -> dict[str, Any]:  # packed copies are remade where the module is unpickled
        return {**self.__dict__, "_prepared": None, "_sources": ()}

    def _joined(self) -> tuple[Tensor, ...]:
        """What the encoder is made of besides its three parameters."""
        return (self.scaled_bias,) if self.config.normalise == "latent_norm" else ()

    def _encoder(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_enc, b_enc and b_dec for the tokens of `_seen`."""
        if self.config.normalise != "latent_norm":
            return self.W_enc, self.b_enc, self.b_dec
        width = normalise.extended_width(self.config.d_in)
        rows = torch.cat([self.W_enc.T, self.scaled_bias[:, None]], dim=1).detach()
        return F.pad(rows, (0, width - rows.shape[1])).T, self.b_enc, self.b_dec.new_zeros(width)

    def _seen(self, x: Tensor) -> Tensor:
        """Tokens as `prepared` takes them."""
        if self.config.normalise != "latent_norm":
            return x
        return normalise.over_latents(x.float() - self.b_dec, self.spread)

    @staticmethod
    def _offsets(z: pk.SparseLatents, offset: float) -> tuple[float, float]:
        """What to add to b_dec, and what to a reconstruction that is no longer normalised."""
        return (offset, 0.0) if z.token_scale is None else (0.0, offset)

    def _allocate(self, config: SAEConfig) -> None:
        if torch.get_default_device().type == "cpu":
            sizes = f"d_sae={config.d_sae:,} and d_in={config.d_in:,}"
            require_memory(f"an autoencoder of {sizes}", config.parameter_bytes)
        self.config = config
        self._prepared, self._sources = None, ()
        self.W_enc = nn.Parameter(torch.empty(config.d_sae, config.d_in, dtype=torch.float32).T)
        self.b_enc = nn.Parameter(torch.empty(config.d_sae, dtype=torch.float32))
        self.W_dec = nn.Parameter(torch.empty(config.d_sae, config.d_in, dtype=torch.float32))
        self.b_dec = nn.Parameter(torch.empty(config.d_in, dtype=torch.float32))
        for name in config.buffers:
            self.register_buffer(name, torch.empty(config.shapes[name], dtype=torch.float32))
        if config.normalise == "latent_norm":
            self.W_enc.requires_grad_(False)
            self.b_enc.requires_grad_(False)
        self.register_load_state_dict_post_hook(_restore_layout)  # type: ignore[no-untyped-call]


def _require_latents(z: object) -> None:
    if not isinstance(z, pk.SparseLatents):
        raise TypeError(f"z is {described(z)}; expected SparseLatents, as encode() returns them")


def _restore_layout(sae: nn.Module, _incompatible: object) -> None:
    """Store W_enc latent-major again after ``load_state_dict(assign=True)``, which takes the strides of the file."""
    weight = sae.W_enc
    if isinstance(weight, nn.Parameter) and not weight.T.is_contiguous():
        weight.data = weight.data.T.contiguous().T
