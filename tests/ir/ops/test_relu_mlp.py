"""ReluMLP: two linear layers with a rectifier between, with and without a gate."""

from __future__ import annotations

import numpy as np
import pytest
from check_op import check_decompose, check_op

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops import ReluMLP
from planish.ir.types import tensor

RNG = np.random.default_rng(21)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def by_neurons(x, w_up, w_down, b_up=None, b_down=None, w_gate=None, b_gate=None):
    """Neuron by neuron, in double precision; those that the rectifier makes 0 are left out."""
    y = np.zeros((len(x), w_down.shape[1])) + (0 if b_down is None else b_down.astype(np.float64))
    for row, neuron in np.ndindex(len(x), w_down.shape[0]):
        value = x[row].astype(np.float64) @ w_up[:, neuron] + (0 if b_up is None else b_up[neuron])
        tested = value
        if w_gate is not None:
            tested = x[row].astype(np.float64) @ w_gate[:, neuron] + (0 if b_gate is None else b_gate[neuron])
        if tested > 0:
            y[row] += (tested if w_gate is None else tested * value) * w_down[neuron]
    return y


OPERANDS = (normal(2, 5), normal(5, 11), normal(11, 3), normal(11), normal(3), normal(5, 11), normal(11))


@pytest.mark.parametrize("absent", [(), (3,), (4,), (6,), (5, 6), (3, 4, 5, 6), (3, 4, 6)])
@pytest.mark.parametrize("skip", [True, False])
def test_neurons_that_give_zero_can_be_left_out(absent, skip):
    operands = [None if place in absent else array for place, array in enumerate(OPERANDS)]
    (found,) = check_op(ReluMLP(skip), *operands)
    np.testing.assert_allclose(found, by_neurons(*operands), rtol=1e-5, atol=1e-5)
    while operands[-1] is None:
        operands.pop()
    check_decompose(ReluMLP(skip), *operands, atol=1e-5)


def test_not_a_number_stays():
    x = OPERANDS[0].copy()
    x[1, 2] = np.nan
    y = ReluMLP().evaluate(x, *OPERANDS[1:3])
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize(
    ("place", "type_", "constraint"),
    [
        (0, tensor(dtypes.f16, 2, 5), "C1"),
        (1, tensor(dtypes.i32, 5, 11), "C1"),
        (2, tensor(dtypes.f32, 11), "C3"),
        (1, tensor(dtypes.f32, 5, 11, 1), "C3"),
        (1, tensor(dtypes.f32, 6, 11), "C4"),
        (2, tensor(dtypes.f32, 12, 3), "C4"),
        (3, tensor(dtypes.f32, 12), "C4"),
        (4, tensor(dtypes.f32, 4), "C4"),
        (5, tensor(dtypes.f32, 5, 12), "C4"),
        (6, tensor(dtypes.f32, 1, 11), "C3"),
        (5, None, "C5"),
    ],
)
def test_violated_constraints_are_named(place, type_, constraint):
    types = [tensor(dtypes.f32, *array.shape) for array in OPERANDS]
    with pytest.raises(VerifyError, match=constraint):
        ReluMLP().infer(*(type_ if i == place else known for i, known in enumerate(types)))
