"""The encode kernels in the interpreter, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels.calls import EncodeCall
from patchsae_kernels.reference import checked
from patchsae_kernels.triton import encode as fast
from patchsae_kernels.triton import hits, pick, product, topk, tuning
from tests.examples import examples
from tests.kernels.cases import Case, assert_same, cases, make_case

few = examples(6)
ks = st.sampled_from([1, 2, 5, 30])


def oracle(case: Case, activation: str = "relu", k: int = 0, threshold: torch.Tensor | None = None) -> pk.SparseLatents:
    d = case.double()
    csr = checked.encode(EncodeCall(d.x, d.W_enc, d.b_enc, d.b_dec, [], threshold, activation, k, "fp32", 2**28))
    return pk.SparseLatents(*csr, (d.x.shape[0], d.W_enc.shape[1]))


def assert_agrees(z: pk.SparseLatents, truth: pk.SparseLatents, pre: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Same active set, but for latents within rounding of the edge between active and not; same values."""
    ours, theirs = z.to_dense().double(), truth.to_dense()
    for row in range(z.shape[0]):
        differ = (ours[row] != 0) != (theirs[row] != 0)
        if differ.any():
            edge = pre[row][differ]
            assert (edge.max() - edge.min()) < tolerance or edge.abs().max() < tolerance, f"row {row}"
    both = (ours != 0) & (theirs != 0)
    torch.testing.assert_close(ours[both], theirs[both], rtol=tolerance, atol=tolerance)
    for row in range(z.shape[0]):
        assert (z.row(row)[0].diff() > 0).all(), "indices ascend"


@few
@given(cases(), st.sampled_from(["exact", "fp32"]))
def test_relu(case, precision):
    assert_agrees(case.encode(precision=precision), oracle(case), case.double().pre())


@few
@given(cases(), ks, st.sampled_from(["exact", "fp32"]))
def test_topk(case, k, precision):
    k = min(k, case.W_enc.shape[1])
    z = case.encode(activation="topk", k=k, precision=precision)
    assert (z.counts() <= k).all()
    assert_agrees(z, oracle(case, "topk", k), case.double().pre())


@few
@given(cases(), st.floats(0, 0.5), st.sampled_from(["exact", "fp32"]))
def test_jumprelu(case, level, precision):
    threshold = torch.linspace(0, level, case.W_enc.shape[1])
    z = case.encode(activation="jumprelu", threshold=threshold, precision=precision)
    assert_agrees(z, oracle(case, "jumprelu", 0, threshold), case.double().pre() - threshold.double())


@pytest.mark.slow
@few
@given(cases(min_n=1), ks)
def test_batchtopk(case, k):
    k = min(k, case.W_enc.shape[1])
    z = case.encode(activation="batchtopk", k=k)
    truth = oracle(case, "batchtopk", k)
    assert z.nnz == truth.nnz
    torch.testing.assert_close(z.values.sort().values.double(), truth.values.sort().values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("strided", [False, True])
def test_input_dtypes_and_strides(dtype, strided):
    case = make_case(3, 6, 24, 50)
    x = case.x.to(dtype)
    x = torch.stack([x, x], 1)[:, 0] if strided else x
    z = pk.encode(x, case.W_enc, case.b_enc, case.b_dec)
    case = case._replace(x=x.float())
    assert_agrees(z, oracle(case), case.double().pre())


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_more_buckets_than_one_step_of_the_search(monkeypatch, activation):
    case, k = make_case(4, 3, 8, 300), 7 if activation == "topk" else 0
    monkeypatch.setattr(topk, "SEARCHED", 8)
    monkeypatch.setattr(hits, "LISTED", 8)
    assert_agrees(case.encode(activation=activation, k=k or None), oracle(case, activation, k), case.double().pre())


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_bits_do_not_depend_on_chunks_or_batches(activation):
    case = make_case(5, 6, 24, 70)
    options = {"activation": activation, "k": 9 if activation == "topk" else None}
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    whole = pk.encode(case.x, w, **options)
    assert_same(whole, pk.encode(case.x, w, budget_mb=0.005, **options))
    assert_same(whole, pk.SparseLatents.cat([pk.encode(part, w, **options) for part in case.x.split([1, 5])]))
    assert_same(whole, pk.encode(case.x, w, **options))


def test_the_designs_of_the_product_agree():
    case = make_case(6, 9, 40, 70)
    with tuning.override(product="fused"):
        fused = case.encode(precision="fp32")
    with tuning.override(product="library"):
        library = case.encode(precision="fp32")
    assert torch.equal(fused.indices, library.indices)
    torch.testing.assert_close(fused.values, library.values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bucket_maxima_are_those_of_the_products_written(dtype):
    """To the bit where products are the answer; before their rounding where they only screen (float16)."""
    g = torch.Generator().manual_seed(0)
    low, W = torch.randn(21, 64, generator=g).to(dtype), torch.randn(96, 64, generator=g).to(dtype)
    scales, bias = torch.rand(21, generator=g) + 0.5, torch.randn(96, generator=g)
    chunk, maxima = torch.empty(21, 96, dtype=dtype), torch.empty(21, 3)
    product.fused_maxima(low, W, scales[:, None].repeat(1, 3), bias, chunk, maxima)
    torch.testing.assert_close(chunk, (low.float() @ W.float().t()).to(dtype), rtol=2e-3, atol=2e-3)
    written = (chunk.float() * scales[:, None] + bias).view(21, 3, 32).amax(2)
    if dtype == torch.float32:
        assert torch.equal(maxima, written)
    else:
        torch.testing.assert_close(maxima, written, rtol=0.00049, atol=0.02)


def test_tokens_over_their_slots_are_answered_and_the_others_keep_their_bits(monkeypatch):
    """Half of all latents active on some tokens only: those pass their slots, are repaired, and nothing is lost."""
    case = make_case(7, 6, 24, 100, bias=-2.5)
    dense = case.x.clone()
    dense[2] *= 6
    dense[5] *= 9
    case = case._replace(x=dense)
    before = case.encode()
    monkeypatch.setattr(fast, "SLOTS", 8)
    monkeypatch.setattr(fast, "TOPK_SLOTS", 8)
    candidates = fast.screening_report(case.x, case.W_enc, case.b_enc, case.b_dec)
    over = candidates > 8
    assert over.any()
    assert not over.all()
    after = case.encode()
    assert_agrees(after, oracle(case), case.double().pre())
    for row in (~over).nonzero().flatten().tolist():
        assert torch.equal(before.row(row)[1], after.row(row)[1])
    topk = case.encode(activation="topk", k=5)
    assert_agrees(topk, oracle(case, "topk", 5), case.double().pre())


def test_all_latents_tied(monkeypatch):
    """Every latent has the same pre-activation on a token: top-k takes the lowest ones, whatever the capacities."""
    monkeypatch.setattr(fast, "TOPK_SLOTS", 16)
    case = make_case(8, 2, 16, 100)
    case = case._replace(x=case.b_dec.expand(2, 16).clone(), b_enc=torch.full((100,), 0.25))
    z = case.encode(activation="topk", k=3)
    assert z.indices.tolist() == [0, 1, 2] * 2
    assert z.values.tolist() == [0.25] * 6


@pytest.mark.parametrize("precision", ["exact", "fp32"])
def test_more_entries_than_expected(monkeypatch, precision):
    monkeypatch.setattr(fast, "EXPECTED", 3)
    case = make_case(9, 7, 24, 60, bias=0.0)
    assert_agrees(case.encode(precision=precision), oracle(case), case.double().pre())


@pytest.mark.parametrize("precision", ["exact", "fp32"])
def test_a_latent_at_its_threshold_is_not_active(precision):
    W = torch.zeros(2, 40)
    W[0] = torch.linspace(0.5, 1, 40).half().float()
    threshold = W[0].clone()
    threshold[::2] = torch.nextafter(threshold[::2], torch.zeros(20))
    x, b_enc, b_dec = torch.tensor([[1.0, 0.0]]), torch.zeros(40), torch.zeros(2)
    z = pk.encode(x, W, b_enc, b_dec, activation="jumprelu", threshold=threshold, precision=precision)
    assert z.indices.tolist() == list(range(0, 40, 2))


def test_ties_beyond_the_quota_are_not_written_anywhere():
    """Not even where the next token's entries will be: programs come in any order."""
    values, counts = torch.tensor([[3.0, 1, 1, 1, 1, 2, 1, 1]]), torch.tensor([8], dtype=torch.int32)
    indices = torch.arange(8, dtype=torch.int32)
    candidates = pick.Candidates(indices, values, counts, None, None, 8, None, None)
    floors, quotas, kept = torch.tensor([1.0]), torch.tensor([2], dtype=torch.int32), torch.full((10,), -7.0)
    latents = torch.full((10,), -7, dtype=torch.int32)
    pick.write(candidates, floors, quotas, torch.tensor([0, 4]), kept, latents)
    assert kept.tolist() == [3, 1, 1, 2] + [-7] * 6
    assert latents.tolist() == [0, 1, 2, 5] + [-7] * 6


def test_errors_name_what_is_wrong():
    case = make_case(10, 6, 8, 20)
    bad = case.x.clone()
    bad[4, 1] = float("inf")
    bad[5, 1] = float("nan")
    with pytest.raises(ValueError, match=r"x has a NaN or an infinity in row 4 \(2 such rows of 6\)"):
        pk.encode(bad, case.W_enc, case.b_enc, case.b_dec)
    with pytest.raises(ValueError, match="threshold holds a negative"):
        case.encode(activation="jumprelu", threshold=torch.full((20,), -0.1))
    huge = torch.full_like(case.x, 3e38)
    with pytest.raises(ValueError, match="range of float32 in row 0"):
        pk.encode(huge, case.W_enc, case.b_enc, -huge[0])


def test_a_token_whose_sums_leave_float32_is_refused_by_its_row():
    case = make_case(10, 6, 8, 20)
    x = case.x.clone()
    x[3] = 3e38 * case.W_enc[:, 2].sign()
    W_enc = case.W_enc.clone(memory_format=torch.preserve_format)
    W_enc[:, 2] = W_enc[:, 2].sign()
    w = pk.prepare(W_enc, case.b_enc, case.b_dec)
    for options in ({}, {"precision": "fp32"}, {"activation": "topk", "k": 3}, {"activation": "batchtopk", "k": 2}):
        with pytest.raises(ValueError, match=r"\(x - b_dec\) W_enc passes the range of torch.float32 in row 3"):
            pk.encode(x, w, **options)
    with pytest.raises(ValueError, match="range of torch.float32 in row 3"):
        pk.check_bounded(*pk.encode_bounded(x, w, capacity=120))


@few
@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e18]), st.sampled_from([1e-5, 1.0, 1e6]))
def test_exact_at_any_magnitude(seed, size, weight):
    """Scaling tokens and weights by powers of ten leaves the active set where float64 has it."""
    case = make_case(seed, 3, 24, 60)
    case = case._replace(
        x=case.x * size, b_dec=case.b_dec * size, W_enc=case.W_enc * weight, b_enc=case.b_enc * size * weight
    )
    unit = size * weight
    z, truth = case.encode(), oracle(case)
    scaled = pk.SparseLatents(z.values.double() / unit, z.indices, z.indptr, z.shape)
    assert_agrees(scaled, truth.with_values(truth.values / unit), case.double().pre() / unit)


def test_values_inside_the_bound_are_scored_again():
    """Pre-activations a few float32 roundings above zero and below: only those above may come out, and all of them."""
    case = make_case(11, 6, 32, 120)
    pre = case.double().pre()
    token = 2
    nudge = torch.linspace(-2e-5, 2e-5, 120, dtype=torch.float64)
    case = case._replace(b_enc=(case.b_enc.double() - pre[token] + nudge).float())
    found, _ = case.encode().row(token)
    truth = case.double().pre()[token]
    certain = (truth.abs() > 3e-6).nonzero().flatten()
    active = torch.zeros(120, dtype=torch.bool)
    active[found.long()] = True
    assert torch.equal(active[certain], truth[certain] > 0)


def beside(values):
    """float16 numbers in equal pairs, and what to add to bring each half of a pair 0.49 steps above and below them."""
    low = torch.tensor(values).half().float().repeat_interleave(2)
    step = 2.0 ** (low.log2().floor() - 10)
    return low, 0.49 * step * torch.tensor([1.0, -1.0]).repeat(len(values))


def one_latent(x, w, bias):
    return pk.encode(x[None], w[:, None].contiguous(), torch.tensor([bias]), torch.zeros(len(w))).nnz


def test_the_bound_covers_what_a_token_loses():
    """In float16 the product is 0 and with its bias the latent is off; only R u knows that it is on."""
    low, lost = beside([1.3, 1.1, 1.7, 1.9, 1.6, 1.2])
    weights = 0.5 * lost.sign()
    assert one_latent(low + lost, weights, -0.98 * float(lost.double() @ weights.double())) == 1


def test_the_bound_covers_what_a_weight_loses():
    low, lost = beside([0.63, 0.55, 0.71, 0.93, 0.81, 0.77])
    token = 1.5 * lost.sign()
    assert one_latent(token, low + lost, -0.98 * float(lost.double() @ token.double())) == 1


def test_the_bound_covers_the_rounding_of_the_product():
    token, weights = torch.tensor([1.0, 2.0**-6]), torch.tensor([0.5, 0.75 * 2.0**-6])
    true = float(token.double() @ weights.double())
    assert one_latent(token, weights, -(0.5 + 0.5 * (true - 0.5))) == 1


def test_the_floor_of_top_k_is_a_lower_bound():
    """Latent 0 is screened highest but is truly below latent 40, whose upper limit is below what 0 was screened as."""
    low, lost = beside([1.3, 1.1, 1.7, 1.9, 1.6, 1.2])
    weights = 0.5 * lost.sign()
    unit = float(lost.double() @ weights.double())
    W, bias = torch.zeros(12, 64), torch.full((64,), -5.0)
    W[:, 0], W[:, 40] = -weights, weights
    bias[0], bias[40] = 2.0 * unit, 0.5 * unit
    z = pk.encode((low + lost)[None], W, bias, torch.zeros(12), activation="topk", k=1)
    assert z.indices.tolist() == [40]


def test_rounding_after_the_maxima_loses_no_bucket():
    """In bfloat16 latent 40 rounds up to above what latent 0, the largest accumulator, rounds down to."""
    accumulators = torch.zeros(1, 64)
    accumulators[0, 0], accumulators[0, 40] = 1 + 0.49 * 2.0**-7, 1 - 2.0**-8 + 0.51 * 2.0**-8
    accumulators[0, 1] = 0.5
    chunk = accumulators.bfloat16()
    bias = torch.zeros(64)
    bias[0] = -(2.0**-20)
    assert float(chunk[0, 40]) + 0 > float(chunk[0, 0]) + float(bias[0])
    maxima = (accumulators + bias).view(1, 2, 32).amax(2)
    terms, bucket_terms = torch.tensor([[1.0, 0, 0]]), torch.zeros(3, 2)
    bucket_terms[2, 0] = 2.0**-20
    buckets, found, floors = torch.empty(1, 2, dtype=torch.int32), torch.empty(1, dtype=torch.int32), torch.empty(1)
    topk.find_buckets(maxima, terms, bucket_terms, 1, torch.bfloat16, buckets, found, floors)
    values, indices = torch.empty(1, 16), torch.empty(1, 16, dtype=torch.int32)
    counts = torch.empty(1, dtype=torch.int32)
    topk.gather(chunk, bias, terms, torch.zeros(2, 64), buckets, found, floors, values, indices, counts)
    assert indices[0, : counts[0]].tolist() == [0, 40]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e25, 1e30])
@pytest.mark.parametrize("what", ["tokens", "weights", "one weight"])
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_magnitudes_beyond_float16_scaling_lose_nothing(what, size, activation):
    case = make_case(14, 4, 24, 100)
    x, W = case.x - case.b_dec, case.W_enc.clone()
    W[:, slice(7, 8) if what == "one weight" else slice(None)] *= size if what != "tokens" else 1
    case = case._replace(
        x=x * (size if what == "tokens" else 1), W_enc=W, b_dec=torch.zeros(24), b_enc=torch.zeros(100)
    )
    k = 5 if activation == "topk" else None
    exact, plain = (case.encode(activation=activation, k=k, precision=p) for p in ("exact", "fp32"))
    assert torch.equal(exact.indices, plain.indices)
    torch.testing.assert_close(exact.values, plain.values, rtol=1e-4, atol=0)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_the_largest_numbers_there_are(activation):
    case = make_case(17, 4, 24, 100)
    x = case.x / case.x.abs().max() * 3.3e38
    case = case._replace(x=x, W_enc=case.W_enc * 1e-30, b_dec=torch.zeros(24), b_enc=torch.zeros(100))
    k = 5 if activation == "topk" else None
    exact, plain = (case.encode(activation=activation, k=k, precision=p) for p in ("exact", "fp32"))
    assert torch.equal(exact.indices, plain.indices)
    torch.testing.assert_close(exact.values, plain.values, rtol=1e-4, atol=0)


def test_a_token_over_its_slots_leaves_its_neighbours_alone():
    """A program writes to its own slots: here it has more candidates than slots, and the next token has none."""
    latents, slots = 64, 8
    chunk, floors = torch.ones(2, latents), torch.zeros(2)
    bias, terms = torch.zeros(latents), torch.tensor([[1.0, 0, 0]] * 2)
    buckets, found = torch.tensor([[0, 1], [0, 0]], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    values, indices = torch.full((2, slots), -7.0), torch.full((2, slots), -7, dtype=torch.int32)
    counts = torch.empty(2, dtype=torch.int32)
    topk.gather(chunk, bias, terms, torch.zeros(2, latents), buckets, found, floors, values, indices, counts)
    assert counts.tolist() == [latents, 0]
    assert indices[0].tolist() == list(range(slots))
    assert (values[1] == -7).all()
    assert (indices[1] == -7).all()


def test_a_bias_with_strides():
    case = make_case(15, 5, 24, 60)
    table = torch.stack([torch.full((24,), 9.0), case.b_dec], 1)
    assert_same(case._replace(b_dec=table[:, 1]).encode(), case.encode())


def test_outlier_channels_and_tokens():
    case = make_case(12, 8, 64, 300)
    x = case.x.clone()
    x[:, 3] *= 300
    x[6] *= 50
    case = case._replace(x=x)
    assert_agrees(case.encode(), oracle(case), case.double().pre(), tolerance=2e-3)
    pattern = oracle(case).to_dense() > 1e-2
    assert (case.encode().to_dense()[pattern] > 0).all()


@pytest.mark.parametrize("capacity", [0, 5, 1000])
def test_bounded(capacity):
    case = make_case(13, 7, 16, 40)
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    z, status = pk.encode_bounded(case.x, w, capacity=capacity)
    whole = pk.encode(case.x, w)
    assert z.values.shape == (capacity,)
    assert torch.equal(z.indptr, whole.indptr.clamp(max=capacity)), "no reader leaves the arrays"
    kept = min(capacity, whole.nnz)
    assert torch.equal(z.values[:kept], whole.values[:kept])
    if capacity < whole.nnz:
        y = pk.decode(z, case.W_enc.t().contiguous(), case.b_dec)  # as inside a captured graph, before the check
        assert torch.isfinite(y).all()
        with pytest.raises(OverflowError, match=f"capacity is {capacity}; {whole.nnz} entries"):
            pk.check_bounded(z, status)
    else:
        assert_same(pk.check_bounded(z, status), whole)


@pytest.mark.slow
@few
@given(cases(), st.sampled_from(["relu", "topk", "batchtopk"]))
def test_reconstruct_is_encode_then_decode(case, activation):
    k = None if activation == "relu" else min(4, case.W_enc.shape[1])
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    z = pk.encode(case.x, w, activation=activation, k=k)
    r = pk.reconstruct(case.x, w, case.W_dec, activation=activation, k=k)
    assert torch.equal(r.y, pk.decode(z, case.W_dec, case.b_dec))
    torch.testing.assert_close(r.squared_error, (r.y - case.x).square().sum(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(r.l1.double(), z.to_dense().double().sum(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(r.l0.long(), z.counts())


def test_reconstruct_survives_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(fast, "EXPECTED", 2)
    case = make_case(14, 7, 16, 40, bias=0.0)
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    assert torch.equal(pk.reconstruct(case.x, w, case.W_dec).y, pk.decode(case.encode(), case.W_dec, case.b_dec))


def test_gradients():
    """gradcheck through the kernels: piecewise linear, so a wide difference quotient is exact up to rounding.

    Along random directions, which meet every entry of the Jacobian; one by one they take ten times as many launches.
    """
    case = make_case(15, 2, 4, 5, bias=0.3)
    pre = case.double().pre()
    assert pre.abs().min() > 0.02, "no latent changes side within the difference quotient"
    tensors = [t.clone().requires_grad_() for t in (case.x, case.W_enc, case.b_enc, case.b_dec, case.W_dec)]

    def reconstruction(x, W_enc, b_enc, b_dec, W_dec):
        return pk.decode(pk.encode(x, W_enc, b_enc, b_dec, precision="fp32"), W_dec, b_dec)

    assert torch.autograd.gradcheck(
        reconstruction,
        tensors,
        eps=1e-3,
        atol=2e-3,
        rtol=2e-3,
        nondet_tol=0.0,
        check_undefined_grad=False,
        fast_mode=True,
    )


def test_refresh_packs_again():
    case = make_case(16, 5, 8, 20)
    W = case.W_enc.clone(memory_format=torch.preserve_format)
    w = pk.prepare(W, case.b_enc, case.b_dec)
    pk.encode(case.x, w)
    W.mul_(-1)
    assert_same(pk.encode(case.x, w), pk.encode(case.x, W, case.b_enc, case.b_dec))
