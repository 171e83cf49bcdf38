"""Sharing of common values and elimination of dead code; the cleanup passes together."""

import numpy as np
from rewriting import check_rewrite, check_unchanged

from planish.ir import dtypes
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Const, Return
from planish.ir.types import tensor
from planish.passes.base import Context, Pipeline, Repeat
from planish.passes.cleanup import CLEANUP, EliminateDeadCode, ShareCommonValues

SHARE = ShareCommonValues()
NOISE = "Opaque(op_type='RandomNormalLike', domain='', version=22, attrs=(), types=(f32[2],))"
PURE = "Opaque(op_type='Celu', domain='', version=12, attrs=(('alpha', 2.0),), types=(f32[2],))"


def graph(*lines: str, inputs: str = "x: f32[2], z: f32[2]") -> str:
    return "\n".join([f"def g({inputs}):", *(f"    {line}" for line in lines)])


def test_equal_expressions_are_shared():
    before = graph("a = Exp()(x)", "b = Exp()(x)", "c = Neg()(a)", "d = Neg()(b)", "y = Mul()(c, d)", "return y")
    check_rewrite(SHARE, before, graph("a = Exp()(x)", "c = Neg()(a)", "y = Mul()(c, c)", "return y"))


def test_commuted_operands_are_equal():
    before = graph("a = Add()(x, z)", "b = Add()(z, x)", "y = Mul()(a, b)", "return y")
    check_rewrite(SHARE, before, graph("a = Add()(x, z)", "y = Mul()(a, a)", "return y"))


def test_exchanged_operands_of_a_difference_are_not_equal():
    check_unchanged(SHARE, graph("a = Sub()(x, z)", "b = Sub()(z, x)", "y = Mul()(a, b)", "return y"))


def test_ops_with_other_attributes_are_not_equal():
    before = graph("a = LeakyRelu(alpha=0.1)(x)", "b = LeakyRelu(alpha=0.2)(x)", "y = Mul()(a, b)", "return y")
    check_unchanged(SHARE, before)


def test_equal_constants_are_kept_once():
    before = graph(
        "c = Const(f32, [1.0, 2.0])",
        "d = Const(f32, [1.0, 2.0])",
        "e = Const(f32, [1.0, 2.0])",
        "a = Add()(x, c)",
        "b = Add()(a, d)",
        "y = Mul()(b, e)",
        "return y",
    )
    after = graph("c = Const(f32, [1.0, 2.0])", "a = Add()(x, c)", "b = Add()(a, c)", "y = Mul()(b, c)", "return y")
    check_rewrite(SHARE, before, after)


def test_constants_that_differ_in_the_sign_of_zero_are_both_kept():
    before = graph("c = Const(f32, [0.0])", "d = Const(f32, [-0.0])", "a = Add()(x, c)", "y = Add()(a, d)", "return y")
    check_unchanged(SHARE, before)


def test_constants_of_other_shape_are_both_kept():
    before = graph("c = Const(f32, [3.0])", "d = Const(f32, 3.0)", "a = Add()(x, c)", "y = Mul()(a, d)", "return y")
    check_unchanged(SHARE, before)


def test_results_of_equal_splits_are_shared():
    before = graph(
        "a, b = Split(axis=0, sizes=(1, 1))(x)",
        "c, d = Split(axis=0, sizes=(1, 1))(x)",
        "y = Add()(a, d)",
        "w = Add()(b, c)",
        "return {'y': y, 'w': w}",
    )
    after = graph("a, b = Split(axis=0, sizes=(1, 1))(x)", "y = Add()(a, b)", "return {'y': y, 'w': y}")
    check_rewrite(SHARE, before, after)


def test_outputs_of_equal_value_share_it():
    before = graph("a = Exp()(x)", "b = Exp()(x)", "return {'a': a, 'b': b}")
    check_rewrite(SHARE, before, graph("a = Exp()(x)", "return {'a': a, 'b': a}"))


def test_pure_opaque_ops_are_shared():
    before = graph(f"a = {PURE}(x)", f"b = {PURE}(x)", "y = Mul()(a, b)", "return y")
    after = graph(f"a = {PURE}(x)", "y = Mul()(a, a)", "return y")
    check_rewrite(SHARE, before, after, opaque=lambda node, arrays: [np.tanh(arrays[0])])


def test_random_ops_are_not_shared():
    check_unchanged(SHARE, graph(f"a = {NOISE}(x)", f"b = {NOISE}(x)", "y = Mul()(a, b)", "return y"))


def test_weights_of_a_type_of_their_own_are_not_loaded():
    loads: list[int] = []

    def load() -> np.ndarray:
        loads.append(1)
        return np.zeros((8, 16), np.float32)

    g = Graph("g")
    weight = g.add(Const(Data.lazy(tensor(dtypes.f32, 8, 16), load)), loc=Loc(("w",)))
    g.add(Return(("y",)), weight.result)
    assert not SHARE.run(g, Context())
    assert loads == []


def test_dead_nodes_are_erased_with_what_only_they_read():
    before = graph("c = Const(f32, 1.0)", "a = Add()(x, c)", f"b = {NOISE}(a)", "y = Neg()(x)", "return y")
    changes = check_rewrite(
        EliminateDeadCode(),
        before,
        graph("y = Neg()(x)", "return y"),
        opaque=lambda node, arrays: [np.zeros(2, np.float32)],
    )
    assert changes.rewrites["eliminate-dead-code"] == 3


def test_nodes_with_one_live_result_stay():
    check_unchanged(EliminateDeadCode(), graph("a, b = Split(axis=0, sizes=(1, 1))(x)", "return {'b': b}"))


def test_cleanup_leaves_what_an_exporter_meant():
    before = graph(
        "s = Shape()(x)",
        "i = Const(i64, 0)",
        "n = Gather(axis=0)(s, i)",
        "u = Unsqueeze(axes=(0,))(n)",
        "m = Const(i64, [-1])",
        "t = Concat(axis=0)(u, m)",
        "r = DynamicReshape(allow_zero=False)(x, t)",
        "one = Const(f32, 1.0)",
        "k = Mul()(r, one)",
        "p = Transpose(perm=(1, 0))(k)",
        "q = Transpose(perm=(1, 0))(p)",
        "v = Exp()(q)",
        "o = Identity()(q)",
        "w = Exp()(o)",
        "y = Add()(v, w)",
        "return y",
        inputs="x: f32[batch, 3, 4]",
    )
    after = graph(
        "r = Reshape(shape=(0, 12))(x)", "v = Exp()(r)", "y = Add()(v, v)", "return y", inputs="x: f32[batch, 3, 4]"
    )
    check_rewrite(Repeat(Pipeline(*(kind() for kind in CLEANUP))), before, after)
