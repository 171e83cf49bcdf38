"""Rules of raise-hamming: codes of signs in every spelling, and the products by them."""

import numpy as np
import pytest
from raising_texts import graph
from rewriting import check_rewrite, check_unchanged

from planish.backends.onnx.writer import build
from planish.frontend.reader import from_onnx_ir
from planish.ir.text import parse_graph
from planish.passes.base import Context
from planish.passes.raising import RaiseHamming, hamming

X = "x: f32[n, 4]"
ZERO, ONE, MINUS, TWO = "z = Const(f32, 0.0)", "o = Const(f32, 1.0)", "m = Const(f32, -1.0)", "t = Const(f32, 2.0)"
FEED = {"x": np.array([[0.0, -0.0, 1.5, -1.5], [-0.1, 0.1, 2.0, -3.0]], np.float32)}
AT_LEAST = (
    (ZERO, ONE, MINUS, "c = GreaterOrEqual()(x, z)", "y = Where()(c, o, m)"),
    (ZERO, ONE, MINUS, "c = Less()(x, z)", "y = Where()(c, m, o)"),
    (ZERO, ONE, TWO, "c = GreaterOrEqual()(x, z)", "f = Cast(to=f32)(c)", "d = Mul()(f, t)", "y = Sub()(d, o)"),
    (ZERO, MINUS, TWO, "c = GreaterOrEqual()(x, z)", "f = Cast(to=f32)(c)", "d = Mul()(t, f)", "y = Add()(d, m)"),
    ("h = Const(f32, 0.5)", "s = Sign()(x)", "l = Add()(s, h)", "y = Sign()(l)"),
    ("h = Const(f32, -0.1)", "s = Sign()(x)", "l = Sub()(s, h)", "y = Sign()(l)"),
)
ABOVE = (
    (ZERO, ONE, MINUS, "c = Greater()(x, z)", "y = Where()(c, o, m)"),
    (ZERO, ONE, MINUS, "c = LessOrEqual()(x, z)", "y = Where()(c, m, o)"),
    (ZERO, ONE, TWO, "c = Greater()(x, z)", "f = Cast(to=f32)(c)", "d = Mul()(f, t)", "y = Sub()(d, o)"),
    ("h = Const(f32, 0.5)", "s = Sign()(x)", "l = Sub()(s, h)", "y = Sign()(l)"),
)


@pytest.mark.parametrize("lines", AT_LEAST)
def test_signs_with_zero_above(lines):
    check_rewrite(RaiseHamming(), graph(X, *lines), graph(X, "y = Binarize(zero=1)(x)"), feeds=FEED)


@pytest.mark.parametrize("lines", ABOVE)
def test_signs_with_zero_below(lines):
    check_rewrite(RaiseHamming(), graph(X, *lines), graph(X, "y = Binarize(zero=-1)(x)"), feeds=FEED)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Const(f32, 0.0)", "Const(f32, 0.5)", "the constant 0 is expected"),
        ("Const(f32, -1.0)", "Const(f32, 0.0)", "the constant -1 is expected"),
    ],
)
def test_other_codes_are_none(old, new, reason):
    check_unchanged(hamming.signs, graph(X, *AT_LEAST[0]).replace(old, new), reason)


def test_a_lift_that_can_give_zero_is_none():
    before = graph(X, *AT_LEAST[4]).replace("0.5", "1.0")
    check_unchanged(hamming.signs_of_lifted_signs, before, "sign(x) + 1 may be 0")


def test_a_condition_that_broadcasts_stays():
    lines = (ZERO, "o = Const(f32, [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])", MINUS)
    before = graph("x: f32[4]", *lines, "c = GreaterOrEqual()(x, z)", "y = Where()(c, o, m)")
    check_unchanged(hamming.signs, before, "a constant broadcasts")


QKV = "q: f32[n, 2, 5, 4], k: f32[n, 2, 5, 4], v: f32[n, 2, 5, 3]"


def trained(k: str, q: str) -> str:
    """Binary linear attention, with lines that make `kc` and `qc`."""
    return graph(
        QKV, ZERO, ONE, MINUS, k, "kb = Where()(kc, o, m)" if k.startswith("kc") else "kb = Binarize(zero=1)(k)",
        "kt = Transpose(perm=(0, 1, 3, 2))(kb)", "c = MatMul()(kt, v)",
        q, "qb = Where()(qc, o, m)" if q.startswith("qc") else "qb = Binarize(zero=1)(q)", "y = MatMul()(qb, c)",
    )  # fmt: skip


def test_products_by_signs_are_signed_sums():
    before = trained("kc = GreaterOrEqual()(k, z)", "qc = GreaterOrEqual()(q, z)")
    after = graph(
        QKV, "kb = Binarize(zero=1)(k)", "kt = Transpose(perm=(0, 1, 3, 2))(kb)", "c = AddMatMul()(kt, v)",
        "qb = Binarize(zero=1)(q)", "y = AddMatMul()(qb, c)",
    )  # fmt: skip
    changes = check_rewrite(RaiseHamming(), before, after)
    assert dict(changes.rewrites) == {"signs": 2, "sums_by_signs": 2}


def test_plain_signs_have_a_zero():
    before = graph("x: f32[n, 4], b: f32[4, 3]", "s = Sign()(x)", "y = MatMul()(s, b)")
    check_unchanged(hamming.sums_by_signs, before, "Sign gives 0 for 0")


def test_other_products_stay():
    before = graph("x: f32[n, 4], b: f32[4, 3]", "y = MatMul()(x, b)")
    check_unchanged(hamming.sums_by_signs, before, "isn't made of signs")


def test_what_is_written_as_onnx_is_read_back_as_signs():
    written = from_onnx_ir(build(parse_graph(graph(X, "y = Binarize(zero=1)(x)"))))
    assert dict(RaiseHamming().run(written, Context()).rewrites) == {"signs": 1}
