"""Softmax of codes and means by its numerators, against Python's integers and the true softmax."""

import math
from fractions import Fraction

import numpy as np
import pytest
from check_op import check_op, operand_types

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.int_softmax import EXP_SCALE, IntExp, IntSoftmax, IntWeightedMean, Shiftmax
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(18)
LOGITS = Quant((EXP_SCALE,))


def half_up(x):
    return math.floor(x + Fraction(1, 2))


def numerator(distance, scale=EXP_SCALE):
    """The entry of the table of IntExp."""
    return math.floor(255 * math.exp(-distance * scale) + 0.5) if distance < 255 else 0


def softmax(real):
    e = np.exp(real - real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(deviation, *shape, scale=EXP_SCALE):
    """Codes of normal logits in i16."""
    return np.clip(np.rint(RNG.normal(0, deviation, shape) / scale), -32768, 32767).astype(np.int16)


# IntExp


def test_numerators_are_those_of_the_distance_from_the_greatest():
    x = np.concatenate([logits(2.0, 6, 40), logits(40.0, 6, 40)])
    (y,) = check_op(IntExp(), x, quants=[LOGITS])
    assert y.dtype == np.uint8
    assert y.tolist() == [[numerator(max(row) - v) for v in row] for row in x.tolist()]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_numerators_are_those_of_any_dtype_and_zero_point(dtype):
    info = np.iinfo(dtype)
    x = np.array([[info.min, info.min + 3, info.max], [info.max] * 3, [info.min] * 3], dtype)
    (y,) = check_op(IntExp(), x, quants=[Quant((0.1,), 5)])
    assert y.tolist() == [[numerator(max(row) - v, 0.1) for v in row] for row in x.tolist()]


def test_every_distance_has_the_entry_of_its_exponential():
    x = -np.arange(300, dtype=np.int16)[None]
    (y,) = check_op(IntExp(), x, quants=[LOGITS])
    assert y[0].tolist() == [numerator(d) for d in range(300)]
    assert np.abs(y[0] - 255 * np.exp(-EXP_SCALE * np.arange(300))).max() <= 0.5 + 1e-9
    assert y[0, 254] == 1
    assert y[0, 255] == 0


def test_places_left_out_count_neither_as_greatest_nor_as_weight():
    x = np.array([[100, 5, 7], [-32768, 5, 32767], [1, 2, 3]], np.int16)
    keep = np.array([[False, True, True], [True, False, False], [False] * 3])
    (y,) = check_op(IntExp(), x, keep, quants=[LOGITS])
    assert y.tolist() == [[0, numerator(2), 255], [255, 0, 0], [0, 0, 0]]


def test_a_mask_broadcasts_to_the_logits():
    x = logits(1.0, 2, 3, 4, 4)
    keep = np.tri(4, dtype=bool)
    (y,) = check_op(IntExp(), x, keep, quants=[LOGITS])
    for i, row in enumerate(y.reshape(-1, 4, 4)[0]):
        whole = x.reshape(-1, 4, 4)[0, i, : i + 1].tolist()
        assert row.tolist() == [numerator(max(whole) - v) for v in whole] + [0] * (3 - i)
    np.testing.assert_array_equal(check_op(IntExp(), x, np.broadcast_to(keep, x.shape), quants=[LOGITS])[0], y)


def test_flat_and_single_rows_keep_all_levels():
    flat = np.full((2, 500), -7, np.int16)
    np.testing.assert_array_equal(check_op(IntExp(), flat, quants=[LOGITS])[0], 255)
    single = np.full((1, 9), -32768, np.int16)
    single[0, 4] = 32767
    assert check_op(IntExp(), single, quants=[LOGITS])[0].tolist() == [[0] * 4 + [255] + [0] * 4]


# IntWeightedMean


@pytest.mark.parametrize("bits", [0, 7, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mean_is_the_rounded_quotient(bits, dtype):
    e = RNG.integers(0, np.iinfo(dtype).max, (2, 5, 60), endpoint=True).astype(dtype)
    e[0, 0] = 0
    e[0, 1, 1:] = 0
    v = RNG.integers(-128, 128, (2, 60, 4)).astype(np.int8)
    (y,) = check_op(IntWeightedMean(bits), e, v, quants=[Quant((1 / 255,)), Quant((0.02,))])
    for b, i, j in np.ndindex(y.shape):
        total, weight = sum(int(p) * int(q) for p, q in zip(e[b, i], v[b, :, j], strict=True)), int(e[b, i].sum())
        assert y[b, i, j] == (half_up(Fraction(total << bits, weight)) if weight else 0)


def test_a_mean_of_equal_rows_is_that_row_whatever_the_weights():
    e = RNG.integers(1, 256, (3, 50)).astype(np.uint8)
    for value in (-128, -1, 0, 127):
        v = np.full((50, 2), value, np.int8)
        (y,) = check_op(IntWeightedMean(7), e, v, quants=[Quant((1 / 255,)), Quant((0.02,))])
        np.testing.assert_array_equal(y, value << 7)


def test_the_order_of_rows_and_the_size_of_the_batch_change_nothing_in_a_mean():
    e, v = RNG.integers(0, 256, (3, 5, 64)).astype(np.uint8), RNG.integers(-128, 128, (3, 64, 4)).astype(np.int8)
    quants = [Quant((1 / 255,)), Quant((0.02,))]
    (y,) = check_op(IntWeightedMean(), e, v, quants=quants)
    order = RNG.permutation(64)
    np.testing.assert_array_equal(check_op(IntWeightedMean(), e[..., order], v[:, order], quants=quants)[0], y)
    np.testing.assert_array_equal(check_op(IntWeightedMean(), e[1], v[1], quants=quants)[0], y[1])


def test_weights_and_rows_may_broadcast():
    e, v = RNG.integers(0, 256, (2, 1, 3, 8)).astype(np.uint8), RNG.integers(-128, 128, (4, 8, 5)).astype(np.int8)
    quants = [Quant((1 / 255,)), Quant((0.02,))]
    (y,) = check_op(IntWeightedMean(), e, v, quants=quants)
    assert y.shape == (2, 4, 3, 5)
    np.testing.assert_array_equal(y[1, 2], check_op(IntWeightedMean(), e[1, 0], v[2], quants=quants)[0])


@pytest.mark.parametrize("fill", [127, -128])
def test_as_many_rows_as_stated_fit_and_many_more_are_refused(fill):
    rows = 65000
    e, v = np.full((1, 2 * rows), 255, np.uint8), np.full((2 * rows, 1), fill, np.int8)
    types = operand_types(e[:, :rows], v[:rows], quants=[Quant((1 / 255,)), Quant((0.02,))])
    y = IntWeightedMean(7).compute([e[:, :rows], v[:rows]], types)
    assert y.item() == fill << 7
    with pytest.raises(VerifyError, match="32 bits"):
        IntWeightedMean(7).compute([e, v], operand_types(e, v, quants=[Quant((1 / 255,)), Quant((0.02,))]))


@pytest.mark.parametrize(("deviation", "codes"), [(0.0, 0.01), (0.3, 0.1), (1.0, 0.6), (4.0, 3.0), (20.0, 1.5)])
def test_attention_by_numerators_is_near_that_by_the_true_softmax(deviation, codes):
    x, bits, scale = logits(deviation, 30, 197), 7, 0.02
    v = RNG.integers(-127, 128, (197, 8)).astype(np.int8)
    (e,) = check_op(IntExp(), x, quants=[LOGITS])
    (y,) = check_op(IntWeightedMean(bits), e, v, quants=[Quant((1 / 255,)), Quant((scale,))])
    true = softmax(EXP_SCALE * x.astype(float)) @ (scale * v.astype(float))
    # numerators are at most half off, each by the distance of its row from the mean, and the mean is rounded
    spread = np.abs(scale * v.astype(float)[None] - true[:, None]).sum(1)
    bound = 0.5 * spread / e.sum(-1, keepdims=True, dtype=np.int64) + scale / 2**bits * 0.51
    error = np.abs(y * (scale / 2**bits) - true)
    assert np.all(error <= bound)
    assert error.max() < codes * scale


# IntSoftmax


def exponentials(row, scale):
    unit, end = 32767, math.ceil(math.log(65534) / scale)
    return [math.floor(unit * math.exp(-(max(row) - v) * scale) + 0.5) if max(row) - v < end else 0 for v in row]


@pytest.mark.parametrize(("levels", "to"), [(255, dtypes.u8), (32767, dtypes.u16), (65535, dtypes.u16), (1, dtypes.u8)])
@pytest.mark.parametrize("scale", [EXP_SCALE, EXP_SCALE / 4, 0.3])
def test_probabilities_are_rounded_quotients_of_tabled_exponentials(levels, to, scale):
    x = np.concatenate([logits(d, 4, 33, scale=scale) for d in (0.3, 2.0, 30.0)])
    (y,) = check_op(IntSoftmax(levels, to), x, quants=[Quant((scale,))])
    assert y.dtype == to.storage
    for row, found in zip(x.tolist(), y.tolist(), strict=True):
        e = exponentials(row, scale)
        assert found == [half_up(Fraction(levels * v, sum(e))) for v in e]


@pytest.mark.parametrize(("levels", "to"), [(255, dtypes.u8), (32767, dtypes.u16)])
def test_rows_sum_up_to_one_but_for_half_a_code_each(levels, to):
    for width in (1, 2, 3, 197, 600):
        one_hot = np.full((1, width), -32768, np.int16)
        one_hot[0, width // 2] = 32767
        rows = np.concatenate([np.zeros((1, width), np.int16), one_hot, logits(1.0, 9, width), logits(9.0, 9, width)])
        (y,) = check_op(IntSoftmax(levels, to), rows, quants=[LOGITS])
        sums = y.sum(-1, dtype=np.int64)
        assert np.all(np.abs(sums - levels) <= width / 2)
        assert np.all(sums <= 2 * levels)
        assert y[1].tolist() == [levels if i == width // 2 else 0 for i in range(width)]
        assert len(set(y[0].tolist())) == 1


@pytest.mark.parametrize(("levels", "to"), [(255, dtypes.u8), (32767, dtypes.u16)])
@pytest.mark.parametrize("deviation", [0.0, 0.3, 1.0, 4.0, 20.0])
def test_probabilities_are_near_the_true_ones(levels, to, deviation):
    scale = EXP_SCALE / 4
    x = logits(deviation, 30, 197, scale=scale)
    (y,) = check_op(IntSoftmax(levels, to), x, quants=[Quant((scale,))])
    true = softmax(scale * x.astype(float))
    total = np.array([[sum(exponentials(row, scale))] for row in x.tolist()])
    error = np.abs(y - levels * true)
    assert np.all(error <= 0.5 + levels * (197 + 1) / (2 * total) + 1e-6)
    assert error.max() < (1.01 if levels == 255 else 110)


def test_many_small_exponentials_rounded_up_take_from_the_greatest_what_is_stated():
    scale = EXP_SCALE / 4
    distance = next(d for d in range(2000, 0, -1) if exponentials([0, -d], scale)[1] == 1)
    x = np.full((1, 1000), -distance, np.int16)
    x[0, 0] = 0
    (y,) = check_op(IntSoftmax(32767, dtypes.u16), x, quants=[Quant((scale,))])
    error = 32767 * softmax(scale * x.astype(float))[0, 0] - int(y[0, 0])
    assert 400 < error <= 0.5 + 32767 * 1001 / (2 * (32767 + 999))


# Shiftmax


def shift_exponential(distance, unit):
    d = -distance
    p = max(d + (d >> 1) - (d >> 4), -15 * unit)
    q = -p // unit
    return math.floor((Fraction(p + q * unit, 2) + unit) * 2 ** (15 - q))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.uint8, 128), (np.int16, 0)])
@pytest.mark.parametrize("scale", [0.01, 0.05, 0.2, 1.5])
def test_probabilities_by_shifts_are_those_of_the_published_algorithm(bits, dtype, zero, scale):
    info = np.iinfo(dtype)
    x = RNG.integers(max(info.min, -300), min(info.max, 300), (6, 40), endpoint=True).astype(dtype)
    x[0], x[1], x[1, 3] = info.max, info.min, info.max
    (y,) = check_op(Shiftmax(bits), x, quants=[Quant((scale,), zero)], fixed=[40])
    unit = math.ceil(1 / scale)
    for row, found in zip(x.tolist(), y.tolist(), strict=True):
        e = [shift_exponential(max(row) - v, unit) for v in row]
        assert found == [v * ((2**31 - 1) // sum(e)) >> (32 - bits) for v in e]
    assert y.dtype == (np.uint16 if bits == 16 else np.uint8)
    assert y.sum(-1, dtype=np.int64).max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("deviation", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("scale", [0.01, 0.05])
def test_probabilities_by_shifts_are_as_near_as_chord_and_reciprocal_allow(deviation, scale):
    x = np.clip(logits(deviation, 20, 197, scale=scale), -600, 600)
    (y,) = check_op(Shiftmax(), x, quants=[Quant((scale,))], fixed=[197])
    unit = math.ceil(1 / scale)
    e = np.array([[shift_exponential(max(row) - v, unit) for v in row] for row in x.tolist()])
    factor = (2**31 - 1) // e.sum(-1, keepdims=True)
    true = softmax(scale * x.astype(float))
    ratio = e / (unit * 2.0**15) / np.exp(scale * (x.astype(float) - x.max(-1, keepdims=True).astype(float)))
    low, high = ratio.min(-1, keepdims=True), ratio.max(-1, keepdims=True)
    found = y / 2.0**15
    assert np.all(found <= true * high / low + 1e-9)
    assert np.all(found >= true * (low / high) * (factor / (factor + 1)) - 2.0**-15)
    lost = 1 - found.sum(-1)
    assert np.all((lost >= 0) & (lost <= 1 / (factor[:, 0] + 1) + 198 * 2.0**-15))


def test_rows_with_one_great_number_give_it_nearly_all():
    x = np.full((1, 197), -128, np.int8)
    x[0, 5] = 127
    (y,) = check_op(Shiftmax(), x, quants=[Quant((0.2,))], fixed=[197])
    assert y[0, 5] > 0.99 * 2**15
    assert np.delete(y[0], 5).max() <= 1


# permutations and types


@pytest.mark.parametrize("op", [IntExp(), IntSoftmax(), IntSoftmax(32767, dtypes.u16), Shiftmax(), Shiftmax(8)])
def test_the_order_within_a_row_and_the_size_of_the_batch_change_nothing(op):
    x, order = logits(2.0, 5, 40), RNG.permutation(40)
    (y,) = check_op(op, x, quants=[LOGITS], fixed=[40])
    np.testing.assert_array_equal(check_op(op, x[:, order], quants=[LOGITS], fixed=[40])[0], y[:, order])
    np.testing.assert_array_equal(check_op(op, x[2], quants=[LOGITS], fixed=[40])[0], y[2])
    shifted = (x - 100).astype(np.int16)
    np.testing.assert_array_equal(check_op(op, shifted, quants=[LOGITS], fixed=[40])[0], y)


def coded(dtype, *shape, scale=EXP_SCALE, zero=0, axis=None):
    return TensorType(dtype, shape, Quant(scale if isinstance(scale, tuple) else (scale,), zero, axis))


def test_results_have_the_scales_that_are_stated():
    x = coded(dtypes.i16, "batch", 5)
    assert IntExp().infer(x) == coded(dtypes.u8, "batch", 5, scale=1 / 255)
    assert IntSoftmax().infer(x) == coded(dtypes.u8, "batch", 5, scale=1 / 255)
    assert IntSoftmax(32767, dtypes.u16).infer(x) == coded(dtypes.u16, "batch", 5, scale=1 / 32767)
    assert Shiftmax().infer(x) == coded(dtypes.u16, "batch", 5, scale=2.0**-15)
    assert Shiftmax(8).infer(x) == coded(dtypes.u8, "batch", 5, scale=2.0**-7)
    mean = IntWeightedMean(5).infer(coded(dtypes.u8, 3, 5, scale=1 / 255), coded(dtypes.i8, 5, 2, scale=0.32))
    assert mean == coded(dtypes.i32, 3, 2, scale=0.01)


E, V = coded(dtypes.u8, 3, 5, scale=1 / 255), coded(dtypes.i8, 5, 2)


@pytest.mark.parametrize(
    ("op", "operands", "match"),
    [
        (IntExp(), (TensorType(dtypes.i16, (2, 3)),), "codes with a scale"),
        (IntExp(), (coded(dtypes.i16, 2, scale=(1.0, 2.0), axis=0),), "per channel"),
        (IntExp(), (coded(dtypes.i16),), "scalar"),
        (IntExp(), (coded(dtypes.i16, 2, 3), TensorType(dtypes.i8, (2, 3))), "C2"),
        (IntExp(), (coded(dtypes.i16, 2, 3), TensorType(dtypes.boolean, (4, 2, 3))), "C2"),
        (IntExp(), (coded(dtypes.i16, 1, 3), TensorType(dtypes.boolean, (2, 3))), "C2"),
        (IntWeightedMean(), (coded(dtypes.i8, 3, 5), V), "C1"),
        (IntWeightedMean(), (coded(dtypes.u8, 3, 5, zero=1), V), "C1"),
        (IntWeightedMean(), (E, coded(dtypes.u8, 5, 2)), "C1"),
        (IntWeightedMean(), (E, coded(dtypes.i8, 5, 2, zero=1)), "C1"),
        (IntWeightedMean(), (E, coded(dtypes.i8, 5, 2, scale=(1.0, 2.0), axis=1)), "per channel"),
        (IntWeightedMean(), (E, coded(dtypes.i8, 6, 2)), "C5"),
        (IntWeightedMean(-1), (E, V), "C3"),
        (IntWeightedMean(17), (E, V), "C3"),
        (IntSoftmax(), (TensorType(dtypes.i16, (2, 3)),), "codes with a scale"),
        (IntSoftmax(), (coded(dtypes.i16, 2, scale=(1.0, 2.0), axis=0),), "per channel"),
        (IntSoftmax(256), (coded(dtypes.i16, 2, 3),), "C2"),
        (IntSoftmax(0), (coded(dtypes.i16, 2, 3),), "C2"),
        (IntSoftmax(100, dtypes.i8), (coded(dtypes.i16, 2, 3),), "C2"),
        (IntSoftmax(65536, dtypes.u32), (coded(dtypes.i16, 2, 3),), "C2"),
        (IntSoftmax(), (coded(dtypes.i16),), "scalar"),
        (Shiftmax(), (TensorType(dtypes.i16, (2, 3)),), "codes with a scale"),
        (Shiftmax(), (coded(dtypes.i16, 2, scale=(1.0, 2.0), axis=0),), "per channel"),
        (Shiftmax(12), (coded(dtypes.i16, 2, 3),), "C2"),
        (Shiftmax(), (coded(dtypes.i16, 2, "rows"),), "C3"),
        (Shiftmax(), (coded(dtypes.i16, 197, scale=1 / 333),), "C3"),
    ],
)
def test_operands_that_do_not_fit_are_refused(op, operands, match):
    with pytest.raises(VerifyError, match=match):
        op.infer(*operands)


def test_the_finest_logits_for_197_places_are_those_of_one_in_332():
    x = coded(dtypes.i16, 197, scale=1 / 332)
    assert Shiftmax().infer(x).dims == (197,)
    flat = np.zeros((1, 197), np.int16)
    (y,) = check_op(Shiftmax(), flat, quants=[x.quant], fixed=[197])
    assert y.tolist() == [[(332 << 15) * ((2**31 - 1) // (197 * (332 << 15))) >> 16] * 197]
