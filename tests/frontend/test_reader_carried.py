"""Ops that the IR doesn't model are carried whole: attributes, subgraphs with what they capture, functions, types."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from reading import model, ops, read, types, weight

from planish.frontend.reader import from_onnx_ir, from_proto
from planish.frontend.reference import evaluate_opaque
from planish.ir.errors import FrontendError, UnsupportedOp
from planish.ir.graph import Graph, Node
from planish.ir.ops import Opaque
from planish.ir.types import OtherType

IF = """
    y = If (c) <
        then_branch = t () => (float[2] a) { a = Add(h, w) },
        else_branch = e () => (float[2] b) { k = Constant<value_floats=[1.0, 2.0]>() b = Mul(h, k) }
    >
"""


def carried(graph: Graph) -> tuple[Node, Opaque]:
    (node,) = graph.nodes(Opaque)
    assert isinstance(node.op, Opaque)
    return node, node.op


def conditional() -> Graph:
    proto = model("(bool c, float[2] x) => (float[2] y)", f"h = Relu(x) {IF}")
    proto.graph.initializer.append(weight("w", np.array([10, 20], np.float32)))
    return from_proto(proto)


def test_values_that_subgraphs_read_become_the_last_operands() -> None:
    node, op = carried(conditional())
    assert op.captures == ("h", "w")
    assert [value.hint for value in node.inputs] == ["c", "h", "w"]
    assert types(conditional()) == ["f32[2]"]


def test_values_that_inner_subgraphs_read_are_captured_too_and_inner_ones_are_not() -> None:
    inner = """y = If (c) <
        then_branch = t () => (float[2] a) {
            n = Neg(x)
            a = If (d) <
                then_branch = tt () => (float[2] aa) { aa = Add(n, h) },
                else_branch = te () => (float[2] ab) { ab = Neg(n) }
            >
        },
        else_branch = e () => (float[2] b) { b = Neg(h) }
    >"""
    _, op = carried(read("(bool c, bool d, float[2] x) => (float[2] y)", f"h = Relu(x) {inner}"))
    assert set(op.captures) == {"x", "d", "h"}


@pytest.mark.parametrize(("condition", "expected"), [(True, [11, 20]), (False, [1, 0])])
def test_a_carried_conditional_is_evaluated(condition: bool, expected: list[float]) -> None:
    node, _ = carried(conditional())
    arrays = [np.array(condition), np.array([1, 0], np.float32), np.array([10, 20], np.float32)]
    (found,) = evaluate_opaque(node, arrays)
    np.testing.assert_array_equal(found, expected)


def test_attributes_of_all_kinds_are_kept() -> None:
    node = onnx.helper.make_node(
        *("Odd", ["x"], ["y"]),
        domain="com.example",
        i=3, f=0.1, s="text", ints=[1, 2], floats=[0.1, 0.5], strings=["a", "b"],
        t=weight("", np.array([7], np.int64)),
    )  # fmt: skip
    proto = model("(float[2] x) => (float[2] y)", "y = Relu(x)", imports=', "com.example": 1')
    del proto.graph.node[:]
    proto.graph.node.append(node)
    _, op = carried(from_proto(proto))
    attrs = dict(op.attrs)
    tensor: Any = attrs.pop("t")
    assert attrs == {"i": 3, "f": 0.1, "s": "text", "ints": (1, 2), "floats": (0.1, 0.5), "strings": ("a", "b")}
    assert tensor.numpy().tolist() == [7]
    assert (op.domain, op.op_type, op.version, op.payload) == ("com.example", "Odd", 1, None)


def test_the_type_of_an_unknown_op_is_what_the_model_declares() -> None:
    proto = model("(float[2] x) => (float[] y)", "h = com.example.Odd(x) y = Relu(h)", imports=', "com.example": 1')
    info = onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["n", 3])
    proto.graph.value_info.append(info)
    graph = from_proto(proto)
    assert ops(graph) == ["[Odd]", "Relu"]
    assert types(graph) == ["f32[n, 3]"]


def test_an_op_after_one_of_unknown_type_is_carried() -> None:
    proto = model("(float[2] x) => (float[2] y)", "h = com.example.Odd(x) y = Relu(h)", imports=', "com.example": 1')
    graph = from_proto(proto)
    assert ops(graph) == ["[Odd]", "[Relu]"]
    assert isinstance(graph.nodes(Opaque)[0].results[0].type, OtherType)


def test_types_of_standard_ops_are_inferred_with_contents_of_shapes_and_symbols() -> None:
    body = """
        s = Shape(x) a = Constant<value_ints=[0]>() b = Constant<value_ints=[2]>() n = Slice(s, a, b)
        z = Constant<value_ints=[8, 10]>() t = Concat<axis=0>(n, z) y = Resize(x, , , t)
    """
    assert types(read("(float[batch,3,4,5] x) => (float[] y)", body)) == ["f32[batch, 3, 8, 10]"]
    body = "k = Constant<value_ints=[2]>() y, i = TopK(x, k)"
    assert types(read("(float[n,9] x) => (float[] y, int64[] i)", body)) == ["f32[n, 2]", "i64[n, 2]"]


def test_unknown_dimensions_of_results_are_distinct_symbols_in_every_reading() -> None:
    body = "a = NonZero(x) b = NonZero(x)"
    graphs = [read("(float[3] x) => (int64[] a, int64[] b)", body) for _ in range(2)]
    assert types(graphs[0]) == types(graphs[1]) == ["i64[1, u0]", "i64[1, u1]"]


def test_symbols_of_inferred_types_are_those_of_the_model() -> None:
    proto = model("(float[n,4] x) => (float[] y)", "h = Hardmax(x) y = Hardmax(h)")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "my batch"
    graph = from_proto(proto)
    assert types(graph) == ["f32[d_my_batch, 4]"]
    assert graph.extras["dim_params"] == {"d_my_batch": "my batch"}


def test_sequences_pass_through_with_their_type() -> None:
    graph = read("(float[2] a, float[3] b) => (float[] y)", """
        i = Constant<value_int=1>() s = SequenceConstruct(a, b) y = SequenceAt(s, i)
    """)  # fmt: skip
    assert ops(graph) == ["[SequenceConstruct]", "[SequenceAt]"]
    assert isinstance(graph.nodes(Opaque)[0].results[0].type, OtherType)
    assert graph.outputs[0].tensor.dtype.name == "f32"


def test_sparse_constants_become_dense() -> None:
    proto = model("(float[4] x) => (float[4] y)", "y = Add(x, w)")
    values, indices = weight("w", np.array([5, 7], np.float32)), weight("", np.array([1, 3], np.int64))
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4]))
    graph = from_proto(proto)
    node = graph.outputs[0].node
    assert node is not None
    data = node.operands[1].op.data  # type: ignore[union-attr]
    np.testing.assert_array_equal(data.numpy(), [0, 5, 0, 7])


FUNCTION = """
    <ir_version: 8, opset_import: ["": 18, "local": 1]>
    g (float[2,3] x) => (float[2,3] y) { h = local.twice(x) y = local.twice(h) }
    <opset_import: ["": OPSET], domain: "local">
    twice (a) => (b) { c = Constant<value_float=2.0>() b = Mul(a, c) }
"""


def test_functions_are_inlined() -> None:
    graph = from_proto(onnx.parser.parse_model(FUNCTION.replace("OPSET", "18")))
    assert ops(graph) == ["Mul", "Mul"]
    assert graph.extras["functions"] == []


def test_reading_an_onnx_ir_model_with_functions_leaves_it_as_it_was() -> None:
    import onnx_ir

    source = onnx_ir.from_proto(onnx.parser.parse_model(FUNCTION.replace("OPSET", "18")))
    assert ops(from_onnx_ir(source)) == ["Mul", "Mul"]
    assert len(source.functions) == 1
    assert [node.op_type for node in source.graph] == ["twice", "twice"]


def test_a_function_of_another_operator_set_is_kept_and_its_calls_carried() -> None:
    graph = from_proto(onnx.parser.parse_model(FUNCTION.replace("OPSET", "13")))
    assert ops(graph) == ["[twice]", "[twice]"]
    functions: Any = graph.extras["functions"]
    assert [function.name for function in functions] == ["twice"]
    (found,) = evaluate_opaque(graph.nodes(Opaque)[0], [np.ones((2, 3), np.float32)])
    np.testing.assert_array_equal(found, np.full((2, 3), 2, np.float32))


def test_a_function_that_calls_itself_is_refused() -> None:
    proto = onnx.parser.parse_model(FUNCTION.replace("OPSET", "18").replace("Mul(a, c)", "local.twice(a)"))
    proto.functions[0].opset_import.append(onnx.helper.make_opsetid("local", 1))
    with pytest.raises(FrontendError, match="calls itself"):
        from_proto(proto)


def test_a_carried_op_that_nobody_can_evaluate_is_unsupported() -> None:
    proto = model("(float[2] x) => (float[2] y)", "y = com.example.Odd(x)", imports=', "com.example": 1')
    node, _ = carried(from_proto(proto))
    with pytest.raises(UnsupportedOp, match="Odd can't be evaluated") as caught:
        evaluate_opaque(node, [np.zeros(2, np.float32)])
    assert caught.value.exit_code == 4


def test_a_carried_op_with_a_left_out_operand_and_two_results_is_evaluated() -> None:
    graph = read("(float[4] x) => (float[] y, int64[] i)", "k = Constant<value_ints=[2]>() y, i = TopK(x, k)")
    node, _ = carried(graph)
    values, places = evaluate_opaque(node, [np.array([1, 9, 3, 5], np.float32), np.array([2])])
    assert (values.tolist(), places.tolist()) == ([9, 5], [1, 3])


def test_names_and_scopes_of_nodes_are_remembered() -> None:
    proto = model("(float[2] x) => (float[2] z)", "h = Relu(x) k = Exp(h) y = Neg(k) z = Abs(y)")
    first, second, third, _ = proto.graph.node
    first.name = "/vit/layers.3/attention/Relu"
    second.name, third.name = "node_exp", "node_neg"
    second.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'vit', 'vit.layers.4', 'exp']")
    third.metadata_props.add(key="namespace", value=": m.Vit/vit: m.Body/vit.head: m.Head/neg: aten.neg.default")
    found = [(node.loc.sources, node.loc.scope) for node in from_proto(proto) if not node.op.is_return]
    assert found == [
        (("/vit/layers.3/attention/Relu",), "vit.layers.3.attention"),
        (("node_exp",), "vit.layers.4"),
        (("node_neg",), "vit.head"),
        (("Abs_z",), ""),
    ]


def test_ops_of_operator_sets_before_7_are_carried_with_their_types() -> None:
    graph = read("(float[n,3] x) => (float[] y)", "y = Relu(x)", 6)
    assert ops(graph) == ["[Relu]"]
    assert types(graph) == ["f32[n, 3]"]
    assert graph.extras["carried"] == {"Relu_y": "operator sets before 7 aren't modelled"}
