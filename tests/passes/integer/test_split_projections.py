"""A wide Linear that is cut up again becomes one Linear per part."""

from __future__ import annotations

import numpy as np
import pytest

from planish.ir import ops
from planish.ir.interpret import interpret
from planish.ir.parser import parse_graph
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.integer import SplitProjections


def graph_of(tail: str) -> str:
    rows = ", ".join(f"[{', '.join(str(round(0.1 * (7 * i + j) - 2, 1)) for j in range(6))}]" for i in range(2))
    return f"""
def g(x: f32[batch, 3, 2]):
    w: f32[2, 6] = Const(f32, [{rows}])
    b: f32[6] = Const(f32, [1, 2, 3, 4, 5, 6])
    y: f32[batch, 3, 6] = Linear()(x, w, b)
{tail}
"""


TIMM = """    v: f32[batch, 3, 3, 2, 1] = Reshape(shape=(0, 3, 3, 2, 1))(y)
    t: f32[3, batch, 2, 3, 1] = Transpose(perm=(2, 0, 3, 1, 4))(v)
    q: f32[1, batch, 2, 3, 1] = Slice(starts=(0,), ends=(1,), axes=(0,), steps=(1,))(t)
    k: f32[1, batch, 2, 3, 1] = Slice(starts=(1,), ends=(2,), axes=(0,), steps=(1,))(t)
    u: f32[1, batch, 2, 3, 1] = Slice(starts=(2,), ends=(3,), axes=(0,), steps=(1,))(t)
    return q, k, u"""
INNER = """    v: f32[batch, 3, 2, 3] = Reshape(shape=(0, 3, 2, 3))(y)
    q: f32[batch, 3, 2, 1] = Slice(starts=(0,), ends=(1,), axes=(3,), steps=(1,))(v)
    k: f32[batch, 3, 2, 2] = Slice(starts=(1,), ends=(3,), axes=(3,), steps=(1,))(v)
    return q, k"""
SPLIT = """    q, k, u = Split(axis=2, sizes=(1, 2, 3))(y)
    return q, k, u"""
TOKENS = """    q: f32[batch, 1, 6] = Slice(starts=(0,), ends=(1,), axes=(1,), steps=(1,))(y)
    k: f32[batch, 2, 6] = Slice(starts=(1,), ends=(3,), axes=(1,), steps=(1,))(y)
    return q, k"""


@pytest.mark.parametrize(("tail", "parts"), [(TIMM, 3), (INNER, 2), (SPLIT, 3)], ids=["timm", "inner", "split"])
def test_each_part_gets_its_own_columns(tail, parts):
    graph = parse_graph(graph_of(tail))
    before, _ = graph.clone()
    assert SplitProjections().run(graph, Context()).count == parts
    verify(graph)
    assert len(graph.nodes(ops.Linear)) == parts
    assert not graph.nodes(ops.Slice, ops.Split)
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)}
    old, new = interpret(before, feed), interpret(graph, feed)
    for name, array in old.items():
        np.testing.assert_allclose(new[name], array, rtol=1e-5, atol=1e-5)


def test_slices_of_tokens_stay():
    graph = parse_graph(graph_of(TOKENS))
    assert SplitProjections().run(graph, Context()).count == 0
    assert len(graph.nodes(ops.Linear)) == 1


def test_a_linear_that_is_also_read_whole_stays():
    graph = parse_graph(graph_of(SPLIT.replace("return q, k, u", "return q, k, u, y")))
    assert SplitProjections().run(graph, Context()).count == 0
