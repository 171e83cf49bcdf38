"""Constant folding: what folds, what the budget forbids, and what must stay."""

import numpy as np
import pytest
from rewriting import check_rewrite, check_unchanged, read

from planish.ir import dtypes
from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph, Node
from planish.ir.loc import Loc
from planish.ir.op import Const, Return, constant
from planish.ir.ops import Cast, Opaque, Transpose
from planish.ir.types import tensor
from planish.passes.base import Context
from planish.passes.cleanup import FoldConstants
from planish.passes.rewrite import Fuel

FOLD = FoldConstants()


def test_arithmetic_of_constants_is_computed():
    before = """
        def g(x: f32[2]):
            a = Const(f32, [1.0, 2.0])
            b = Const(f32, 3.0)
            c = Mul()(a, b)
            d = Neg()(c)
            y = Add()(x, d)
            return y
    """
    after = """
        def g(x: f32[2]):
            c = Const(f32, [-3.0, -6.0])
            y = Add()(x, c)
            return y
    """
    assert check_rewrite(FOLD, before, after).rewrites["fold-constants"] == 2


def test_every_result_of_a_split_is_folded():
    before = """
        def g():
            c = Const(f32, [1.0, 2.0, 3.0])
            a, b = Split(axis=0, sizes=(1, 2))(c)
            return {'a': a, 'b': b}
    """
    after = """
        def g():
            a = Const(f32, [1.0])
            b = Const(f32, [2.0, 3.0])
            return {'a': a, 'b': b}
    """
    check_rewrite(FOLD, before, after)


def test_shape_arithmetic_of_static_shapes_is_folded():
    before = """
        def g(x: f32[2, 12]):
            s = Shape()(x)
            i = Const(i64, 0)
            n = Gather(axis=0)(s, i)
            u = Unsqueeze(axes=(0,))(n)
            c = Const(i64, [3, 4])
            t = Concat(axis=0)(u, c)
            y = DynamicReshape(allow_zero=False)(x, t)
            return y
    """
    after = """
        def g(x: f32[2, 12]):
            t = Const(i64, [2, 3, 4])
            y = DynamicReshape(allow_zero=False)(x, t)
            return y
    """
    check_rewrite(FOLD, before, after)


def test_shape_with_a_symbol_stays():
    check_unchanged(FOLD, "def g(x: f32[n, 12]):\n    y = Shape()(x)\n    return y")


def test_known_contents_fold_without_budget():
    after = "def g(x: f32[2, 12]):\n    y = Const(i64, [2, 12])\n    return y"
    check_rewrite(FOLD, "def g(x: f32[2, 12]):\n    y = Shape()(x)\n    return y", after, context=Context(fold_bytes=0))


def test_strings_are_folded():
    before = """
        def g():
            a = Const(str, ['a', 'b'])
            i = Const(i64, [1])
            y = Gather(axis=0)(a, i)
            return y
    """
    check_rewrite(FOLD, before, "def g():\n    y = Const(str, ['b'])\n    return y")


EXPANSION = """
    def g(x: f32[8]):
        a = Const(f32, 1.5)
        s = Const(i64, [8])
        b = Expand()(a, s)
        y = Add()(x, b)
        return y
"""


def test_fold_within_the_budget_is_done_and_charged():
    context = Context(fold_bytes=100)
    after = """
        def g(x: f32[8]):
            b = Const(f32, [1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5])
            y = Add()(x, b)
            return y
    """
    check_rewrite(FOLD, EXPANSION, after, context=context)
    assert context.fold_bytes == 100 - (8 * 4 - 4 - 8)


def test_fold_over_the_budget_is_reported():
    changes = check_unchanged(
        FOLD, EXPANSION, "folding adds 20 bytes, more than the 19", context=Context(fold_bytes=19)
    )
    assert changes.skipped[0][0] == "b"


def test_constants_with_other_readers_do_not_pay():
    before = """
        def g(x: f32[2]):
            a = Const(f32, [1.0, 2.0])
            b = Neg()(a)
            c = Add()(x, a)
            y = Add()(c, b)
            return y
    """
    check_unchanged(FOLD, before, "folding adds 8 bytes, more than the 7", context=Context(fold_bytes=7))


@pytest.mark.parametrize("op", ["Div()", "Mod(fmod=False)"])
def test_integer_division_by_zero_is_left_and_reported(op):
    before = f"""
        def g():
            a = Const(i32, [1, 2])
            b = Const(i32, [1, 0])
            y = {op}(a, b)
            return y
    """
    check_unchanged(FOLD, before, "integer division by zero")


def test_cast_out_of_range_is_left_and_reported():
    before = "def g():\n    a = Const(f32, [1.0, 300.0])\n    y = Cast(to=u8)(a)\n    return y"
    check_unchanged(FOLD, before, "out of the range of u8")


def test_cast_up_to_the_end_of_the_range_is_folded():
    before = "def g():\n    a = Const(f32, [-0.5, 255.5])\n    y = Cast(to=u8)(a)\n    return y"
    check_rewrite(FOLD, before, "def g():\n    y = Const(u8, [0, 255])\n    return y")


def test_failing_evaluation_is_left_and_reported():
    op = "Opaque(op_type='Det', domain='', version=22, attrs=(), types=(f32[()],))"
    before = f"def g():\n    a = Const(f32, [1.0])\n    y = {op}(a)\n    return y"

    def fails(node, arrays):
        raise VerifyError("no kernel")

    check_unchanged(FOLD, before, "it can't be computed: no kernel", context=Context(evaluate_opaque=fails))


def opaque_graph(op_type: str) -> Graph:
    graph = Graph("g")
    two = graph.add(Const(Data(np.array([2.0], np.float32))), loc=Loc(("two",)))
    op = Opaque(op_type, "", 22, (), (tensor(dtypes.f32, 1),))
    node = graph.add(op, two.result, None, loc=Loc(("opaque",)))
    graph.add(Return(("y",)), node.result)
    return graph


def square(node: Node, arrays: list) -> list:
    assert arrays[1:] == [None]
    return [arrays[0] ** 2]


def test_pure_opaque_is_folded_by_the_evaluator():
    graph = opaque_graph("Square")
    assert FOLD.run(graph, Context(evaluate_opaque=square))
    assert constant(graph.outputs[0]) == Data(np.array([4.0], np.float32))


def test_opaque_stays_without_an_evaluator():
    assert not FOLD.run(opaque_graph("Square"), Context())


def test_random_opaque_stays():
    assert not FOLD.run(opaque_graph("RandomNormalLike"), Context(evaluate_opaque=square))


def test_evaluator_that_returns_another_dtype_is_reported():
    graph = opaque_graph("Square")
    changes = FOLD.run(graph, Context(evaluate_opaque=lambda node, arrays: [arrays[0].astype(np.int64)]))
    assert not changes
    assert changes.skipped == [("opaque", "its value isn't of the type f32[1]")]


def large_weight(op) -> tuple[Graph, list[int]]:
    """A graph that applies `op` to a 4 MiB weight on disk, and a list that counts the loads."""
    loads: list[int] = []

    def load() -> np.ndarray:
        loads.append(1)
        return np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)

    graph = Graph("g")
    weight = graph.add(Const(Data.lazy(tensor(dtypes.f32, 1024, 1024), load)), loc=Loc(("w",)))
    node = graph.add(op, weight.result, loc=Loc(("op",)))
    graph.add(Return(("y",)), node.result)
    return graph, loads


def test_large_transpose_is_folded_without_loading_at_no_cost():
    graph, loads = large_weight(Transpose(perm=(1, 0)))
    context = Context(fold_bytes=0)
    assert FOLD.run(graph, context)
    assert (loads, context.fold_bytes) == ([], 0)
    data = constant(graph.outputs[0])
    assert data is not None
    assert np.array_equal(data.numpy(), np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024).T)
    assert data.numpy() is not data.numpy(), "the array is kept"


def test_large_cast_that_doubles_the_weight_is_over_budget():
    graph, loads = large_weight(Cast(to=dtypes.f64))
    changes = FOLD.run(graph, Context())
    assert not changes
    assert loads == []
    assert changes.skipped[0][1].startswith("folding adds 4194304 bytes")


def test_large_cast_to_half_frees_bytes():
    graph, loads = large_weight(Cast(to=dtypes.f16))
    context = Context(fold_bytes=0)
    assert FOLD.run(graph, context)
    assert (loads, context.fold_bytes) == ([], 1 << 21)


def test_folding_stops_when_fuel_runs_out():
    graph = read(EXPANSION)
    assert not FOLD.run(graph, Context(fuel=Fuel(0)))
