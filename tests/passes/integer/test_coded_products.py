"""Layers by codes of a codebook become integers with the same codes."""

import numpy as np
import pytest
from integerizing import feeds_for

from planish.ir import ops
from planish.ir.data import Data
from planish.ir.interpret import interpret
from planish.ir.op import constant
from planish.ir.parser import parse_graph
from planish.ir.verify import verify
from planish.passes.base import Context, Pipeline
from planish.passes.integer import Integerize
from planish.passes.pipelines import recipe
from planish.passes.shiftadd import ShiftAdd

RNG = np.random.default_rng(4)


def model():
    w, v = RNG.normal(size=(12, 20)), RNG.normal(size=(20, 5))
    k = RNG.normal(size=(3, 2, 2, 2))
    return parse_graph(
        f"""
def g(x: f32[4, 2, 4, 4]):
    k: f32[3, 2, 2, 2] = Const(f32, {k.round(3).tolist()})
    c: f32[4, 3, 2, 2] = Conv(strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)(x, k)
    f: f32[4, 12] = Reshape(shape=(4, 12))(c)
    w: f32[12, 20] = Const(f32, {w.round(3).tolist()})
    b: f32[20] = Const(f32, {RNG.normal(size=20).round(3).tolist()})
    y: f32[4, 20] = Linear()(f, w, b)
    z: f32[4, 20] = Relu()(y)
    v: f32[20, 5] = Const(f32, {v.round(3).tolist()})
    r: f32[4, 5] = Linear()(z, v)
    return r
"""
    )


@pytest.mark.parametrize(("codebook", "floor_db"), [("csd2", 25), ("apot4", 14)])
def test_codes_are_taken_over_as_they_are(codebook, floor_db):
    graph = model()
    before, _ = graph.clone()
    feeds = feeds_for(graph, 48)
    ShiftAdd(codebook=codebook).run(graph, Context(calibration=feeds))
    codes = [constant(n.operands[1]).numpy() for n in graph.nodes(ops.ShiftConv, ops.ShiftLinear)]
    changes = Integerize().run(graph, Context(calibration=feeds))
    verify(graph)
    assert changes.skipped == []
    products = graph.nodes(ops.IntConv, ops.IntLinear)
    for node, array in zip(products, codes, strict=True):
        assert node.inputs[1].tensor.quant.codebook == codebook
        np.testing.assert_array_equal(constant(node.operands[1]).numpy(), array)
    new = feeds_for(before, 8, seed=5)
    old, now = ([interpret(g, feed)["r"] for feed in new] for g in (before, graph))
    noise = sum(np.sum((a - b) ** 2) for a, b in zip(old, now, strict=True))
    assert 10 * np.log10(sum(np.sum(a**2) for a in old) / noise) > floor_db


def test_a_bias_that_no_sum_can_hold_leaves_the_layer_in_float():
    graph = model()
    feeds = feeds_for(graph, 48)
    ShiftAdd(keep=("c", "r")).run(graph, Context(calibration=feeds))
    (node,) = graph.nodes(ops.ShiftLinear)
    graph.set_operand(node, 2, graph.add(ops.Const(_huge()), loc=node.loc, before=node).result)
    changes = Integerize().run(graph, Context(calibration=feeds))
    assert "its bias is too large for sums on the scale of its weights" in [reason for _, reason in changes.skipped]


def _huge():
    return Data(np.full(20, 1e9, np.float32))


def test_recipes_join_so_that_codes_come_before_integers():
    names = [step.name for step in recipe("shift-add+integer").leaves()]
    assert names.count("shift-add") == names.count("integerize") == 1
    assert names.index("split-projections") < names.index("shift-add") < names.index("integerize")
    assert isinstance(recipe("shift-add+integer"), Pipeline)
