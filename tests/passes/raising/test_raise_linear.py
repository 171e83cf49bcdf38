"""Rules of raise-linear."""

import numpy as np
import pytest
from raising_texts import graph
from rewriting import check_rewrite, check_unchanged

from planish.passes.raising import RaiseLinear, linear

X = "x: f32[n, 5, 2]"
W = "w = Const(f32, [[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]])"


def test_product_with_a_constant_matrix_is_linear():
    before = graph(X, W, "y = MatMul()(x, w)")
    check_rewrite(linear.matmul_to_linear, before, graph(X, W, "y = Linear()(x, w)"))


def test_product_with_a_computed_matrix_stays():
    check_unchanged(linear.matmul_to_linear, graph(f"{X}, w: f32[2, 3]", "y = MatMul()(x, w)"), "w must be a const")


def test_product_with_a_stack_of_matrices_stays():
    w = "w = Const(f32, [[[1.0, -2.0], [0.25, 3.0]]])"
    check_unchanged(linear.matmul_to_linear, graph(X, w, "y = MatMul()(x, w)"), "the weight has rank 3")


def test_constant_matrix_on_the_left_stays():
    before = graph("x: f32[3, 4]", W, "y = MatMul()(w, x)")
    check_unchanged(linear.matmul_to_linear, before, "w must be a const")


@pytest.mark.parametrize("bias", ["[1.0, 2.0, 3.0]", "[[1.0, 2.0, 3.0]]", "[[[1.0, 2.0, 3.0]]]"])
@pytest.mark.parametrize("operands", ["m, b", "b, m"])
def test_constant_vector_added_to_a_product_is_its_bias(bias, operands):
    before = graph(X, W, f"b = Const(f32, {bias})", "m = MatMul()(x, w)", f"y = Add()({operands})")
    after = graph(X, W, "b = Const(f32, [1.0, 2.0, 3.0])", "y = Linear()(x, w, b)")
    check_rewrite(RaiseLinear(), before, after)


def test_one_number_added_to_a_product_is_a_bias_of_equal_elements():
    before = graph(X, W, "b = Const(f32, 0.5)", "m = Linear()(x, w)", "y = Add()(m, b)")
    after = graph(X, W, "b = Const(f32, [0.5, 0.5, 0.5])", "y = Linear()(x, w, b)")
    check_rewrite(linear.linear_with_bias, before, after)


@pytest.mark.parametrize(
    ("bias", "because"),
    [
        (np.zeros((5, 3), np.float32), "varies along other axes"),
        (np.zeros((1, 1, 1, 3), np.float32), "a constant broadcasts"),
    ],
)
def test_constants_of_other_shapes_stay_outside(bias, because):
    before = graph(X, W, f"b: f32{list(bias.shape)} = Const('b')", "m = Linear()(x, w)", "y = Add()(m, b)")
    check_unchanged(linear.linear_with_bias, before, because, constants={"b": bias})


def test_residual_added_to_a_linear_stays_outside():
    before = graph(f"{X}, r: f32[n, 5, 3]", W, "m = Linear()(x, w)", "y = Add()(m, r)")
    check_unchanged(linear.linear_with_bias, before, "bias must be a array")


def test_product_that_others_read_keeps_its_own_node():
    before = graph(X, W, "b = Const(f32, [1.0, 2.0, 3.0])", "m = Linear()(x, w)", "a = Add()(m, b)", "y = Mul()(a, m)")
    check_unchanged(linear.linear_with_bias, before, "outside the match")
