"""Functions of codes by table."""

import numpy as np
import pytest
from check_op import check_op, operand_types

from planish.ir import dtypes, fixedpoint
from planish.ir.errors import VerifyError
from planish.ir.ops.int_table import IntTable
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(13)


@pytest.mark.parametrize("source", [dtypes.u8, dtypes.i8, dtypes.u16, dtypes.i16])
@pytest.mark.parametrize("to", [dtypes.u8, dtypes.i8, dtypes.i16, dtypes.i32])
def test_every_code_is_looked_up_in_ascending_order(source, to):
    table = RNG.integers(to.min, to.max, 1 << source.bits, dtype=np.int64).astype(to.storage)
    x = RNG.permutation(np.arange(source.min, source.max + 1)).astype(source.storage)
    (y,) = check_op(IntTable(0.5, 0, to), x, table, quants=[Quant((0.1,))])
    by_code = dict(zip(range(source.min, source.max + 1), table.tolist(), strict=True))
    assert y.dtype == to.storage
    assert y.tolist() == [by_code[int(code)] for code in x]


def test_the_zero_point_of_the_operand_is_the_matter_of_the_table():
    x = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = fixedpoint.code_table(np.tanh, (dtypes.u8, 0.03, 128), (dtypes.i8, 1 / 127, 0))
    (y,) = check_op(IntTable(1 / 127), x, table, quants=[Quant((0.03,), 128)])
    real = np.tanh(0.03 * (x.astype(np.float64) - 128))
    assert np.abs(y / 127 - real).max() <= 0.5 / 127 + 1e-12


def test_the_result_has_the_scale_that_the_attributes_say():
    types = operand_types(np.zeros(3, np.uint8), np.zeros(256, np.int16), quants=[Quant((0.1,), 7)])
    assert IntTable(0.5, -3, dtypes.i16).infer(*types) == TensorType(dtypes.i16, (3,), Quant((0.5,), -3))


@pytest.mark.parametrize(
    ("x", "table", "match"),
    [
        (TensorType(dtypes.u8, (3,)), TensorType(dtypes.i8, (256,)), "codes with a scale"),
        (TensorType(dtypes.u8, (2,), Quant((1.0, 2.0), 0, 0)), TensorType(dtypes.i8, (256,)), "per channel"),
        (TensorType(dtypes.i32, (3,), Quant((1.0,))), TensorType(dtypes.i8, (256,)), "C1"),
        (TensorType(dtypes.i4, (3,), Quant((1.0,))), TensorType(dtypes.i8, (16,)), "C1"),
        (TensorType(dtypes.u8, (3,), Quant((1.0,))), TensorType(dtypes.i8, (255,)), "C2"),
        (TensorType(dtypes.u8, (3,), Quant((1.0,))), TensorType(dtypes.i8, (256, 1)), "C2"),
        (TensorType(dtypes.u8, (3,), Quant((1.0,))), TensorType(dtypes.u8, (256,)), "C2"),
        (TensorType(dtypes.u8, (3,), Quant((1.0,))), TensorType(dtypes.i8, (256,), Quant((1.0,))), "C2"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x, table, match):
    with pytest.raises(VerifyError, match=match):
        IntTable(0.5).infer(x, table)
