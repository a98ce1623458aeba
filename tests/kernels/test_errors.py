"""Bad input: the error names the argument, what came and what was expected. Empty input is an empty result."""

import pytest
import torch

import patchsae_kernels as pk
from tests.kernels.cases import make_case, random_latents

CASE = make_case(0, 4, 6, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": torch.zeros(4, 5)}, r"x has shape \(4, 5\); expected \[N, D\] with D = 6"),
        ({"x": torch.zeros(6)}, "x has shape"),
        ({"x": torch.zeros(4, 6, dtype=torch.int64)}, "x has dtype torch.int64"),
        ({"W_enc": torch.zeros(6, 10, dtype=torch.float16)}, "W_enc has dtype torch.float16"),
        ({"b_enc": torch.zeros(6)}, r"b_enc has shape \(6,\); expected \[S\] = \(10,\)"),
        ({"b_dec": torch.zeros(10)}, "b_dec has shape"),
        ({"b_dec": torch.zeros(6, dtype=torch.float64)}, "b_dec has dtype"),
        ({"W_enc": torch.full((6, 10), torch.inf)}, "W_enc holds a NaN"),
        ({"x": torch.zeros(4, 6, device="meta")}, "x is a tensor without values"),
        ({"activation": "gelu"}, "activation is 'gelu'; expected one of"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"activation": "topk"}, "k is None with activation='topk'"),
        ({"k": 3}, "k is 3 with activation='relu'"),
        ({"activation": "topk", "k": 11}, "k is 11; expected 1 <= k <= S = 10"),
        ({"activation": "topk", "k": 0}, "k is 0"),
        ({"activation": "jumprelu"}, "threshold is missing"),
        ({"threshold": torch.zeros(10)}, "threshold is given with activation='relu'"),
        ({"activation": "jumprelu", "threshold": torch.zeros(3)}, "threshold has shape"),
        ({"activation": "jumprelu", "threshold": torch.full((10,), -0.1)}, "expected threshold >= 0"),
        ({"activation": "jumprelu", "threshold": torch.full((10,), torch.nan)}, "expected threshold >= 0"),
        ({"budget_mb": 0}, "budget_mb is 0"),
    ],
)
def test_encode(options, message):
    tensors = {"x": CASE.x, "W_enc": CASE.W_enc, "b_enc": CASE.b_enc, "b_dec": CASE.b_dec}
    args = [options.pop(name, tensor) for name, tensor in tensors.items()]
    with pytest.raises((ValueError, TypeError), match=message):
        pk.encode(*args, **options)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_row_is_named(value):
    x = torch.zeros(5, 6)
    x[3, 2] = value
    with pytest.raises(ValueError, match=r"x has a NaN or an infinity in row 3 \(1 such rows of 5\)"):
        pk.encode(x, CASE.W_enc, CASE.b_enc, CASE.b_dec)


def test_prepared_weights_come_alone():
    w = pk.prepare(CASE.W_enc, CASE.b_enc, CASE.b_dec)
    with pytest.raises(TypeError, match="part of the prepared weights"):
        pk.encode(CASE.x, w, CASE.b_enc)
    with pytest.raises(TypeError, match="needs b_enc and b_dec"):
        pk.encode(CASE.x, CASE.W_enc)


def test_decoder_shapes():
    z = random_latents(0, 4, 10)
    with pytest.raises(ValueError, match=r"W_dec has shape \(6, 10\); expected \[S, D\]"):
        pk.decode(z, CASE.W_dec.t(), CASE.b_dec)
    with pytest.raises(ValueError, match="b_dec has shape"):
        pk.decode(z, CASE.W_dec, CASE.b_enc)
    with pytest.raises(TypeError, match="z is a Tensor; expected SparseLatents"):
        pk.decode(z.to_dense(), CASE.W_dec, CASE.b_dec)


def test_keep_rank_and_class_ids():
    z, args = random_latents(0, 4, 10), (CASE.W_dec, CASE.b_dec)
    keep, rank = torch.ones(10, dtype=torch.bool), torch.arange(10).int()
    with pytest.raises(TypeError, match="keep has dtype"):
        pk.decode_masked(z, rank, *args)
    with pytest.raises(ValueError, match="keep has shape"):
        pk.decode_masked(z, keep.expand(2, 10), *args)
    with pytest.raises(TypeError, match="rank has dtype torch.int64"):
        pk.decode_sweep(z, rank.long(), [1], *args)
    with pytest.raises(ValueError, match="class_ids has shape"):
        pk.decode_sweep(z, rank.expand(2, 10), [1], *args, class_ids=torch.zeros(3, dtype=torch.int64))
    for op, table in ((pk.decode_masked, (keep.expand(2, 10),)), (pk.decode_sweep, (rank.expand(2, 10), [1]))):
        with pytest.raises(ValueError, match=r"class_ids reach 0\.\.2; expected 0\.\.1"):
            op(z, *table, *args, class_ids=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="ks is -1; expected at least 0"):
        pk.decode_sweep(z, rank, [-1], *args)


def test_no_tokens_is_an_empty_result():
    x = torch.zeros(0, 6)
    for options in ({}, {"activation": "topk", "k": 2}, {"activation": "jumprelu", "threshold": torch.zeros(10)}):
        z = pk.encode(x, CASE.W_enc, CASE.b_enc, CASE.b_dec, **options).validate()
        assert z.shape == (0, 10)
        assert pk.decode(z, CASE.W_dec, CASE.b_dec).shape == (0, 6)
        on, _ = pk.decode_sweep(z, torch.arange(10).int(), [1, 2], CASE.W_dec, CASE.b_dec)
        assert on.shape == (2, 0, 6)
        assert pk.latent_stats(z, 3).images == 0
        assert pk.pool_tokens(z, 3).shape == (0, 10)


def test_sae_step_names_its_arguments():
    params = {"W_enc": CASE.W_enc, "b_enc": CASE.b_enc, "W_dec": CASE.W_dec, "b_dec": CASE.b_dec}
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\)"):
        pk.sae_step(torch.zeros(4, 5), params, l1=0.1)
    with pytest.raises(ValueError, match=r"W_dec has shape \(6, 10\); expected \[S, D\] = \(10, 6\): transpose it"):
        pk.sae_step(CASE.x, params | {"W_dec": CASE.W_dec.t()}, l1=0.1)
    with pytest.raises(TypeError, match="dead has dtype"):
        pk.sae_step(CASE.x, params, l1=0.1, dead=torch.zeros(10))
    with pytest.raises(KeyError, match="W_dec"):
        pk.sae_step(CASE.x, {k: v for k, v in params.items() if k != "W_dec"}, l1=0.1)
