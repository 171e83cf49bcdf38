"""Exact integer arithmetic against Python's integers and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import dtypes, fixedpoint
from planish.ir.errors import VerifyError

LEAST, MOST = -(2**31), 2**31 - 1
EXTREMES = [LEAST, LEAST + 1, -(2**30), -3, -2, -1, 0, 1, 2, 3, 2**30, MOST - 1, MOST]
RATIOS = [
    *(2.0**k for k in (-40, -33, -32, -31, -30, -8, -1, 0, 1, 7, 29)),
    *(1 / 3, 0.1, 0.999999, 1.0000001, 2 / 3, 1e-6, 12345.678, 2.0**29 * 1.999),
    np.nextafter(1.0, 0),
    np.nextafter(2.0**-5, 0),
    np.nextafter(2.0**20, 0),
    1 - 2.0**-33,
    1 - 2.0**-32,
    1 - 2.0**-31,
]


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def exponential(distance: int, unit: int, steps: int) -> int:
    """floor(2**(steps - q) * (unit + r / 2)) with r in (-unit, 0], as I-ViT writes it for arguments below zero."""
    d = -distance
    p = max(d + (d >> 1) - (d >> 4), -steps * unit)
    q = -p // unit
    r = p + q * unit
    return math.floor((Fraction(r, 2) + unit) * 2 ** (steps - q))


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_factor_times_codes_is_the_rounded_product_with_its_dyadic_form(ratio):
    factor = fixedpoint.dyadic(ratio)
    exact = Fraction(int(factor.multiplier), 2**factor.shift)
    q = [*EXTREMES, *np.random.default_rng(1).integers(LEAST, MOST, 500).tolist()]
    assert factor.times(np.array(q)).tolist() == [half_up(v * exact) for v in q]


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_multiplier_has_31_bits_and_is_the_nearest(ratio):
    factor = fixedpoint.dyadic(ratio)
    assert 1 <= factor.shift <= fixedpoint.MAX_SHIFT
    assert int(factor.multiplier) == half_up(Fraction(ratio) * 2**factor.shift)
    assert int(factor.multiplier) < 2**31
    assert int(factor.multiplier) >= 2**30 or factor.shift == fixedpoint.MAX_SHIFT


@given(st.floats(2.0**-62, 2.0**30 - 1), st.integers(LEAST, MOST))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_rescaled_code_is_within_half_a_unit_and_the_error_of_the_multiplier(ratio, q):
    factor = fixedpoint.dyadic(ratio)
    error = abs(int(factor.times(np.array(q))) - q * Fraction(ratio))
    assert error <= Fraction(1, 2) + Fraction(abs(q), 2 ** (factor.shift + 1))


def test_exact_ties_go_up_for_either_sign():
    q = np.arange(-9, 10)
    assert fixedpoint.dyadic(0.5).times(q).tolist() == [math.floor(v / 2 + 0.5) for v in q.tolist()]
    assert fixedpoint.dyadic(0.5).times(np.array([-3, -1, 1, 3])).tolist() == [-1, 0, 1, 2]
    assert fixedpoint.dyadic(0.125).times(np.array([-20, -12, -4, 4, 12, 20])).tolist() == [-2, -1, 0, 1, 2, 3]


def test_a_ratio_of_one_changes_nothing():
    factor = fixedpoint.dyadic([1.0, 1.0])
    assert factor.is_one
    assert factor.times(np.array([[LEAST, MOST]])).tolist() == [[LEAST, MOST]]
    assert not fixedpoint.dyadic([1.0, 0.5]).is_one


def test_a_ratio_that_rounds_up_to_a_power_of_two_keeps_31_bits():
    factor = fixedpoint.dyadic(np.nextafter(1.0, 0))
    assert (int(factor.multiplier), factor.shift) == (2**30, 30)


@pytest.mark.parametrize("ratio", [2.0**-33, 1e-12, 2.0**-62, 2.0**-64, 1e-300])
def test_a_tiny_ratio_makes_zero_of_everything(ratio):
    assert fixedpoint.dyadic(ratio).times(np.array(EXTREMES)).tolist() == [0] * len(EXTREMES)


def test_channels_share_the_shift_of_the_largest_factor():
    ratios = [3.7, 0.01, 1e-9, 1e-12]
    factor = fixedpoint.dyadic(ratios)
    assert factor.shift == fixedpoint.dyadic(3.7).shift
    assert factor.multiplier.tolist() == [half_up(Fraction(r) * 2**factor.shift) for r in ratios]
    q = np.array(EXTREMES)[:, None]
    expected = [[half_up(Fraction(v * int(m), 2**factor.shift)) for m in factor.multiplier] for v in EXTREMES]
    assert factor.times(q).tolist() == expected


@pytest.mark.parametrize(
    "ratio",
    [0.0, -1.0, math.inf, math.nan, 2.0**30, np.nextafter(2.0**30, 0), 2.0**30 - 0.25, [1.0, 0.0], [1.0, -0.5]],
)
def test_a_ratio_that_has_no_dyadic_form_is_refused(ratio):
    with pytest.raises(VerifyError, match="ratio of scales"):
        fixedpoint.dyadic(ratio)


def test_the_largest_ratio_is_just_below_two_to_the_30():
    factor = fixedpoint.dyadic(2.0**30 - 0.5)
    assert factor.times(np.array([LEAST, 1, MOST])).tolist() == [
        half_up(v * Fraction(2**31 - 1, 2)) for v in (LEAST, 1, MOST)
    ]


def test_saturation_clips_to_the_dtype():
    q = np.array([-(2**40), -129, -128, 0, 127, 128, 255, 256, 2**40])
    assert fixedpoint.saturate(q, dtypes.i8).tolist() == [-128, -128, -128, 0, 127, 127, 127, 127, 127]
    assert fixedpoint.saturate(q, dtypes.u8).tolist() == [0, 0, 0, 0, 127, 128, 255, 255, 255]
    assert fixedpoint.saturate(q, dtypes.i16).dtype == np.int16


def test_square_roots_are_exact_for_all_small_numbers():
    v = np.arange(2**20 + 1, dtype=np.int64)
    expected = np.repeat(np.arange(1025), 2 * np.arange(1025) + 1)[: v.size]
    np.testing.assert_array_equal(fixedpoint.isqrt(v), expected)


def test_square_roots_are_exact_around_squares_up_to_the_limit():
    rng = np.random.default_rng(2)
    k = {*range(1, 3000), *(2**b + d for b in range(1, 31) for d in (-1, 0, 1)), *rng.integers(1, 2**31, 3000).tolist()}
    v = sorted({s for n in k for s in (n * n - 1, n * n, n * n + 1) if s < 2**62} | {2**61, 2**61 - 1, 2**62 - 1})
    assert fixedpoint.isqrt(np.array(v, np.int64)).tolist() == [math.isqrt(s) for s in v]


def test_bit_lengths_are_those_of_python():
    v = [0, 1, 2, *(2**b + d for b in range(2, 63) for d in (-1, 0, 1)), 2**63 - 1]
    assert fixedpoint.bit_length(np.array(v, np.int64)).tolist() == [n.bit_length() for n in v]


@pytest.mark.parametrize("steps", [1, 2, 8, 15, 16, 23])
@pytest.mark.parametrize("unit", [1, 2, 3, 5, 6, 7, 10, 16, 59, 100, 127])
def test_exponentials_by_shifts_are_those_of_the_published_algorithm(unit, steps):
    distances = [*range(min(unit * steps + 40, 3000)), 2 * unit * steps, 65535, 2**31]
    expected = [exponential(d, unit, steps) for d in distances]
    assert fixedpoint.shift_exp(np.array(distances, np.int64), unit, steps).tolist() == expected


def test_exponentials_by_shifts_never_rise_and_stay_near_the_true_ones():
    unit, steps = 100, 15
    d = np.arange(8 * unit)
    found = fixedpoint.shift_exp(d, unit, steps) / (unit * 2.0**steps)
    assert np.all(np.diff(found) <= 0)
    assert found[0] == 1
    ratio = found / np.exp(-d / unit)
    chord = 1.0615  # greatest (1 - f / 2) / 2**-f
    slope = 2 ** (8 * (math.log2(math.e) - 1.4375))  # log2(e) is taken as 1 + 1/2 - 1/16
    rounding = 2 ** (15 / 16 / unit), 2 ** (-1 / 2 / unit)  # of the 16th, and of the half
    assert ratio.max() < chord * slope * rounding[0]
    assert ratio.min() >= rounding[1]


@pytest.mark.parametrize(("scale", "levels", "entries"), [(0.0244, 255, 256), (0.1, 32767, 112), (0.5, 1, 3)])
def test_a_table_of_exponentials_holds_the_rounded_ones_and_ends_in_zero(scale, levels, entries):
    table = fixedpoint.exp_table(scale, levels, entries)
    assert table.dtype == np.int64
    expected = [math.floor(levels * math.exp(-scale * d) + 0.5) for d in range(entries - 1)]
    assert table.tolist() == [*expected, 0]


@pytest.mark.parametrize("source", [(dtypes.u8, 0.04, 113), (dtypes.i8, 0.07, 0), (dtypes.i8, 0.5, -100)])
@pytest.mark.parametrize("target", [(dtypes.i8, 0.03, 5), (dtypes.u8, 0.02, 128), (dtypes.i16, 0.001, 0)])
def test_a_table_of_codes_holds_the_rounded_function_of_every_code(source, target):
    table = fixedpoint.code_table(np.tanh, source, target)
    dtype, scale, zero = source
    to, step, offset = target
    expected = []
    for code in range(dtype.min, dtype.max + 1):
        rounded = math.floor(math.tanh(scale * (code - zero)) / step + 0.5) + offset
        expected.append(min(max(rounded, to.min), to.max))
    assert table.dtype == to.storage
    np.testing.assert_array_equal(table, expected)


def test_constants_are_rounded_half_up_and_saturated():
    real = np.array([-1000.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1000.0])
    assert fixedpoint.quantized(real, dtypes.i8, 1.0).tolist() == [-128, -2, -1, 0, 1, 2, 3, 127]
    assert fixedpoint.quantized(real, dtypes.u8, 1.0, 2).tolist() == [0, 0, 1, 2, 3, 4, 5, 255]
    assert fixedpoint.quantized(np.array([[1.0, 1.0]]), dtypes.i8, np.array([0.5, 0.25])).tolist() == [[2, 4]]


@pytest.mark.parametrize("inner", [0, 1, 7, 300, 3000])
@pytest.mark.parametrize("kinds", [(np.uint8, np.int8), (np.int16, np.int8), (np.uint16, np.int16), (np.int8, np.int8)])
def test_products_are_those_of_64_bit_integers(inner, kinds):
    rng = np.random.default_rng(inner)
    a, b = (
        rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)
        for kind, shape in zip(kinds, ((2, 5, inner), (2, inner, 4)), strict=True)
    )
    expected = a.astype(np.int64) @ b.astype(np.int64)
    product = fixedpoint.exact_product(a, b)
    assert product.dtype == np.int64
    np.testing.assert_array_equal(product, expected)
    np.testing.assert_array_equal(fixedpoint.exact_product(a.astype(np.int64), b), expected)


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_products_with_the_least_code_are_exact_in_its_own_dtype(kind):
    least = np.iinfo(kind).min  # its absolute value isn't of the dtype
    b = np.full((4096, 1), least, kind)
    b[0] = 1
    a = np.full((1, 4096), 255, np.int64)
    assert fixedpoint.exact_product(a, b).item() == 255 * least * 4095 + 255
    assert fixedpoint.exact_product(a.astype(np.uint8), b).item() == 255 * least * 4095 + 255


def test_sums_on_either_side_of_24_bits_are_exact():
    for inner in (257, 258, 259, 300):
        a = np.full((1, inner), 255, np.int64)
        a[0, 0] = 1
        b = np.full((inner, 1), 255, np.int64)
        assert fixedpoint.exact_product(a, b).item() == 255 + 255 * 255 * (inner - 1)


def test_products_that_may_need_more_than_53_bits_are_refused():
    a = np.full((1, 4), 2**31, np.int64)
    with pytest.raises(VerifyError, match="53 bits"):
        fixedpoint.exact_product(a, np.full((4, 1), 2**20, np.int64))


@pytest.mark.parametrize(("total", "fits"), [(MOST, True), (MOST + 1, False), (LEAST, True), (LEAST - 1, False)])
def test_an_accumulator_holds_32_bits_and_no_more(total, fits):
    sums = np.array([0, total])
    if fits:
        assert fixedpoint.accumulator(sums, "X").tolist() == [0, total]
        assert fixedpoint.accumulator(sums, "X").dtype == np.int32
    else:
        with pytest.raises(VerifyError, match="accumulator of X leaves 32 bits"):
            fixedpoint.accumulator(sums, "X")
