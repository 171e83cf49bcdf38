"""Norms of codes against Python's integers and the norms of real numbers."""

import math

import numpy as np
import pytest
from check_op import check_op, operand_types

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.int_norm import IntLayerNorm, IntRMSNorm, ShiftLayerNorm
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(17)
EPS = 1e-5
KINDS = [IntLayerNorm, IntRMSNorm, ShiftLayerNorm]


def unit(kind, channels):
    return math.sqrt(channels) / 2.0**30 if kind is ShiftLayerNorm else 2.0**-20


def fine(kind, channels, scale):
    """The shift with which gamma has a resolution of about 2**-22."""
    return 22 + math.floor(math.log2(scale / unit(kind, channels)))


def normalised(kind, row, scale, eps):
    """z of one row of Python's integers, by the definitions of I-ViT and of IntLayerNorm."""
    count, total = len(row), sum(row)
    if kind is ShiftLayerNorm:
        distances = [v - math.floor((2 * total + count) / (2 * count)) for v in row]
        root = max(math.isqrt(sum(d * d for d in distances)), 1)
        return [d * ((2**31 - 1) // root) >> 1 for d in distances]
    total = 0 if kind is IntRMSNorm else total
    epsilon = max(1, round(count * count * eps / scale**2))
    root = max(math.isqrt(count * sum(v * v for v in row) - total * total + epsilon), 1)
    return [((count * v - total) * (2**40 // root) + 2**19) >> 20 for v in row]


def model(kind, x, gamma, beta, shift, scale, zero_in, op):
    """The op in Python's integers. `shift` is that from z * gamma to the result."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        z = normalised(kind, [v - zero_in for v in row], scale, op.eps)
        y = [
            (v * int(g) + int(b) + 2 ** (shift - 1) >> shift) + op.zero for v, g, b in zip(z, gamma, beta, strict=True)
        ]
        rows.append([min(max(v, op.to.min), op.to.max) for v in y])
    return np.array(rows).reshape(x.shape)


def parameters(kind, channels, scale, shift, gamma=None, beta=None):
    """Codes of gamma and beta and their quantization, for a result of `scale` that is 2**shift times as coarse."""
    gamma = RNG.normal(1, 0.7, channels) if gamma is None else np.asarray(gamma, float)
    beta = RNG.normal(0, 0.5, channels) if beta is None else np.asarray(beta, float)
    step = scale / 2.0**shift / unit(kind, channels)
    codes = np.floor(gamma / step + 0.5).astype(np.int32), np.floor(beta / (step * unit(kind, channels)) + 0.5)
    return codes[0], codes[1].astype(np.int64), Quant((step,)), Quant((step * unit(kind, channels),))


def run(kind, x, scale, op, shift, zero_in=0, gamma=None, beta=None):
    """The op, checked against the model in integers."""
    channels = x.shape[-1]
    g, b, quant_g, quant_b = parameters(kind, channels, op.scale, shift, gamma, beta)
    arrays = (x, g) if kind is IntRMSNorm else (x, g, b)
    quants = [Quant((scale,), zero_in), quant_g, quant_b][: len(arrays)]
    (y,) = check_op(op, *arrays, quants=quants, fixed=[channels])
    zeros = np.zeros(channels, np.int64)
    np.testing.assert_array_equal(y, model(kind, x, g, zeros if kind is IntRMSNorm else b, shift, scale, zero_in, op))
    return y


def true_norm(kind, x, gamma, beta, eps):
    centre = 0 if kind is IntRMSNorm else x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.mean((x - centre) ** 2, -1, keepdims=True) + eps)
    return (x - centre) / deviation * gamma + (0 if kind is IntRMSNorm else beta)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "zero_in"), [(dtypes.i16, 0), (dtypes.u8, 120), (dtypes.i8, 0), (dtypes.u16, 30000)])
@pytest.mark.parametrize(("to", "zero"), [(dtypes.u8, 128), (dtypes.i8, 0), (dtypes.i16, 0)])
def test_norms_are_what_their_integers_say(kind, dtype, zero_in, to, zero):
    x = RNG.integers(dtype.min, dtype.max, (2, 3, 24), endpoint=True).astype(dtype.storage)
    run(kind, x, 0.001, kind(0.03, zero, to, EPS), 20, zero_in)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_little_to_normalise_are_what_their_integers_say(kind):
    rows = [
        [0] * 8,
        [77] * 8,
        [-32768] * 8,
        [32767] * 8,
        [0] * 7 + [1],  # the least variance there is
        [5] * 7 + [4],
        [1, -1] * 4,
        [-32768, 32767] * 4,  # the greatest
        [32767] * 5 + [-3, 0, 2],  # five saturated channels
        [-32768] * 5 + [32767] * 3,
    ]
    run(kind, np.array(rows, np.int16), 0.001, kind(0.03, 0, dtypes.i8, EPS), 20)


@pytest.mark.parametrize("kind", [IntLayerNorm, ShiftLayerNorm])
def test_a_constant_row_becomes_beta(kind):
    beta = [0.3, -0.6, 0.0, 1.5]
    x = np.array([[7] * 4, [-32768] * 4, [0] * 4], np.int16)
    y = run(kind, x, 0.001, kind(0.03, 5, dtypes.i8, EPS), 20, gamma=[1.0] * 4, beta=beta)
    np.testing.assert_array_equal(y, [[10 + 5, -20 + 5, 5, 50 + 5]] * 3)


def test_a_row_of_zeros_stays_zero_in_root_mean_square_normalisation():
    y = run(IntRMSNorm, np.zeros((2, 4), np.int16), 0.001, IntRMSNorm(0.03, 5, dtypes.i8, EPS), 20)
    np.testing.assert_array_equal(y, 5)


def test_channels_with_negative_or_no_gamma_are_turned_around_or_left_out():
    x = RNG.integers(-3000, 3000, (5, 6)).astype(np.int16)
    gamma, scale = np.array([1.0, -1.0, 0.0, -2.0, 0.5, 1e-6]), 0.001
    for kind in KINDS:
        y = run(kind, x, scale, kind(0.03, 0, dtypes.i8, EPS), fine(kind, 6, 0.03), gamma=gamma, beta=np.zeros(6))
        true = true_norm(kind, scale * x.astype(float), gamma, 0, EPS) / 0.03
        assert np.abs(y - true).max() < 1
        np.testing.assert_array_equal(y[:, 2], 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [8, 96, 384])
@pytest.mark.parametrize("deviation", [0.05, 1.0, 4.0])
def test_norms_are_less_than_a_code_from_those_of_real_numbers(kind, channels, deviation):
    scale, step = 16 / 32767, 8 / 127
    real = RNG.normal(0.3, deviation, (50, channels)) * RNG.uniform(0.5, 1.5, channels)
    x = np.clip(np.rint(real / scale), -32768, 32767).astype(np.int16)
    gamma, beta = RNG.normal(1, 0.3, channels), RNG.normal(0, 0.3, channels)
    y = run(kind, x, scale, kind(step, 0, dtypes.i8, EPS), fine(kind, channels, step), gamma=gamma, beta=beta)
    eps = 0 if kind is ShiftLayerNorm else EPS
    true = true_norm(kind, scale * x.astype(float), gamma, beta, eps) / step
    inside = np.abs(true) < 127
    assert np.abs(y - true)[inside].max() < 1
    assert np.abs(y - true)[inside].mean() < 0.3  # rounding alone makes 0.25


def test_the_error_is_half_a_code_and_that_of_the_floored_root():
    scale, channels, step = 0.001, 16, 0.001
    for width in (1, 2, 5, 20, 300):
        x = RNG.integers(-width, width + 1, (200, channels)).astype(np.int16)
        op = IntLayerNorm(step, 0, dtypes.i16, 0.0)
        ones, zeros = np.ones(channels), np.zeros(channels)
        y = run(IntLayerNorm, x, scale, op, 20, gamma=ones, beta=zeros)
        wide = x.astype(np.int64)
        variance = channels * (wide**2).sum(-1) - wide.sum(-1) ** 2
        root = np.sqrt(np.maximum(variance, 1))[:, None]
        true = (channels * wide - wide.sum(-1, keepdims=True)) / root / step
        assert np.all(np.abs(y - true) <= 0.51 + np.abs(true) / np.floor(root))


def test_epsilon_is_that_of_real_numbers():
    x = np.array([[3, -3, 3, -3]], np.int16)
    for eps in (1e-5, 1e-3, 1.0):
        for kind in (IntLayerNorm, IntRMSNorm):
            y = run(kind, x, 0.01, kind(0.001, 0, dtypes.i16, eps), 24, gamma=[1.0] * 4, beta=[0.0] * 4)
            true = 0.03 / math.sqrt(0.03**2 + eps)
            np.testing.assert_allclose(y[0] * 0.001, [true, -true, true, -true], atol=0.001 + 0.13 * true)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_channels_and_the_size_of_the_batch_change_nothing(kind):
    x = RNG.integers(-3000, 3000, (6, 40)).astype(np.int16)
    g, b, quant_g, quant_b = parameters(kind, 40, 0.03, 20)
    rest, quants = ([g], [quant_g]) if kind is IntRMSNorm else ([g, b], [quant_g, quant_b])
    op = kind(0.03, 0, dtypes.i8, EPS)

    def apply(part, order=slice(None)):
        arrays = [part[:, order], *(r[order] for r in rest)]
        return op.compute(arrays, operand_types(*arrays, quants=[Quant((0.001,)), *quants]))

    y, order = apply(x), RNG.permutation(40)
    np.testing.assert_array_equal(apply(x, order), y[:, order])
    for i in range(6):
        np.testing.assert_array_equal(apply(x[i : i + 1]), y[i : i + 1])


def test_beta_may_be_left_out():
    x = RNG.integers(-3000, 3000, (6, 4)).astype(np.int16)
    for kind in (IntLayerNorm, ShiftLayerNorm):
        g, b, quant_g, quant_b = parameters(kind, 4, 0.03, 20, beta=np.zeros(4))
        op, quants = kind(0.03, 0, dtypes.i8, EPS), [Quant((0.001,)), quant_g, quant_b]
        (plain,) = check_op(op, x, g, quants=quants[:2], fixed=[4])
        np.testing.assert_array_equal(plain, check_op(op, x, g, b, quants=quants, fixed=[4])[0])


def test_the_result_has_the_scale_that_the_attributes_say():
    x = TensorType(dtypes.i16, ("batch", 4), Quant((0.001,)))
    for kind in KINDS:
        step = 0.03 / 2**20 / unit(kind, 4)
        y = kind(0.03, 7, dtypes.u8).infer(x, TensorType(dtypes.i32, (4,), Quant((step,))))
        assert y == TensorType(dtypes.u8, ("batch", 4), Quant((0.03,), 7))


def coded(dtype, *shape, scale=0.5, zero=0, axis=None):
    return TensorType(dtype, shape, Quant(scale if isinstance(scale, tuple) else (scale,), zero, axis))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ({"x": TensorType(dtypes.i16, (2, 4))}, "codes with a scale"),
        ({"x": coded(dtypes.i16, 2, 4, scale=(0.1,) * 4, axis=1)}, "per channel"),
        ({"x": coded(dtypes.i32, 2, 4)}, "C1"),
        ({"x": coded(dtypes.i16, 4, "channels")}, "C2"),
        ({"x": coded(dtypes.i16)}, "C2"),
        ({"gamma": {"dtype": dtypes.i16}}, "C3"),
        ({"gamma": {"factor": 1.5}}, "C3"),
        ({"gamma": {"factor": 2.0**20}}, "C3"),
        ({"gamma": {"factor": 2.0**-43}}, "C3"),
        ({"gamma": {"zero": 1}}, "C3"),
        ({"gamma": {"channels": 5}}, "C3"),
        ({"beta": {"dtype": dtypes.i32}}, "C3"),
        ({"beta": {"factor": 2.0}}, "C3"),
        ({"beta": {"zero": 1}}, "C3"),
        ({"beta": {"channels": 5}}, "C3"),
        ({"x": coded(dtypes.i16, 2, 2**45)}, "C4"),
    ],
)
def test_operands_that_do_not_fit_are_refused(kind, fault, match):
    def part(name, step, default):
        wrong = fault.get(name, {})
        shape = (wrong.get("channels", channels if isinstance(channels, int) else 4),)
        return coded(
            wrong.get("dtype", default), *shape, scale=step * wrong.get("factor", 1), zero=wrong.get("zero", 0)
        )

    x = fault.get("x", coded(dtypes.i16, 2, 4))
    channels = x.dims[-1] if x.dims else 4
    size = unit(kind, channels if isinstance(channels, int) else 4)
    gamma = part("gamma", 0.03 / 2**20 / size, dtypes.i32)
    operands = [x, gamma]
    if kind is IntRMSNorm and "beta" in fault:
        pytest.skip("it has no beta")
    if "beta" in fault:
        operands.append(part("beta", 0.03 / 2**20, dtypes.i64))
    with pytest.raises(VerifyError, match=match):
        kind(0.03).infer(*operands)


def test_a_scale_so_fine_that_epsilon_leaves_62_bits_is_refused():
    x, gamma = coded(dtypes.i16, 2, 4096, scale=1e-9), coded(dtypes.i32, 4096, scale=0.03)
    for kind in (IntLayerNorm, IntRMSNorm):
        with pytest.raises(VerifyError, match="C4"):
            kind(0.03).infer(x, gamma)
        assert kind(0.03, eps=0.0).infer(x, gamma).dims == (2, 4096)
