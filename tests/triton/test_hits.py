"""Hits: which latents a product's tiles report, and what is read from the words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae_kernels.triton import hits, library, product
from patchsae_kernels.triton.centre import centre
from patchsae_kernels.triton.cutoffs import cutoffs
from patchsae_kernels.triton.pack import pack
from tests.examples import examples
from tests.kernels.cases import make_case

few = examples(6)
floats = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, 2.0**-126, 1e-45, 3.4e38, -3.4e38])
words = st.sampled_from([0, 0, 0, 1, -1, 2**31 - 1, -(2**31), 0x00F00001]) | st.integers(-(2**31), 2**31 - 1)


def bits_of(found: torch.Tensor) -> torch.Tensor:
    """Words ``[rows, buckets]`` as bool ``[rows, 32 buckets]``."""
    return ((found[:, :, None] >> torch.arange(32)) & 1).bool().flatten(1)


@pytest.mark.slow
@examples(60)
@given(st.lists(floats, min_size=1, max_size=40), st.none() | floats, st.sampled_from([torch.bfloat16, torch.float32]))
def test_a_product_is_above_its_cutoff_exactly_where_its_value_is_active(biases, level, dtype):
    bias = torch.tensor([*biases, float("-inf")])
    threshold = None if level is None else torch.full_like(bias, abs(level))
    found = cutoffs(bias, threshold, dtype)
    least = torch.zeros_like(bias) if threshold is None else threshold
    g = torch.Generator().manual_seed(len(biases))
    near = torch.where(found.isfinite(), found, least - bias)
    steps = torch.tensor([-70000, -32768, -2, -1, 0, 1, 2, 32767, 32769, 70000], dtype=torch.int32)
    beside = (near[:, None].view(torch.int32) + steps).view(torch.float32)
    anywhere = torch.randn(len(bias), 6, generator=g) * (least - bias).nan_to_num(1, 1, 1).abs()[:, None]
    for accumulator in (*beside.T, *anywhere.T, torch.zeros_like(bias)):
        accumulator = accumulator.nan_to_num(0.0)
        active = accumulator.to(dtype).float() + bias > least
        assert torch.equal(accumulator > found, active)


@few
@given(st.integers(0, 2**31), st.none() | st.floats(0, 0.5), st.sampled_from([1.0, 40.0]))
def test_screening_misses_no_latent_and_takes_few_too_many(seed, level, outlier):
    """Against float64; a channel that is far larger than the others widens the bound, not the truth."""
    case = make_case(seed, 5, 64, 100)
    x = case.x.clone()
    x[:, 3] *= outlier
    case = case._replace(x=x)
    packed = pack(case.W_enc, case.b_enc, "exact")
    threshold = torch.zeros(128)
    threshold[:100] = torch.linspace(0, level or 0, 100)
    low, terms = torch.empty(5, 64, dtype=torch.float16), torch.empty(5, 3)
    centre(case.x, case.b_dec, packed.tau, low, terms, torch.tensor([0, 5], dtype=torch.int32), 0)
    found = torch.empty(5, 4, dtype=torch.int32)
    bias = packed.bias if level is None else packed.bias - product.SURELY * threshold
    product.fused_hits(low, packed.low, terms, bias, packed.bucket_terms, found, None)
    above = case.double().pre() - threshold[:100].double()
    hit = bits_of(found)
    assert not hit[:, 100:].any(), "padding latents are never active"
    assert hit[:, :100][above > 0].all()
    slack = terms[:, 1].max() * packed.terms[0].max() + terms[:, 2].max() * packed.terms[1].max()
    assert not hit[:, :100][above < -2.1 * float(slack)].any()


def screened(low: torch.Tensor, W: torch.Tensor, terms: list[float], bias: torch.Tensor) -> torch.Tensor:
    """The hits of one token, whose terms are given and whose latents' are 0, but for the sizes of their biases."""
    bounds = torch.zeros(3, len(bias) // 32)
    bounds[2] = bias.abs().view(-1, 32).amax(1)
    found = torch.empty(1, len(bias) // 32, dtype=torch.int32)
    product.fused_hits(low[None].half(), W.half(), torch.tensor([terms]), bias, bounds, found, None)
    return bits_of(found)[0]


def test_where_nothing_is_known_of_a_token_every_latent_is_a_hit():
    """Infinity times zero: a token beyond all scales, and a bucket of latents without weights."""
    assert screened(torch.zeros(64), torch.zeros(32, 64), [1.0, float("inf"), 0.0], torch.full((32,), 0.5)).all()


def test_a_latent_just_above_its_threshold_is_a_hit():
    W = torch.zeros(32, 64)
    W[:, 0] = torch.linspace(0.5, 1, 32).half().float()
    threshold = (W[:, 0].double() * (1 - 2.0**-23)).float()
    assert (threshold < W[:, 0]).all()
    low = torch.nn.functional.one_hot(torch.tensor(0), 64).float()
    assert screened(low, W, [1.0, 0.0, 0.0], -product.SURELY * threshold).all()


def test_the_bound_covers_what_a_bias_loses_to_its_threshold():
    """Biases are some 20 and thresholds some 10^-5, so that their difference keeps nothing of a threshold's margin."""
    low = torch.zeros(64)
    low[:2] = torch.tensor([1.0, 2.0**-11])
    g = torch.Generator().manual_seed(0)
    W = torch.zeros(4096, 64)
    W[:, 0] = 16 + 4 * torch.rand(4096, generator=g).half().float()
    W[:, 1] = torch.rand(4096, generator=g).half().float()
    W = W.half().float()
    threshold = 1e-5 * torch.rand(4096, generator=g)
    value = W.double() @ low.double()
    bias = (threshold.double() - value).float()
    above = value + bias.double() > threshold.double()
    lost = (value.float() + (bias - product.SURELY * threshold) <= 0) & above
    assert lost.any(), "without the bound some would be missed"
    assert screened(low, W, [1.0, 0.0, 0.0], bias - product.SURELY * threshold)[above].all()


@few
@given(st.integers(0, 2**31), st.floats(0, 0.5))
def test_both_designs_report_what_is_active_where_products_are_the_answer(seed, level):
    case = make_case(seed, 6, 40, 70)
    packed = pack(case.W_enc, case.b_enc, "fp32")
    threshold = torch.zeros(96)
    threshold[:70] = level
    bounds = cutoffs(packed.bias, threshold, torch.float32)
    low = torch.zeros(6, 64)
    low[:, :40] = case.x - case.b_dec
    for design in ("fused", "library"):
        found, chunk = torch.empty(6, 3, dtype=torch.int32), torch.empty(6, 96)
        if design == "fused":
            product.fused_hits(low, packed.low, torch.ones(6, 3), packed.bias, bounds, found, chunk)
        else:
            library.library_hits(low, packed.low, bounds, found, chunk)
        assert torch.equal(bits_of(found), chunk + packed.bias > threshold)


def test_a_product_that_its_bias_cancels_is_no_hit_in_either_design():
    low, W = torch.zeros(1, 64), torch.zeros(32, 64)
    low[0, 0], W[:, 0] = 1.0, torch.linspace(0.5, 1, 32)
    bias = -W[:, 0]
    bounds, chunk = cutoffs(bias, None, torch.float32), torch.empty(1, 32)
    for above in (0, 1):
        found = torch.full((2, 1, 1), -7, dtype=torch.int32)
        library.library_hits(low, W, bounds, found[0], chunk)
        product.fused_hits(low, W, torch.ones(1, 3), bias, bounds, found[1], chunk)
        assert found.flatten().tolist() == [-above] * 2, "none, and with the next larger weights all"
        W[:, 0] = torch.nextafter(W[:, 0], torch.ones(32) * 2)


@pytest.mark.slow
@examples(20)
@given(st.integers(1, 4), st.sampled_from([1, 3, 40, 130]), st.data())
def test_what_is_listed_and_gathered_is_what_the_words_say(rows, width, data):
    found = torch.tensor(data.draw(st.lists(words, min_size=rows * width, max_size=rows * width))).int()
    found = found.view(rows, width)
    expected = bits_of(found)
    buckets, firsts = torch.empty(2, rows, width, dtype=torch.int32)
    listed, counts = torch.empty(2, rows, dtype=torch.int32)
    hits.list_hits(found, 2**31 - 1, buckets, firsts, listed, counts)
    assert torch.equal(counts.long(), expected.sum(1))
    assert torch.equal(listed.long(), (found != 0).sum(1))
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    entries = int(indptr[-1])
    indices, owners = torch.empty(2, entries, dtype=torch.int32)
    values, chunk, bias = torch.empty(entries), torch.rand(rows, 32 * width), torch.rand(32 * width)
    hits.gather_hits(found, buckets, firsts, listed, indptr, indices, chunk, bias, values, owners)
    row, latent = expected.nonzero().T
    assert torch.equal(indices.long(), latent)
    assert torch.equal(owners.long(), row)
    assert torch.equal(values, chunk[row, latent] + bias[latent])


def test_a_token_with_too_many_is_counted_and_not_listed():
    found = torch.tensor([[-1, 0, 1], [1, 0, 1]], dtype=torch.int32)
    buckets, firsts = torch.empty(2, 2, 3, dtype=torch.int32)
    listed, counts = torch.empty(2, 2, dtype=torch.int32)
    hits.list_hits(found, 32, buckets, firsts, listed, counts)
    assert counts.tolist() == [33, 2]
    assert listed.tolist() == [0, 2]


def test_nothing_goes_past_the_end_of_what_is_written():
    found = torch.tensor([[-1], [-1]], dtype=torch.int32)
    buckets, firsts = torch.zeros(2, 2, 1, dtype=torch.int32)
    listed, indptr = torch.ones(2, dtype=torch.int32), torch.tensor([0, 32, 64])
    guarded = torch.full((40,), -7, dtype=torch.int32)
    hits.gather_hits(found, buckets, firsts, listed, indptr, guarded[:36])
    assert guarded[:36].tolist() == [*range(32), 0, 1, 2, 3]
    assert (guarded[36:] == -7).all()
