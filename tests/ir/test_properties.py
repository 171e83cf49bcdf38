"""Named predicates on graphs."""

import pytest

from planish.ir import dtypes
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.ops import Opaque
from planish.ir.properties import computed_shapes, dynamic_shapes, integer_only, opaque_nodes
from planish.ir.text import parse_graph
from planish.ir.types import TensorType

INTEGER = """def g(x: f32[batch, 4], n: i64[2], mask: bool[batch, 4]):
    q: q(u8, 0.5, 128)[batch, 4] = Quantize(scale=0.5, zero=128, to=u8)(x)
    s: i64[2] = Shape()(x)
    w: i8[4] = Const(i8, [1, 2, 3, 4])
    r: q(i8, 0.25, 0)[batch, 4] = Requantize(scale=0.25, zero=0, to=i8)(q)
    y: f32[batch, 4] = Dequantize()(r)
    return {'y': y, 's': s, 'w': w, 'n': n, 'mask': mask, 'r': r}
"""


def test_a_graph_that_computes_with_codes_only_may_have_real_inputs_and_outputs():
    assert integer_only(parse_graph(INTEGER)) == []


@pytest.mark.parametrize(
    ("line", "listed"),
    [
        ("z: f32[batch, 4] = Relu()(y)", ["y: f32[batch, 4]", "z: f32[batch, 4]"]),
        ("z: f32[batch, 4] = Relu()(x)", ["x: f32[batch, 4]", "z: f32[batch, 4]"]),
        ("z: q(i8, 1.0, 0)[batch, 4] = Quantize(scale=1.0, zero=0, to=i8)(y)", ["y: f32[batch, 4]"]),
        ("z: f16[2] = Const(f16, [0.5, 1.0])", ["z: f16[2]"]),
        ("z: f32[2] = Cast(to=f32)(n)", ["z: f32[2]"]),
    ],
)
def test_each_real_value_within_is_listed(line, listed):
    text = INTEGER.replace("    return {", f"    {line}\n    return {{'z': z, ")
    assert integer_only(parse_graph(text)) == listed


def test_an_input_that_is_returned_as_it_is_counts_as_real():
    assert integer_only(parse_graph("def g(x: f32[4]):\n    return {'y': x}\n")) == ["x: f32[4]"]


def test_an_input_that_nobody_reads_is_no_matter():
    assert integer_only(parse_graph("def g(x: f32[4], q: i8[4]):\n    return {'y': q}\n")) == []


def test_symbolic_shapes_are_listed():
    assert dynamic_shapes(parse_graph("def g(x: f32[4], y: f32[n, 2]):\n    return x, y\n")) == ["y: f32[n, 2]"]
    assert dynamic_shapes(parse_graph("def g(x: f32[4]):\n    return x\n")) == []


def test_opaque_nodes_are_listed_with_their_source():
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, (4,)))
    op = Opaque("Mystery", "com.example", 1, (), (x.type,))
    graph.add(Return(("y",)), graph.add(op, x, loc=Loc(("node_7",))).result)
    assert opaque_nodes(graph) == ["Mystery at node_7"]
    assert computed_shapes(graph) == []


def test_reshapes_to_a_computed_shape_are_listed_with_their_source():
    text = """def g(x: f32[n, 2]):
    s: i64[2] = Shape()(x)
    r: f32[n, 2] = DynamicReshape()(x, s)
    return r
"""
    assert computed_shapes(parse_graph(text)) == ["DynamicReshape at r"]
    assert opaque_nodes(parse_graph(text)) == []
