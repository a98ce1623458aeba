"""What is no plain tensor, or no whole number, is refused by its name wherever a tensor, or a number, is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import patchsae_kernels as pk
from patchsae_kernels import checks
from tests.kernels.cases import random_latents
from tests.kernels.every_op import NAMES
from tests.kernels.places import CASE, GRADS, KEEP, PARAMS, PLACES, RANK, STATE, WEIGHTS, Z, adam, encode


def fake(t: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(t)


NOT_PLAIN: dict[str, Callable[[torch.Tensor], Any]] = {
    "a picture": lambda t: Image.new("RGB", (4, 4)),
    "an array": lambda t: np.ones(tuple(t.shape), np.float32),
    "a list": lambda t: t.tolist(),
    "COO": lambda t: t.contiguous().to_sparse(),
    "meta": lambda t: t.to("meta"),
    "fake": fake,
    "nested": lambda t: torch.nested.nested_tensor([t]),
    "latents": lambda t: Z,
}


@pytest.mark.filterwarnings("ignore:.*nested")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_no_plain_tensor_is_refused_by_its_name(place: str, kind: str) -> None:
    name, right, call = PLACES[place]
    call(right)
    with pytest.raises(TypeError, match=rf"^{name} is a .*; expected a tensor"):
        call(NOT_PLAIN[kind](right))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("place", [p for p in PLACES if p not in ("keep", "dead", "where", "auxk dead")])
def test_a_dtype_of_another_kind_is_refused_by_the_name_of_the_argument(place: str, dtype: torch.dtype) -> None:
    name, right, call = PLACES[place]
    with pytest.raises(TypeError, match=f"^{name} has dtype {dtype}; expected"):
        call(torch.zeros(right.shape, dtype=dtype))


@pytest.mark.parametrize("place", [p for p in PLACES if p != "p"])
def test_a_number_or_a_single_dimension_too_few_is_refused_by_name(place: str) -> None:
    name, right, call = PLACES[place]
    with pytest.raises(ValueError, match=f"^{name} has .*; expected"):
        call(right.new_zeros(()))
    if right.dim() == 2:
        with pytest.raises(ValueError, match=f"^{name} has .*; expected"):
            call(right[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "b_dec"])
def test_weights_that_are_not_numbers_are_refused_by_name(name: str, value: float) -> None:
    broken = getattr(CASE, name).clone()
    broken[(-1,) * broken.dim()] = value
    with pytest.raises(ValueError, match=f"^{name} holds a NaN or an infinity"):
        encode(**{name: broken})


FLOATS = [p for p, (_, right, _) in PLACES.items() if right.is_floating_point()]


@pytest.mark.parametrize("place", FLOATS)
def test_a_tangent_is_refused_instead_of_lost(place: str) -> None:
    name, right, call = PLACES[place]
    with forward_ad.dual_level(), pytest.raises(TypeError, match=f"^{name} has a tangent"):
        call(forward_ad.make_dual(right.clone(), torch.ones_like(right)))


@pytest.mark.parametrize("place", FLOATS)
def test_transforms_of_torch_func_are_refused_by_the_name_of_what_they_wrap(place: str) -> None:
    name, right, call = PLACES[place]

    def total(t: torch.Tensor) -> torch.Tensor:
        call(t)
        return t.sum()

    wrapped = f"^{name} is inside of a transform of torch.func"
    for transform in (torch.func.grad, torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(TypeError, match=wrapped):
            transform(total)(right.expand(2, *right.shape) if transform is torch.func.vmap else right)


@pytest.mark.parametrize("place", FLOATS)
def test_a_sign_that_is_not_in_memory_is_refused(place: str) -> None:
    name, right, call = PLACES[place]
    with pytest.raises(TypeError, match=f"^{name} is a view whose sign is turned on reading"):
        call(torch.complex(right, right).conj().imag)


def test_functional_call_is_a_plain_call() -> None:
    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_dec = torch.nn.Parameter(torch.zeros(10, 6))

        def forward(self, z: pk.SparseLatents) -> torch.Tensor:
            return pk.decode(z, self.W_dec, CASE.b_dec)

    weight = CASE.W_dec.clone().requires_grad_()
    y = torch.func.functional_call(Decoder(), {"W_dec": weight}, (Z,))
    assert torch.equal(y, pk.decode(Z, CASE.W_dec, CASE.b_dec))
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad.count_nonzero() > 0


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda n: encode(activation="topk", k=n), "k"),
        (lambda n: pk.decode_sweep(Z, RANK, [1, n], CASE.W_dec, CASE.b_dec), "ks"),
        (lambda n: pk.latent_stats(Z, n), "tokens_per_image"),
        (lambda n: pk.latent_stats(Z, 2, first_image=n), "first_image"),
        (lambda n: pk.latent_stats(Z, 2, 0.1, torch.zeros(2, dtype=torch.int64), n), "num_classes"),
        (lambda n: pk.pool_tokens(Z, n), "tokens_per_image"),
        (lambda n: pk.encode_bounded(CASE.x, pk.prepare(*WEIGHTS), capacity=n), "capacity"),
        (lambda n: pk.reconstruct_dead(CASE.x, PARAMS, KEEP, k=n), "k"),
        (lambda n: Z.reshape_tokens(n, 2), "images"),
        (lambda n: Z.reshape_tokens(2, n), "tokens"),
    ],
)
def test_whole_numbers(call: Callable[[Any], object], name: str) -> None:
    for right in (2, np.int64(2), torch.tensor(2)):
        call(right)
    for wrong in (2.0, "2", None, [2]):
        if wrong is None and name in ("k", "num_classes"):
            continue
        with pytest.raises(TypeError, match=f"^{name} is .*; expected a whole number"):
            call(wrong)
    with pytest.raises(ValueError, match=f"^{name} is -1; expected"):
        call(-1)


def test_images_without_tokens() -> None:
    empty = random_latents(0, 0, 10)
    assert [part.shape for part in empty.reshape_tokens(3, 0)] == [(0, 10)] * 3
    assert empty.reshape_tokens(0, 3) == []
    with pytest.raises(ValueError, match=r"images \* tokens is 3 \* 0 = 0; expected N = 4"):
        Z.reshape_tokens(3, 0)
    with pytest.raises(ValueError, match="images is -2"):
        Z.reshape_tokens(-2, -2)


@pytest.mark.parametrize(
    ("call", "name", "end"),
    [
        (lambda n: Z.scale(n, 2.0), "latents", 10),
        (lambda n: Z.set(n, 2.0), "latents", 10),
        (lambda n: Z.add(n, 2.0), "latents", 10),
        (lambda n: Z.permute(n), "order", 10),
        (lambda n: Z.select_rows(n), "index", 4),
    ],
)
def test_numbers_of_latents_and_tokens(call: Callable[[Any], object], name: str, end: int) -> None:
    """A mask or a float is not taken for numbers, and a negative one does not count from the end."""
    for dtype in (torch.int32, torch.int64, torch.uint8):
        call(torch.arange(end, dtype=dtype))
    call(list(range(end)))
    for wrong in (torch.ones(end, dtype=torch.bool), [True] * end, torch.arange(end).float(), [0.5] * end):
        with pytest.raises(TypeError, match=f"^{name} has dtype .*; expected whole numbers"):
            call(wrong)
    with pytest.raises(TypeError, match=f"^{name} is a Image; expected whole numbers"):
        call(Image.new("RGB", (4, 4)))
    for wrong_number in (-1, end):
        with pytest.raises(IndexError, match=rf"^{name} reach .*; expected 0\.\.{end - 1}"):
            call([0, wrong_number])


def test_tensors_on_two_devices_are_named() -> None:
    with pytest.raises(ValueError, match="b is on meta and a on cpu; expected one device"):
        checks.same_device(a=torch.zeros(1), none=None, b=torch.zeros(1, device="meta"))


def test_what_adam_writes_has_memory_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"^b_enc is an expanded tensor"):
        adam(p=torch.zeros(1).expand(10))
    with pytest.raises(ValueError, match=r"^state.exp_avg\['b_enc'\] is an expanded tensor"):
        adam(moment=torch.zeros(1).expand(10))
    grads = {name: GRADS[name] for name in NAMES if name != "W_dec"}
    with pytest.raises(KeyError, match="grads has no 'W_dec'"):
        pk.adam_step(PARAMS, grads, STATE, lr=0.1)
