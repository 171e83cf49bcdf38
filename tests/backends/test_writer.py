"""The ONNX writer: operator-set choice, spellings of old operator sets, interface, carried nodes, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest

from planish.backends.onnx.dialect import ORT_CPU, STANDARD, Spellings
from planish.backends.onnx.opsets import choose
from planish.backends.onnx.writer import build, write
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.errors import UnsupportedOp, UsageError
from planish.ir.graph import Graph, Value
from planish.ir.loc import Loc
from planish.ir.op import Op, Return
from planish.ir.types import TensorType, tensor

f32 = dtypes.f32


def graph_of(op: Op, *shapes: tuple[int, ...], opset: int = 17, dtype: dtypes.DType = f32) -> Graph:
    """A graph of one op: inputs x0, x1, ..., outputs y0, y1, ..."""
    graph = Graph()
    graph.opsets = {"": opset}
    values = [graph.add_input(f"x{i}", tensor(dtype, *shape)) for i, shape in enumerate(shapes)]
    node = graph.add(op, *values, loc=Loc(("node",)))
    graph.add(Return(tuple(f"y{i}" for i in range(len(node.results)))), *node.results)
    return graph


def proto(graph: Graph, opset: int | None = None, spellings: Spellings = ORT_CPU) -> onnx.ModelProto:
    """The written model, which ONNX's checker accepts."""
    model = onnx_ir.to_proto(build(graph, opset=opset, spellings=spellings))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, feeds: list[np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip((i.name for i in session.get_inputs()), feeds, strict=True)))


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def randoms(*shapes: tuple[int, ...], dtype: np.dtype | type = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(shape) * 3).astype(dtype) for shape in shapes]


EVERYWHERE: list[tuple[Op, list[tuple[int, ...]]]] = [
    (ops.Reshape((0, -1)), [(2, 3, 4)]),
    (ops.Transpose((1, 0, 2)), [(2, 3, 4)]),
    (ops.Concat(1), [(2, 3), (2, 4)]),
    (ops.Split(1, (1, 2)), [(2, 3)]),
    (ops.Slice((1,), (3,), (1,), (1,)), [(2, 4)]),
    (ops.Squeeze((1,)), [(2, 1, 3)]),
    (ops.Unsqueeze((0, 3)), [(2, 3)]),
    (ops.Tile((2, 1)), [(2, 3)]),
    (ops.Pad((0, 1, 0, 2), "constant", 1.5), [(2, 3)]),
    (ops.Clip(-0.5, None), [(2, 3)]),
    (ops.Clip(None, 0.5), [(2, 3)]),
    (ops.ReduceSum((-2,), True), [(2, 3, 4)]),
    (ops.ReduceMean((-2, -1), False), [(2, 3, 4)]),
    (ops.ReduceMax((-1,), False), [(2, 3, 4)]),
    (ops.ArgMax(-1, False), [(2, 3, 4)]),
    (ops.Softmax(-1), [(2, 3, 4)]),
    (ops.Softmax(-2), [(2, 3, 4)]),
    (ops.LogSoftmax(-3), [(2, 3, 4)]),
    (ops.LayerNorm(-1, 1e-5), [(2, 3, 4), (4,), (4,)]),
    (ops.LayerNorm(-2, 1e-5), [(2, 3, 4)]),
    (ops.RMSNorm(-1, 1e-5), [(2, 3, 4), (4,)]),
    (ops.BatchNorm(1e-5), [(2, 3, 4, 4), (3,), (3,), (3,), (3,)]),
    (ops.InstanceNorm(1e-5), [(2, 3, 4, 4), (3,), (3,)]),
    (ops.MatMul(), [(2, 3, 4), (4, 5)]),
    (ops.Linear(), [(2, 3, 4), (4, 5), (5,)]),
    (ops.Linear(), [(3, 4), (4, 5), (5,)]),
    (ops.Linear(), [(3, 4), (4, 5)]),
    (ops.Conv((1, 1), (1, 1, 1, 1), (1, 1), 1), [(1, 2, 5, 5), (3, 2, 3, 3), (3,)]),
    (ops.Attention(0.5), [(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)]),
    (ops.Swish(), [(2, 3)]),
    (ops.HardSwish(), [(2, 3)]),
    (ops.HardSigmoid(0.2, 0.5), [(2, 3)]),
    (ops.LeakyRelu(0.1), [(2, 3)]),
    (ops.Gelu("tanh"), [(2, 3)]),
    (ops.RotaryEmbedding(), [(1, 2, 3, 4), (1, 3, 2), (1, 3, 2)]),
]


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12, 13, 17, 18, 20, 23, 24])
@pytest.mark.parametrize(("op", "shapes"), EVERYWHERE, ids=[repr(op) for op, _ in EVERYWHERE])
def test_an_op_means_the_same_in_every_operator_set(op: Op, shapes: list[tuple[int, ...]], opset: int) -> None:
    feeds = randoms(*shapes)
    if isinstance(op, ops.BatchNorm):
        feeds[4] = np.abs(feeds[4])
    expected = op.evaluate(*feeds)
    found = run(proto(graph_of(op, *shapes, opset=opset), opset), feeds)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for want, got in zip(expected, found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spellings", [STANDARD, ORT_CPU], ids=["standard", "ort-cpu"])
@pytest.mark.parametrize(("op", "shapes"), EVERYWHERE, ids=[repr(op) for op, _ in EVERYWHERE])
def test_an_op_means_the_same_in_every_spelling(op: Op, shapes: list[tuple[int, ...]], spellings: Spellings) -> None:
    feeds = randoms(*shapes)
    if isinstance(op, ops.BatchNorm):
        feeds[4] = np.abs(feeds[4])
    expected = op.evaluate(*feeds)
    found = run(proto(graph_of(op, *shapes), spellings=spellings), feeds)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for want, got in zip(expected, found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def residual(norm: Op, readers: int = 1, dtype: dtypes.DType = f32, skip: tuple[int, ...] = (2, 3, 4)) -> Graph:
    """A norm of a sum; the sum has so many readers."""
    graph = Graph()
    graph.opsets = {"": 17}
    a, b = graph.add_input("a", tensor(dtype, 2, 3, 4)), graph.add_input("b", tensor(dtype, *skip))
    total = graph.add(ops.Add(), a, b).result
    found = [graph.add(norm, total).result, *(graph.add(ops.Relu(), total).result for _ in range(readers - 1))]
    graph.add(Return(tuple(f"y{i}" for i in range(readers))), *found)
    return graph


@pytest.mark.parametrize("skip", [(2, 3, 4), (3, 4), (1, 3, 4), (4,)])
@pytest.mark.parametrize("opset", [13, 17])
def test_a_sum_that_a_layer_norm_alone_reads_is_kept_apart_from_it(skip: tuple[int, ...], opset: int) -> None:
    feeds = randoms((2, 3, 4), skip)
    model = proto(residual(ops.LayerNorm(-1, 1e-5), skip=skip), opset)
    assert "Sum" in op_types(model)
    np.testing.assert_allclose(
        run(model, feeds)[0], ops.LayerNorm(-1, 1e-5).evaluate(feeds[0] + feeds[1]), rtol=1e-4, atol=1e-5
    )


def test_other_sums_stay_what_they_are() -> None:
    others = [
        residual(ops.LayerNorm(-1, 1e-5), readers=2),
        residual(ops.LayerNorm(-1, 1e-5), dtype=dtypes.f64),
        residual(ops.RMSNorm(-1, 1e-5)),
        residual(ops.Relu()),
    ]
    for graph in others:
        assert "Sum" not in op_types(proto(graph))
    assert "Sum" not in op_types(proto(residual(ops.LayerNorm(-1, 1e-5)), spellings=STANDARD))


def test_an_op_that_the_operator_set_lacks_is_refused_with_its_source() -> None:
    with pytest.raises(UnsupportedOp, match="Erf can't be expressed in ONNX operator set 8") as caught:
        build(graph_of(ops.Erf(), (2,)), opset=8)
    assert caught.value.where == "node"
    with pytest.raises(UnsupportedOp, match="Slice with steps"):
        build(graph_of(ops.Slice((0,), (4,), (0,), (2,)), (4,)), opset=9)


def test_a_boolean_comparison_keeps_nan_apart_in_old_operator_sets() -> None:
    x = np.array([1, 2, np.nan], np.float32)
    y = np.array([1, 1, 1], np.float32)
    for opset in (11, 13):
        (found,) = run(proto(graph_of(ops.LessOrEqual(), (3,), (3,), opset=opset), opset), [x, y])
        assert found.tolist() == [True, False, False]


# operator set


def test_the_source_operator_set_is_kept_when_nothing_needs_a_newer_one() -> None:
    assert choose(graph_of(ops.Relu(), (2,), opset=15), ORT_CPU).opset == 15


def test_a_modelled_op_raises_the_operator_set_to_its_own() -> None:
    graph = graph_of(ops.LayerNorm(-1, 1e-5), (2, 4), opset=11)
    choice = choose(graph, ORT_CPU)
    assert (choice.opset, choice.reason) == (17, "raised from 11 for LayerNorm")
    assert op_types(proto(graph)) == ["LayerNormalization"]


def test_a_carried_node_that_would_change_its_meaning_holds_the_operator_set_back() -> None:
    graph = graph_of(ops.LayerNorm(-1, 1e-5), (2, 4), opset=11)
    opaque = ops.Opaque("Hardmax", "", 11, (("axis", 1),), (tensor(f32, 2, 4),))
    _carry_before_return(graph, opaque)
    choice = choose(graph, ORT_CPU)
    assert choice.opset == 12
    assert "Hardmax changes its meaning after 12" in choice.reason
    assert "LayerNormalization" not in op_types(proto(graph))
    with pytest.raises(UnsupportedOp, match="Hardmax of operator set 11 means something else in operator set 13"):
        build(graph, opset=13)


def test_a_carried_node_inside_a_subgraph_holds_the_operator_set_back_too() -> None:
    graph, _ = _graph_with_if("Hardmax", "")
    assert choose(graph, STANDARD).opset == 12


# interface


def test_names_and_declared_shapes_of_the_interface_are_kept() -> None:
    graph = Graph()
    graph.opsets = {"": 17}
    x = graph.add_input("in put", TensorType(f32, ("d_batch_size", 3)))
    graph.add_input("unused", tensor(dtypes.i64, 2))
    graph.extras["dim_params"] = {"d_batch_size": "batch size"}
    y = graph.add(ops.Relu(), x, hint="unused").result
    weight = graph.add(ops.Const(Data(np.ones(3, np.float32))), hint="w").result
    graph.add(Return(("y", "again", "x", "w")), y, y, x, weight)
    model = proto(graph)
    assert [i.name for i in model.graph.input] == ["in put", "unused"]
    assert [o.name for o in model.graph.output] == ["y", "again", "x", "w"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch size"
    feed = np.array([[-1, 0, 2]], np.float32)
    found = run(model, [feed, np.zeros(2, np.int64)])
    for want, got in zip((np.maximum(feed, 0), np.maximum(feed, 0), feed, np.ones(3)), found, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_default_of_an_input_is_written_back() -> None:
    graph = graph_of(ops.Add(), (2,), (2,))
    graph.extras["defaults"] = {"x1": Data(np.array([1, 2], np.float32))}
    model = proto(graph)
    assert [i.name for i in model.graph.input] == ["x0", "x1"]
    session = ort.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x0": np.zeros(2, np.float32)})
    assert found.tolist() == [1, 2]


def test_inner_names_are_made_unique_and_never_take_an_interface_name() -> None:
    graph = Graph()
    graph.opsets = {"": 17}
    x = graph.add_input("x", tensor(f32, 2))
    a = graph.add(ops.Relu(), x, hint="y").result
    b = graph.add(ops.Neg(), a, hint="x").result
    c = graph.add(ops.Exp(), b, hint="t").result
    d = graph.add(ops.Abs(), c, hint="t").result
    graph.add(Return(("y",)), d)
    assert [node.output[0] for node in proto(graph).graph.node] == ["y_1", "x_1", "t", "y"]


def test_provenance_is_written_on_nodes() -> None:
    graph = graph_of(ops.Relu(), (2,))
    assert graph.head is not None
    graph.head.loc = Loc(("a", "b"), "encoder.0", ("fuse",))
    (node,) = proto(graph).graph.node
    assert {p.key: p.value for p in node.metadata_props} == {
        "planish.sources": "a,b",
        "planish.scope": "encoder.0",
        "planish.via": "fuse",
    }


# carried nodes


def test_an_omitted_operand_and_an_omitted_result_stay_omitted() -> None:
    graph = Graph()
    graph.opsets = {"": 13}
    x = graph.add_input("x", tensor(f32, 3, 1, 2))
    w = graph.add(ops.Const(Data(np.full((1, 8, 2), 0.1, np.float32))), hint="w").result
    r = graph.add(ops.Const(Data(np.full((1, 8, 2), 0.2, np.float32))), hint="r").result
    h = graph.add(ops.Const(Data(np.ones((1, 1, 2), np.float32))), hint="h").result
    types = (tensor(f32, 3, 1, 1, 2), tensor(f32, 1, 1, 2))
    node = graph.add(ops.Opaque("LSTM", "", 13, (("hidden_size", 2),), types), x, w, r, None, None, h)
    node.results[1].hint = "last"
    graph.add(Return(("last",)), node.results[1])
    (written,) = proto(graph).graph.node
    assert list(written.input) == ["x", "w", "r", "", "", "h"]
    assert list(written.output) == ["", "last"]


def test_attributes_of_every_kind_are_written_back() -> None:
    attrs = (("i", 1), ("f", 1.5), ("s", "text"), ("is", (1, 2)), ("fs", (1.5, 2.0)), ("ss", ("a", "b")))
    attrs += (("t", Data(np.arange(3, dtype=np.int64))),)  # type: ignore[assignment]
    graph = graph_of(ops.Opaque("Custom", "my.domain", 1, attrs, (tensor(f32, 2),)), (2,))
    graph.opsets["my.domain"] = 1
    (node,) = onnx_ir.to_proto(build(graph)).graph.node
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (found["i"], found["f"], found["s"]) == (1, 1.5, b"text")
    assert (list(found["is"]), list(found["fs"]), list(found["ss"])) == ([1, 2], [1.5, 2.0], [b"a", b"b"])
    assert onnx.numpy_helper.to_array(found["t"]).tolist() == [0, 1, 2]


def test_a_subgraph_reads_the_new_name_of_a_captured_value() -> None:
    graph, value = _graph_with_if("Relu", "inner")
    value.hint = "inner"  # the name that a value inside the branch has
    model = proto(graph)
    for flag, want in ((True, [0.0, 2.0]), (False, [-1.0, 2.0])):
        (found,) = run(model, [np.array(flag), np.array([-1, 2], np.float32)])
        assert found.tolist() == want


def _carry_before_return(graph: Graph, op: Op) -> None:
    terminal = graph.tail
    assert terminal is not None
    node = graph.add(op, terminal.operands[0])
    graph.set_operand(terminal, 0, node.result)


def _graph_with_if(op_type: str, result: str) -> tuple[Graph, Value]:
    """A graph with an If whose branches read an outer value "outer": one applies `op_type`, one passes it on."""
    branch = f"{result or 'made'} = {op_type} (outer)"
    text = f"""<ir_version: 10, opset_import: ["" : 11]>
    main (bool flag, float[2] x) => (float[2] y) {{
        outer = Identity (x)
        y = If (flag) <
            then_branch = yes () => (float[2] {result or "made"}) {{ {branch} }},
            else_branch = no () => (float[2] passed) {{ passed = Identity (outer) }}
        >
    }}"""
    source = onnx_ir.from_proto(onnx.parser.parse_model(text))
    payload = source.graph[1]
    graph = Graph()
    graph.opsets = {"": 11}
    flag, x = graph.add_input("flag", tensor(dtypes.boolean)), graph.add_input("x", tensor(f32, 2))
    outer = graph.add(ops.Abs() if op_type == "Hardmax" else ops.Identity(), x, hint="outer").result
    branches = ops.Opaque("If", "", 11, (), (tensor(f32, 2),), ("outer",), payload)
    graph.add(Return(("y",)), graph.add(branches, flag, outer).result)
    return graph, outer


# files


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = graph_of(ops.LayerNorm(-1, 1e-5), (2, 4))
    write(graph, tmp_path / "a.onnx")
    write(graph.clone()[0], tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_large_weights_go_beside_the_model_and_load_again(tmp_path: Path) -> None:
    graph, weight = Graph(), np.arange(1024, dtype=np.float32)
    graph.opsets = {"": 17}
    x = graph.add_input("x", tensor(f32, 1024))
    y = graph.add(ops.Add(), x, graph.add(ops.Const(Data(weight)), hint="w").result).result
    graph.add(Return(("y",)), y)
    written = write(graph, tmp_path / "m.onnx", external_data="always")
    assert [file.name for file in written.files] == ["m.onnx", "m.onnx.data"]
    assert written.files[0].stat().st_size < 1024 < written.files[1].stat().st_size
    session = ort.InferenceSession(str(written.files[0]))
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(1024, np.float32)})[0], weight)


def test_weights_from_a_data_file_are_taken_in_or_refused_to_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "source.data").write_bytes(np.arange(1024, dtype=np.float32).tobytes())
    origin = onnx_ir.ExternalTensor(
        "source.data", 0, 4096, onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape([1024]), name="w", base_dir=tmp_path
    )
    graph = Graph()
    graph.opsets = {"": 17}
    x = graph.add_input("x", tensor(f32, 1024))
    constant = ops.Const(Data.lazy(tensor(f32, 1024), origin.numpy, origin))
    graph.add(Return(("y",)), graph.add(ops.Add(), x, graph.add(constant, hint="w").result).result)
    (tmp_path / "elsewhere").mkdir()
    written = write(graph, tmp_path / "elsewhere" / "m.onnx")
    session = ort.InferenceSession(str(written.files[0]))
    assert session.run(None, {"x": np.zeros(1024, np.float32)})[0][-1] == 1023
    with pytest.raises(UsageError, match="would be overwritten"):
        write(graph, tmp_path / "source", external_data="always")
