"""Launch configurations by architecture, and which design serves which encode.

None of these figures has been timed on a GPU yet: they follow from the resources that the compiler reports (tests/gate)
and from arithmetic. ``python -m benches.gpu`` times the alternatives; a measured winner belongs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from triton import knobs

from patchsae_kernels.arithmetic import tf32_is_allowed

PRODUCTS = ("fused", "library")


@dataclass(frozen=True)
class Tile:
    """One configuration of the product kernel.

    Attributes:
        m, n, k: tokens, latents and depth of a tile.
        group: tiles of tokens that run side by side, so that they share the latents' rows in the L2.
        warps, stages: warps of a program and depth of its load pipeline.
        resident: programs that a multiprocessor holds at a time: where it is 2, one writes while the other multiplies.
    """

    m: int
    n: int
    k: int
    group: int = 8
    warps: int = 8
    stages: int = 3
    resident: int = 1


@dataclass(frozen=True)
class Architecture:
    """What the kernels need to know of a part.

    Attributes:
        half: tile of the products in float16 and bfloat16 that are stored.
        screen: tile of those that are not, which leave room for a deeper pipeline.
        single: tile of the float32 product.
        multiprocessors: of the part; a persistent kernel starts as many programs, times `Tile.resident`.
        descriptors: the part loads tiles by tensor descriptors (a copy engine); otherwise by pointers.
    """

    half: Tile
    screen: Tile
    single: Tile
    multiprocessors: int
    descriptors: bool


# 128 x 256 feeds the tensor cores of a Hopper or Blackwell part from shared memory: 2 * 128 * 256 / (128 + 256) = 171
# FLOP an element loaded; three stages of 48 KB and the tile on its way out fill 212 of 227 KB, four stages 197 where
# the tile stays. Ampere's and CDNA3's accumulators and shared memory (163 and 64 KB) allow 128 x 128. The float32 tiles
# are the largest that do not spill.
ARCHITECTURES = {
    "sm_80": Architecture(
        Tile(128, 128, 64, stages=4), Tile(128, 128, 64, stages=4), Tile(128, 64, 16), 108, descriptors=False
    ),
    "sm_90": Architecture(Tile(128, 256, 64), Tile(128, 256, 64, stages=4), Tile(128, 64, 16), 132, descriptors=True),
    "sm_100": Architecture(Tile(128, 256, 64), Tile(128, 256, 64, stages=4), Tile(128, 64, 16), 148, descriptors=True),
    "gfx942": Architecture(
        Tile(128, 128, 64, stages=2),
        Tile(128, 128, 64, stages=2),
        Tile(64, 64, 16, stages=1),
        304,
        descriptors=False,
    ),
    "interpreter": Architecture(
        Tile(32, 128, 64, group=2), Tile(32, 128, 64, group=2), Tile(32, 64, 64, group=2), 3, descriptors=False
    ),
}

PRODUCT_CANDIDATES = {
    "sm_90": (
        Tile(128, 256, 64),
        Tile(128, 256, 64, group=16),
        Tile(128, 128, 64, warps=4, stages=2, resident=2),
        Tile(128, 128, 64, stages=4),
        Tile(256, 128, 64),
    ),
}
"""Tiles worth timing, for ``benches.gpu``."""


# Not measured yet: `benches.gpu` has an item that times both steps and prints where they meet. By arithmetic for a
# paper batch on an H200: per active latent of a token the sparse step gathers 6 KB in its backward and 3 KB in its
# decode, 42 us (half of that with bfloat16 products). Dense float32 products cost 190 ms more than the encode, TF32
# ones 35, bfloat16 ones 14: the steps meet near L0 4,500, 800 and 660 of 49,152. In float32 the encode's slots (4,096
# candidates a token) set an earlier end.
DENSE_FROM = {"float32": 0.04, "tf32": 0.015, "bf16": 0.0135}
"""Share of active latents from which a training step is dense, by what its dense products compute."""
HYSTERESIS = 1.25
"""A run's step turns dense above this many times the share, and sparse below the share divided by it: within the band
both cost about the same, and a step that changes over from one batch to the next changes its rounding for nothing."""


_assumed: ContextVar[str | None] = ContextVar("assumed architecture", default=None)
_product: ContextVar[str | None] = ContextVar("forced product", default=None)
_tile: ContextVar[Tile | None] = ContextVar("forced tile", default=None)


def architecture(device: torch.device) -> Architecture:
    """The configuration for a device; an unknown NVIDIA part is served as the newest known one below it."""
    assumed = _assumed.get()
    if assumed or device.type != "cuda":
        return ARCHITECTURES[assumed or "interpreter"]
    # Parts of one architecture differ in size, and a slice of one (MIG) is smaller still.
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return replace(ARCHITECTURES[_name(device)], multiprocessors=multiprocessors)


def product_tile(device: torch.device, dtype: torch.dtype, stored: bool) -> Tile:
    """The tile of `patchsae_kernels.triton.product` for operands of a dtype whose products are stored, or not."""
    part = architecture(device)
    if dtype == torch.float32:
        return part.single
    return _tile.get() or (part.half if stored else part.screen)


def product_design(precision: str) -> str:
    """``"fused"`` or ``"library"``: `patchsae_kernels.triton.product` or `patchsae_kernels.triton.library`.

    exact: fused, whose bits do not depend on the number of tokens, and whose accumulation is known, as the bound needs.
    bf16: fused; by arithmetic the pass over what the vendor's product wrote, 0.6 ms a paper batch, is more than a
    product with its maxima or hits in Triton loses to the vendor's. Triton's interpreter multiplies bfloat16 wrongly.
    fp32: library; without tensor cores the product itself takes 40 ms, and the pass is nothing beside it.
    """
    forced = _product.get()
    if forced is not None and not (forced == "library" and precision == "exact"):
        return forced
    if precision == "bf16" and knobs.runtime.interpret:
        return "library"
    return "library" if precision == "fp32" else "fused"


def dense_from(precision: str) -> float:
    """The entry of `DENSE_FROM` that holds for a step's precision; "fp32" alone follows PyTorch's switch for TF32."""
    if precision == "bf16":
        return DENSE_FROM["bf16"]
    return DENSE_FROM["tf32" if precision == "fp32" and tf32_is_allowed() else "float32"]


def next_is_dense(share: float, was_dense: bool | None, precision: str) -> bool:
    """Whether the next step is dense at a running share of active latents; ``was_dense``: the last one, if known."""
    factor = 1.0 if was_dense is None else 1 / HYSTERESIS if was_dense else HYSTERESIS
    return share > dense_from(precision) * factor


@contextmanager
def assume(name: str) -> Iterator[None]:
    """Configure for another architecture than the device's: the compile gate, the interpreter."""
    token = _assumed.set(name)
    try:
        yield
    finally:
        _assumed.reset(token)


@contextmanager
def override(product: str | None = None, tile: Tile | None = None) -> Iterator[None]:
    """Force the design of the product where both are possible (the exact screening is always fused), or its tile."""
    if product is not None and product not in PRODUCTS:
        raise ValueError(f"product is {product!r}; expected one of {', '.join(PRODUCTS)}")
    tokens = _product.set(product), _tile.set(tile)
    try:
        yield
    finally:
        _product.reset(tokens[0])
        _tile.reset(tokens[1])


def _name(device: torch.device) -> str:
    if torch.version.hip:
        found = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return found if found in ARCHITECTURES else "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major == 12:  # consumer Blackwell has Ampere's shared memory and instructions
        return "sm_80"
    known = sorted((int(n[3:]) for n in ARCHITECTURES if n.startswith("sm_")), reverse=True)
    return f"sm_{next((n for n in known if n <= 10 * major + minor), known[-1])}"
