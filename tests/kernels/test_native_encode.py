"""The native encode at every level that this machine grants, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import cpu
from patchsae_kernels.cpu.extension import levels, native
from tests.examples import examples
from tests.kernels.cases import Case, assert_same, make_case

pytestmark = pytest.mark.skipif(not cpu.available, reason="the native extension is not installed")
every_level = pytest.mark.parametrize("level", levels(), indirect=True)


@pytest.fixture(scope="module")
def level(request):
    """Runs the test at a level, the one in force before it afterwards."""
    before = native.level()
    native.set_level(request.param)
    yield request.param
    native.set_level(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@st.composite
def cases(draw, min_n=0):
    """Tails of D and S around the widths of registers, groups and panels; dense and nearly empty; any strides; outlier
    channels; rows of very different magnitude."""
    seed = draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    case = make_case(
        seed,
        draw(st.integers(min_n, 70)),
        draw(st.sampled_from([1, 3, 8, 15, 16, 17, 32, 33, 48, 64, 65])),
        draw(st.sampled_from([1, 2, 15, 16, 17, 63, 127, 128, 129, 260, 400])),
        draw(st.sampled_from([-3.0, -0.5, 0.0, 2.0])),
        draw(st.booleans()),
    )
    if draw(st.booleans()):  # W_enc as a slice of something larger
        wide = torch.zeros(case.W_enc.shape[0] * 2, case.W_enc.shape[1] + 3)
        wide[::2, 3:] = case.W_enc
        case = case._replace(W_enc=wide[::2, 3:])
    x = case.x.clone()
    if draw(st.booleans()):
        x[:, 0] *= 300.0
    if draw(st.booleans()):
        x *= 10.0 ** torch.randint(-30, 31, (x.shape[0], 1), generator=g).float()
    if draw(st.booleans()):
        factor = 10.0 ** torch.randint(-5, 4, (1, case.W_enc.shape[1]), generator=g).float()
        case = case._replace(W_enc=case.W_enc * factor)
    return case._replace(x=x)


def rounding(case: Case):
    """A bound on the float32 error of a pre-activation, [N, S]."""
    d = case.double()
    scale = (d.x.abs() + d.b_dec.abs()) @ d.W_enc.abs() + d.b_enc.abs()
    return scale * (case.x.shape[1] + 8) * 2**-23 + 1e-36


def check_active(z, expected, slack, threshold=0.0):
    """The active set is the float64 one but for what lies within rounding of the threshold, and so are the values."""
    dense = z.validate().to_dense().double()
    active = torch.zeros_like(dense, dtype=torch.bool)
    active[z.rows(), z.indices.long()] = True
    assert not (active & (expected < threshold - slack)).any()
    assert not (~active & (expected > threshold + slack)).any()
    assert (torch.where(active, (dense - expected).abs(), 0) <= slack).all()


@every_level
@given(case=cases())
@examples(60)
def test_relu_is_the_float64_relu_up_to_rounding(level, case):
    check_active(case.encode(), case.double().pre(), rounding(case))


@every_level
@given(case=cases(), highest=st.floats(0, 3))
def test_jumprelu_is_the_preactivation_above_its_threshold(level, case, highest):
    threshold = torch.linspace(0, highest, case.W_enc.shape[1])
    z = case.encode(activation="jumprelu", threshold=threshold)
    check_active(z, case.double().pre(), rounding(case) + threshold * 2**-23, threshold.double())


@every_level
@given(case=cases(min_n=1), k=st.sampled_from([1, 2, 5, 32, 100, 512]))
@examples(60)
def test_topk_takes_the_largest_of_the_float32_latents(level, case, k):
    """The same values as ReLU has them, the k largest of each row, ties to the lower latent."""
    k = min(k, case.W_enc.shape[1])
    z, all_active = case.encode(activation="topk", k=k).validate(), case.encode().to_dense()
    order = torch.sort(all_active, dim=1, descending=True, stable=True).indices[:, :k]
    expected = torch.zeros_like(all_active).scatter(1, order, all_active.gather(1, order))
    assert torch.equal(z.to_dense(), expected)


@every_level
@pytest.mark.parametrize("k", [1, 3, 40, 200])
def test_topk_breaks_ties_towards_the_lower_latent(level, k):
    """All latents are one of three rows, and float32 cannot tell them apart: more ties than candidates are kept for."""
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(3, 20, generator=g)
    W = rows[torch.randint(0, 3, (3000,), generator=g)].t()
    x = torch.randn(30, 20, generator=g)
    weights = W, torch.zeros(3000), torch.zeros(20)
    dense = pk.encode(x, *weights).to_dense()
    order = torch.sort(dense, dim=1, descending=True, stable=True).indices[:, :k]
    expected = torch.zeros_like(dense).scatter(1, order, dense.gather(1, order))
    assert torch.equal(pk.encode(x, *weights, activation="topk", k=k).to_dense(), expected)


@every_level
@given(seed=st.integers(0, 2**31), d=st.sampled_from([16, 33, 64]), spread=st.sampled_from([1e-7, 1e-5, 1e-3, 1e-2]))
@examples(30)
def test_values_within_the_bound_of_zero_are_decided_in_float32(level, seed, d, spread):
    """b_enc cancels the product up to a little on either side of zero: far inside what bfloat16 can tell."""
    case = make_case(seed, 1, d, 300)
    g = torch.Generator().manual_seed(seed)
    pre = case._replace(b_enc=torch.zeros(300)).double().pre()[0]
    offsets = spread * torch.randn(300, generator=g, dtype=torch.float64)
    case = case._replace(b_enc=(offsets - pre).float())
    check_active(case.encode(), case.double().pre(), rounding(case))


@every_level
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e18, 1e30])
def test_extreme_magnitudes(level, scale):
    case = make_case(5, 20, 48, 200)
    small = case._replace(x=case.x * scale, b_dec=case.b_dec * scale, b_enc=case.b_enc * min(scale, 1e30))
    check_active(small.encode(), small.double().pre(), rounding(small))
    heavy = case._replace(W_enc=case.W_enc * scale, b_enc=case.b_enc * scale)
    check_active(heavy.encode(), heavy.double().pre(), rounding(heavy))


@every_level
@pytest.mark.parametrize("options", [{}, {"activation": "topk", "k": 7}, {"activation": "batchtopk", "k": 3}])
@pytest.mark.parametrize("precision", ["exact", "fp32"])
def test_a_token_whose_sums_leave_float32_is_refused_by_its_row(level, options, precision):
    """Also where a sum leaves it both ways and is no number; just inside every way of computing agrees."""
    case = make_case(6, 40, 48, 300, bias=0.0)
    near = case._replace(x=case.x * 1e19, W_enc=case.W_enc * 1e18)
    whole = near.encode(precision=precision)
    for n in (0, 7, 39):
        alone = near._replace(x=near.x[n : n + 1]).encode(precision=precision)
        assert_same(alone, whole.select_rows(torch.tensor([n])))
    for row in (3, 38):
        x = near.x.clone()
        x[row] = torch.where(torch.arange(48) % 2 == 0, 3e38, -3e38)
        with pytest.raises(ValueError, match=rf"\(x - b_dec\) W_enc passes the range of torch.float32 in row {row}"):
            near._replace(x=x).encode(precision=precision, **options)


@every_level
@pytest.mark.parametrize("precision", ["exact", "fp32"])
def test_a_sum_that_passes_minus_infinity_is_refused_or_right(level, precision):
    """On its way to a positive number; latent 0 is then no latent that is missing."""
    x = torch.zeros(1, 128)
    x[0, 0:64:16], x[0, 64:128:16], x[0, 1] = -2e38, 2e38, 2e38
    try:
        z = pk.encode(x, torch.ones(128, 1), torch.zeros(1), torch.zeros(128), precision=precision)
    except ValueError as error:
        assert "in row 0" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(z.values, torch.tensor([2e38]))


@every_level
def test_a_token_that_leaves_float32_when_it_is_centred_is_named(level):
    case = make_case(6, 40, 48, 300)
    x = case.x.clone()
    x[[5, 9]] = 3e38
    with pytest.raises(ValueError, match=r"x - b_dec has a NaN or an infinity in row 5 \(2 such rows of 40\)"):
        case._replace(x=x, b_dec=torch.full((48,), -3e38)).encode()


@every_level
@pytest.mark.parametrize("options", [{}, {"activation": "topk", "k": 7}], ids=["relu", "topk"])
@pytest.mark.parametrize("bias", [-1.5, 0.0, 3.0])
def test_batch_cuts_and_threads_change_no_bit(level, threads, options, bias):
    """bias 0 and 3: half of the latents, nearly all of them: screening gives way to float32 products."""
    case = make_case(7, 150, 48, 700, bias=bias)
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    threads(1)
    whole = pk.encode(case.x, w, **options)
    for count in (2, 3, 4):
        threads(count)
        assert_same(pk.encode(case.x, w, **options), whole)
    for cut in (1, 31, 77):
        parts = [pk.encode(part, w, **options) for part in case.x.split(cut)]
        assert_same(pk.SparseLatents.cat(parts), whole)


@every_level
def test_more_tokens_than_are_encoded_together(level):
    case = make_case(8, 2100, 16, 130)
    whole = case.encode()
    assert_same(pk.SparseLatents.cat([case._replace(x=part).encode() for part in case.x.split(700)]), whole)
    check_active(whole, case.double().pre(), rounding(case))


@every_level
@pytest.mark.parametrize("options", [{}, {"activation": "topk", "k": 4}], ids=["relu", "topk"])
def test_bf16_is_the_product_of_rounded_operands(level, options):
    case = make_case(9, 33, 40, 150)
    rounded = case._replace(x=(case.x - case.b_dec).bfloat16().float(), b_dec=torch.zeros(40))
    rounded = rounded._replace(W_enc=case.W_enc.bfloat16().float())
    z, expected = case.encode(precision="bf16", **options), rounded.double().encode(**options)
    assert torch.equal(z.indices, expected.indices)
    torch.testing.assert_close(z.values.double(), expected.values, rtol=1e-5, atol=1e-5)


@every_level
def test_fp32_has_the_bits_of_exact(level):
    case = make_case(10, 33, 40, 300)
    assert_same(case.encode(precision="fp32"), case.encode())


@every_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_widened(level, dtype):
    case = make_case(0, 5, 16, 30)
    low = case._replace(x=case.x.to(dtype))
    assert_same(low.encode(), case._replace(x=low.x.float()).encode())


@every_level
def test_batchtopk_selects_among_the_latents_of_relu(level):
    case = make_case(11, 20, 32, 200)
    z, dense = case.encode(activation="batchtopk", k=3).validate(), case.encode().to_dense()
    kept = torch.sort(dense.flatten(), descending=True, stable=True).indices[:60]
    expected = torch.zeros(dense.numel()).scatter(0, kept, dense.flatten()[kept]).view_as(dense)
    assert torch.equal(z.to_dense(), expected)


@every_level
def test_the_row_of_a_bad_value_is_named(level):
    case = make_case(12, 50, 20, 40)
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = case.x.clone()
        x[31, 19] = bad
        with pytest.raises(ValueError, match="row 31"):
            case._replace(x=x).encode()


def test_an_absurd_size_is_an_exception():
    one = torch.zeros(16)
    address = one.data_ptr()
    arguments = {"x": address, "W_rows": address, "bias": address, "b_dec": address}
    arguments |= {"low": 0, "terms": 0, "threshold": 0, "k": 0, "precision": "fp32", "threads": 1}
    with pytest.raises(MemoryError):
        native.encode(rows=1, width=2**61, latents=0, **arguments)
    for sizes in ({"rows": -1, "width": 16, "latents": 1}, {"rows": 1, "width": 16, "latents": 2**40}):
        with pytest.raises(ValueError, match="size is negative"):
            native.encode(**sizes, **arguments)
    with pytest.raises(ValueError, match="k is -1; expected at least 0"):
        native.encode(rows=1, width=16, latents=1, **(arguments | {"k": -1}))
