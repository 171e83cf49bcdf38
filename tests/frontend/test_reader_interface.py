"""Inputs and outputs: symbolic dimensions, shapes that the caller fixes, defaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from reading import model, read, types, weight

from planish.frontend.reader import from_proto
from planish.ir.errors import FrontendError, UsageError
from planish.ir.graph import Graph
from planish.ir.op import constant

TWO = "(float[batch,seq,8] x, float[batch,4] m) => (float[batch,seq,8] y)"


def inputs(graph: Graph) -> list[str]:
    return [f"{value.hint}: {value.type}" for value in graph.inputs]


def test_symbolic_dimensions_keep_their_names() -> None:
    graph = read(TWO, "y = Relu(x)")
    assert inputs(graph) == ["x: f32[batch, seq, 8]", "m: f32[batch, 4]"]
    assert graph.extras["dim_params"] == {"batch": "batch", "seq": "seq"}


def test_names_that_are_no_identifiers_become_symbols_and_are_remembered() -> None:
    proto = model("(float[a,b,c,d] x) => (float[] y)", "y = Relu(x)")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    for dim, text in zip(dims, ["my batch", "my-batch", "lambda", "224"], strict=True):
        dim.dim_param = text
    graph = from_proto(proto)
    assert types(graph) == ["f32[d_my_batch, d_my_batch_2, d_lambda, d_224]"]
    expected = {"d_my_batch": "my batch", "d_my_batch_2": "my-batch", "d_lambda": "lambda", "d_224": "224"}
    assert graph.extras["dim_params"] == expected


def test_a_dimension_that_is_an_expression_is_kept_as_one() -> None:
    proto = model("(float[n,m] x) => (float[] y)", "y = Relu(x)")
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "2*n + 1"
    assert types(from_proto(proto)) == ["f32[n, 2*n+1]"]


def test_dimensions_without_name_get_distinct_symbols_that_clash_with_none() -> None:
    graph = read("(float[?,u1,?,?] x) => (float[] y)", "y = Relu(x)")
    (dims,) = [value.tensor.dims for value in graph.outputs]
    assert len(set(dims)) == 4
    assert all(isinstance(dim, str) for dim in dims)


def test_a_negative_dimension_is_an_unknown_one() -> None:
    proto = model("(float[n] x) => (float[] y)", "y = Relu(x)")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert types(from_proto(proto)) == ["f32[u0]"]


def test_a_bound_dimension_is_bound_in_all_inputs_and_results() -> None:
    graph = read(TWO, "y = Relu(x)", shapes={"x": (2, 5, 8)})
    assert inputs(graph) == ["x: f32[2, 5, 8]", "m: f32[2, 4]"]
    assert types(graph) == ["f32[2, 5, 8]"]


def test_bound_dimensions_are_declared_for_the_writer() -> None:
    graph = read(TWO, "y = Relu(x)", shapes={"x": (2, "length", 8)})
    declared: Any = graph.extras["declared"]
    assert {name: [str(dim) for dim in declared[name].shape] for name in "xmy"} == {
        "x": ["2", "length", "8"],
        "m": ["2", "4"],
        "y": ["2", "length", "8"],
    }


def test_declared_shapes_stay_as_they_are_without_binding() -> None:
    declared: Any = read("(float[a,?] x) => (float[] y)", "y = Relu(x)").extras["declared"]
    assert [dim if isinstance(dim, int) else dim.value for dim in declared["x"].shape] == ["a", None]
    assert declared["y"].shape is None or len(declared["y"].shape) == 0


def test_dimensions_can_be_renamed_at_once() -> None:
    graph = read("(float[a,b] x) => (float[a,b] y)", "y = Relu(x)", shapes={"x": ("b", "a")})
    assert inputs(graph) == ["x: f32[b, a]"]
    assert types(graph) == ["f32[b, a]"]


def test_an_input_of_unknown_rank_takes_any_shape() -> None:
    proto = model("(float[n] x) => (float[] y)", "y = Relu(x)")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert types(from_proto(proto, shapes={"x": (1, "n", 3)})) == ["f32[1, n, 3]"]


def test_a_nameless_dimension_can_be_bound() -> None:
    assert types(read("(float[?,3] x) => (float[] y)", "y = Relu(x)", shapes={"x": (7, 3)})) == ["f32[7, 3]"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 2, 3)}, "no input 'z'"),
        ({"x": (1, 2)}, "2 dimensions"),
        ({"x": (1, 2, 9)}, "contradicts"),
        ({"x": (1, 2, "n")}, "contradicts"),
        ({"x": (1, 2, 8), "m": (3, 4)}, "contradicts"),
        ({"x": (0, 2, 8)}, "isn't positive"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_with_a_remedy(shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(TWO, "y = Relu(x)", shapes=shapes)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def _with_default(ir_version: int) -> onnx.ModelProto:
    proto = model("(float[2] x, float[2] w) => (float[2] y)", "y = Add(x, w)", 9, ir_version)
    proto.graph.initializer.append(weight("w", np.array([1, 2], np.float32)))
    return proto


def test_an_initializer_that_is_an_input_is_its_default() -> None:
    graph = from_proto(_with_default(8))
    assert inputs(graph) == ["x: f32[2]", "w: f32[2]"]
    defaults: Any = graph.extras["defaults"]
    np.testing.assert_array_equal(defaults["w"].numpy(), [1, 2])


def test_before_ir_version_4_an_initializer_that_is_an_input_is_a_constant() -> None:
    graph = from_proto(_with_default(3))
    assert inputs(graph) == ["x: f32[2]"]
    node = graph.outputs[0].node
    assert node is not None
    assert constant(node.operands[1]) is not None
    assert graph.extras["defaults"] == {}


def test_outputs_keep_order_and_names_even_when_one_value_is_several() -> None:
    graph = read("(float[2] x) => (float[2] y, float[2] x, float[2] z)", "y = Relu(x) z = Identity(y)")
    assert graph.tail is not None
    assert graph.tail.op.names == ("y", "x", "z")  # type: ignore[attr-defined]
    assert graph.outputs[1] is graph.inputs[0]


def test_nodes_out_of_order_are_sorted() -> None:
    proto = model("(float[2] x) => (float[2] y)", "h = Relu(x) y = Exp(h)")
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [node.op.name for node in from_proto(proto)] == ["Relu", "Exp", "Return"]


def test_nodes_in_a_circle_are_refused() -> None:
    proto = model("(float[2] x) => (float[2] y)", "h = Add(x, y) y = Exp(h)")
    with pytest.raises(FrontendError, match="circle"):
        from_proto(proto)


def test_a_value_that_nothing_produces_is_refused_by_name() -> None:
    proto = model("(float[2] x) => (float[2] y)", "y = Exp(nowhere)")
    with pytest.raises(FrontendError, match="'nowhere'"):
        from_proto(proto)


def test_metadata_and_producer_are_kept_for_the_writer() -> None:
    proto = model("(float[2] x) => (float[2] y)", "y = Exp(x)")
    proto.producer_name, proto.producer_version = "pytorch", "2.13"
    onnx.helper.set_model_props(proto, {"author": "me"})
    graph = from_proto(proto)
    assert graph.extras["producer"] == "pytorch 2.13"
    assert graph.extras["metadata"] == {"author": "me"}
    assert graph.extras["ir_version"] == 8
    assert graph.opsets == {"": 18}
