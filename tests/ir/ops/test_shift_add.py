"""Linear layers and convolutions by codes of a codebook are those by the numbers that the codes stand for."""

import numpy as np
import pytest

from planish.ir import dtypes, ops, signed_digits
from planish.ir.codebooks import CODEBOOKS
from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(3)


def run(op, x, *operands):
    graph = Graph("g")
    value = graph.add_input("x", TensorType(dtypes.f32, x.shape))
    y = op(value, *operands)
    graph.attach(y, None, Loc(("y",)))
    graph.add(Return(("y",)), y)
    return interpret(graph, {"x": x})["y"]


def codes_of(name, shape):
    return RNG.choice(np.asarray(CODEBOOKS[name].values), shape).astype(np.int8)


@pytest.mark.parametrize("name", ["csd2", "apot6", "apot4", "pot4", "ternary"])
def test_a_linear_layer_is_shifts_and_additions(name):
    codes, x = codes_of(name, (5, 3)), RNG.integers(-99, 99, (2, 4, 5))
    scales, b = np.array([0.5, 2.0, 0.125]), np.array([1, -2, 3], np.float32)
    y = run(ops.ShiftLinear(), x.astype(np.float32), Data(codes, Quant(tuple(scales.tolist()), 0, 1, name)), b)
    total = np.zeros((2, 4, 3), np.int64)
    for power, plane in signed_digits.planes(codes):
        for k, n in np.argwhere(plane):
            total[..., n] += int(plane[k, n]) * (x[..., k] << power)
    np.testing.assert_array_equal(y, (total * scales + b).astype(np.float32))


def test_a_convolution_is_that_by_real_weights():
    codes, x = codes_of("apot5", (4, 1, 3, 3)), RNG.normal(size=(2, 2, 6, 5)).astype(np.float32)
    scales = np.array([0.1, 0.2, 0.3, 0.4])
    op = ops.ShiftConv((2, 1), (1, 0, 1, 0), (1, 1), group=2)
    y = run(op, x, Data(codes, Quant(tuple(scales.tolist()), 0, 0, "apot5")))
    w = (codes * scales.astype(np.float32).reshape(-1, 1, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(y, ops.Conv((2, 1), (1, 0, 1, 0), (1, 1), group=2).evaluate(x, w))


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        (Quant((0.5,), 0), "codes of a codebook are needed"),
        (Quant((0.5,) * 5, 0, 0, "pot4"), "quantized along axis 0, not 1"),
    ],
)
def test_weights_of_another_kind_are_refused(quant, message):
    with pytest.raises(VerifyError, match=message):
        run(ops.ShiftLinear(), np.zeros((2, 5), np.float32), Data(codes_of("pot4", (5, 3)), quant))
