"""Rules of raise-activations. Further spellings are in the zoo."""

import pytest
from raising_texts import graph
from rewriting import check_rewrite, check_unchanged

from planish.passes.raising import RaiseActivations, activations

X = "x: f32[n, 4]"
HALF, ONE = "half = Const(f32, 0.5)", "one = Const(f32, 1.0)"
ERF = ("c = Const(f32, 1.4142135)", "a = Div()(x, c)", "e = Erf()(a)")
PRODUCTS = (
    (HALF, ONE, "g = Add()(e, one)", "w = Mul()(x, g)", "y = Mul()(w, half)"),
    (HALF, ONE, "g = Add()(one, e)", "w = Mul()(half, x)", "y = Mul()(g, w)"),
    (HALF, ONE, "g = Add()(e, one)", "w = Mul()(g, half)", "y = Mul()(x, w)"),
    (HALF, "h = Mul()(half, e)", "g = Add()(h, half)", "y = Mul()(g, x)"),
    (ONE, "g = Add()(e, one)", "two = Const(f32, 2.0)", "w = Mul()(g, x)", "y = Div()(w, two)"),
)


@pytest.mark.parametrize("product", PRODUCTS)
def test_gate_with_erf_is_gelu(product):
    check_rewrite(activations.gelu, graph(X, *ERF, *product), graph(X, "y = Gelu(approximate='none')(x)"))


def test_erf_of_another_multiple_is_no_gelu():
    before = graph(X, *ERF, *PRODUCTS[0]).replace("1.4142135", "1.5")
    check_unchanged(activations.gelu, before, "the argument of erf is scaled by 0.666667")


def test_erf_of_another_tensor_is_no_gelu():
    before = graph(f"{X}, z: f32[n, 4]", *ERF, *PRODUCTS[0]).replace("Mul()(x, g)", "Mul()(z, g)")
    check_unchanged(activations.gelu, before, "the same value as elsewhere")


OUTER, CUBIC = "k = Const(f32, 0.7978846)", "c = Const(f32, 0.044715)"
ARGUMENTS = (
    ("t = Const(f32, 3.0)", "p = Pow()(x, t)", "b = Mul()(p, c)", "q = Add()(x, b)", "a = Mul()(k, q)"),
    ("s = Mul()(x, x)", "p = Mul()(s, x)", "b = Mul()(c, p)", "q = Add()(b, x)", "a = Mul()(q, k)"),
    (
        "cx = Mul()(c, x)",
        "b = Mul()(cx, x)",
        "i = Const(f32, 1.0)",
        "f = Add()(b, i)",
        "kx = Mul()(k, x)",
        "a = Mul()(kx, f)",
    ),
    (
        "s = Mul()(x, x)",
        "b = Mul()(s, c)",
        "i = Const(f32, 1.0)",
        "f = Add()(i, b)",
        "q = Mul()(x, f)",
        "a = Mul()(q, k)",
    ),
)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_gate_with_tanh_is_approximated_gelu(argument):
    before = graph(X, OUTER, CUBIC, *argument, "e = Tanh()(a)", *PRODUCTS[0])
    check_rewrite(activations.tanh_gelu, before, graph(X, "y = Gelu(approximate='tanh')(x)"))


@pytest.mark.parametrize(("constant", "because"), [("0.7978846", "of tanh is scaled"), ("0.044715", "the cube")])
def test_tanh_of_other_polynomials_is_no_gelu(constant, because):
    before = graph(X, OUTER, CUBIC, *ARGUMENTS[0], "e = Tanh()(a)", *PRODUCTS[0])
    check_unchanged(activations.tanh_gelu, before.replace(constant, "0.5"), because)


def test_product_with_sigmoid_is_swish():
    before = graph(X, "s = Sigmoid()(x)", "y = Mul()(s, x)")
    check_rewrite(activations.swish, before, graph(X, "y = Swish(alpha=1.0)(x)"))
    before = graph(X, "a = Const(f32, 1.702)", "p = Mul()(a, x)", "s = Sigmoid()(p)", "y = Mul()(x, s)")
    check_rewrite(activations.swish, before, graph(X, "y = Swish(alpha=1.702)(x)"))


def test_gate_of_another_tensor_is_no_swish():
    before = graph(f"{X}, z: f32[n, 4]", "s = Sigmoid()(z)", "y = Mul()(s, x)")
    check_unchanged(activations.swish, before, "Mul is expected here, not a graph input")


def test_alpha_that_broadcasts_is_left():
    before = graph(X, "a = Const(f32, [[[1.5]]])", "p = Mul()(a, x)", "s = Sigmoid()(p)", "y = Mul()(x, s)")
    check_unchanged(activations.swish, before, "a constant broadcasts")


SHIFTED = ("three = Const(f32, 3.0)", "t = Add()(x, three)", "six = Const(f32, 6.0)")


def test_product_with_clipped_line_is_hard_swish():
    before = graph(X, *SHIFTED, "c = Clip(lo=0.0, hi=6.0)(t)", "p = Mul()(x, c)", "y = Div()(p, six)")
    check_rewrite(activations.hard_swish, before, graph(X, "y = HardSwish()(x)"))
    check_unchanged(activations.hard_swish, before.replace("hi=6.0", "hi=5.0"), "does not match Clip(lo=0.0, hi=5.0)")


def test_hard_sigmoid_gate_is_hard_swish():
    before = graph(X, "s = HardSigmoid(alpha=0.16666667, beta=0.5)(x)", "y = Mul()(x, s)")
    check_rewrite(activations.hard_swish, before, graph(X, "y = HardSwish()(x)"))
    check_unchanged(activations.hard_swish, before.replace("0.16666667", "0.2"), "the gate is scaled by 0.2")


def test_sixth_of_the_clipped_is_hard_sigmoid():
    before = graph(X, *SHIFTED, "c = Clip(lo=0.0, hi=6.0)(t)", "y = Div()(c, six)")
    after = graph(X, f"y = HardSigmoid(alpha={1 / 6!r}, beta=0.5)(x)")
    check_rewrite(activations.hard_sigmoid_of_sixth, before, after)
    check_unchanged(activations.hard_sigmoid_of_sixth, before.replace("six = Const(f32, 6.0)", "six = Const(f32, 5.0)"))


def test_clipped_line_is_hard_sigmoid():
    lines = ("a = Const(f32, 0.2)", "b = Const(f32, 0.5)", "p = Mul()(x, a)", "t = Add()(p, b)")
    before = graph(X, *lines, "y = Clip(lo=0.0, hi=1.0)(t)")
    check_rewrite(activations.hard_sigmoid, before, graph(X, "y = HardSigmoid(alpha=0.2, beta=0.5)(x)"))
    check_unchanged(activations.hard_sigmoid, before.replace("hi=1.0", "hi=2.0"), "does not match Clip")


@pytest.mark.parametrize(
    "lines",
    [
        ("lo = Const(f32, -1.0)", "m = Max()(lo, x)", "y = Min()(m, six)"),
        ("lo = Const(f32, -1.0)", "m = Min()(x, six)", "y = Max()(m, lo)"),
    ],
)
def test_limits_on_both_sides_are_clip(lines):
    before = graph(X, "six = Const(f32, 6.0)", *lines)
    check_rewrite(activations.clip, before, graph(X, "y = Clip(lo=-1.0, hi=6.0)(x)"))
    check_unchanged(activations.clip, before.replace("-1.0", "7.0"), "above the upper limit")


def test_relu_with_an_upper_limit_is_clip():
    before = graph(X, "six = Const(f32, 6.0)", "r = Relu()(x)", "y = Min()(r, six)")
    check_rewrite(RaiseActivations(), before, graph(X, "y = Clip(lo=0.0, hi=6.0)(x)"))


def test_integers_are_clipped_with_integers():
    before = graph("x: i64[n]", "a = Const(i64, 2)", "b = Const(i64, 5)", "m = Max()(x, a)", "y = Min()(m, b)")
    check_rewrite(activations.clip, before, graph("x: i64[n]", "y = Clip(lo=2, hi=5)(x)"))
