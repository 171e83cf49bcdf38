"""Products of signs against sums of Python's integers, and what they refuse."""

import numpy as np
import pytest
from check_op import check_op, operand_types

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.binary_product import IntBinaryMatMul
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(5)


def signs(*shape):
    return RNG.choice(np.asarray([-1, 1], np.int8), shape)


def test_a_product_counts_places_that_differ():
    a, b = signs(2, 3, 33), signs(2, 33, 4)
    (c,) = check_op(IntBinaryMatMul(), a, b, quants=[Quant((0.5,)), Quant((0.25,))])
    for n, i, j in np.ndindex(c.shape):
        assert c[n, i, j] == 33 - 2 * sum(x != y for x, y in zip(a[n, i].tolist(), b[n, :, j].tolist(), strict=True))
    assert c.dtype == np.int32


def test_the_scale_is_the_product_of_the_scales():
    types = operand_types(signs(3, 8), signs(8, 2), quants=[Quant((0.5,)), Quant((0.25,))])
    assert IntBinaryMatMul().infer(*types).quant == Quant((0.125,))


def test_codes_that_are_no_signs_are_refused():
    a, b = signs(3, 8), signs(8, 2)
    a[1, 1] = 0
    with pytest.raises(VerifyError, match="C3: a has codes that are neither -1 nor 1"):
        IntBinaryMatMul().evaluate(a, b, types=())


def test_zero_points_other_dtypes_and_channels_are_refused():
    good = TensorType(dtypes.i8, (3, 8), Quant((1.0,)))
    other = TensorType(dtypes.i8, (8, 2), Quant((1.0,)))
    for bad in (Quant((1.0,), 1), Quant((1.0,) * 2, 0, 1)):
        with pytest.raises(VerifyError, match="C1: b"):
            IntBinaryMatMul().infer(good, TensorType(dtypes.i8, (8, 2), bad))
    with pytest.raises(VerifyError, match="C1: a"):
        IntBinaryMatMul().infer(TensorType(dtypes.u8, (3, 8), Quant((1.0,))), other)
