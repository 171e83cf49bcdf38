"""Masks that hide nothing vanish; others stay."""

import numpy as np
import pytest

from planish.ir import dtypes
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.ops import Attention
from planish.ir.types import tensor
from planish.passes.base import Context
from planish.passes.raising import RaiseAttention


def attention_under(mask):
    graph = Graph()
    operands = [graph.add_input(name, tensor(dtypes.f32, 1, 2, 5, 4)) for name in "qkv"]
    result = Attention(0.5, False)(*operands, mask)
    graph.attach(result, None, Loc(("made",)))
    graph.add(Return(("y",)), result)
    return graph


def raised(graph):
    RaiseAttention().run(graph, Context(target="ort-cpu"))
    (node,) = graph.nodes(Attention)
    return node


@pytest.mark.parametrize("mask", [np.zeros((1, 1, 5, 5), np.float32), np.ones((5, 5), bool)])
def test_a_mask_that_hides_nothing_is_dropped(mask):
    graph = attention_under(mask)
    feeds = {
        name: np.random.default_rng(i).standard_normal((1, 2, 5, 4)).astype(np.float32) for i, name in enumerate("qkv")
    }
    before = interpret(graph, feeds)["y"]
    assert len(raised(graph).inputs) == 3
    np.testing.assert_array_equal(interpret(graph, feeds)["y"], before)


@pytest.mark.parametrize("mask", [np.tri(5, dtype=bool), np.full((5, 5), 0.5, np.float32)])
def test_a_mask_that_does_something_stays(mask):
    assert len(raised(attention_under(mask)).inputs) == 4
