from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.activations.packing import empty_packed, image_bytes, pack


def tokens_of(seed: int, magnitude: float) -> torch.Tensor:
    """[3, 4, 20], a few values much larger than the others, as in a residual stream."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 20, generator=generator) * magnitude
    x[..., 7] *= 30
    return x


@given(st.integers(0, 100), st.floats(-30, 30))
def test_an_int8_value_is_off_by_at_most_half_a_scale(seed: int, exponent: float) -> None:
    x = tokens_of(seed, 10.0**exponent)
    packed = pack(x, "int8")
    assert packed.scale is not None
    torch.testing.assert_close(packed.scale, x.abs().amax(-1) / 127)
    error = (packed.unpack() - x).abs()
    assert (error <= packed.scale[..., None] * (0.5 + 1e-4)).all()
    largest = x.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(packed.unpack().gather(-1, largest), x.gather(-1, largest))


def test_tokens_of_zeros_stay_zero() -> None:
    packed = pack(torch.zeros(1, 2, 3), "int8")
    assert torch.equal(packed.unpack(), torch.zeros(1, 2, 3))


def test_bfloat16_is_exact_for_a_tower_in_bfloat16() -> None:
    x = tokens_of(0, 1.0).to(torch.bfloat16)
    assert torch.equal(pack(x, "bfloat16").unpack(), x)


def test_the_announced_size_is_that_of_the_tensors() -> None:
    for store in ("bfloat16", "int8"):
        packed = empty_packed(1, 5, 16, store)
        tensors = [packed.tokens] if packed.scale is None else [packed.tokens, packed.scale]
        assert image_bytes(5, 16, store) == sum(t.numel() * t.element_size() for t in tensors)
