"""Text form of quantized graphs: types with few and many scales, constants that are codes."""

import numpy as np
import pytest

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.ops.int_softmax import EXP_SCALE
from planish.ir.text import constants_of, parse_graph, print_graph
from planish.ir.types import Quant, TensorType
from planish.ir.verify import verify

RNG = np.random.default_rng(19)


def weight(rows, columns, per_channel=True):
    codes = RNG.integers(-127, 128, (rows, columns)).astype(np.int8)
    scales = tuple(RNG.uniform(1e-3, 1e-2, columns).tolist())
    return Data(codes, Quant(scales, 0, 1) if per_channel else Quant((0.01,)))


def block(columns=384, per_channel=True):
    """Quantize -> IntLinear -> Requantize -> IntExp -> IntWeightedMean with itself -> Dequantize."""
    graph = Graph("block")
    x = graph.add_input("x", TensorType(dtypes.f32, ("batch", 8)))
    w = weight(8, columns, per_channel)
    sums = w.type.quant.times(0.02)
    b = Data(RNG.integers(-9, 9, columns).astype(np.int32), Quant(sums.scale, 0, 0 if per_channel else None))
    codes = ops.Quantize(0.02, 128, dtypes.u8)(x)
    logits = ops.Requantize(EXP_SCALE, 0, dtypes.i16)(ops.IntLinear()(codes, w, b))
    v = Data(RNG.integers(-127, 128, (columns, 3)).astype(np.int8), Quant((0.1,)))
    mean = ops.IntWeightedMean(7)(ops.IntExp()(logits), v)
    table = Data(RNG.integers(0, 256, 256).astype(np.uint8))
    small = ops.IntTable(0.5, 3, dtypes.u8)(ops.Requantize(0.1, 0, dtypes.i8)(mean), table)
    out = ops.Dequantize()(ops.IntAdd(0.25, -4, dtypes.i16)(ops.ScaleBy(0.125)(mean), small))
    graph.attach(out, None, Loc(("block",)))
    graph.add(Return(("y",)), out)
    verify(graph)
    return graph


def again(graph):
    return parse_graph(print_graph(graph), constants_of(graph))


@pytest.mark.parametrize(("columns", "per_channel"), [(384, True), (4, True), (5, True), (1, True), (384, False)])
def test_a_quantized_graph_survives_print_and_parse(columns, per_channel):
    graph = block(columns, per_channel)
    copy = again(graph)
    assert print_graph(copy) == print_graph(graph)
    verify(copy)
    for node, twin in zip(graph, copy, strict=True):
        assert (twin.op, [r.type for r in twin.results]) == (node.op, [r.type for r in node.results])
    x = RNG.normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_array_equal(interpret(copy, {"x": x})["y"], interpret(graph, {"x": x})["y"])


def test_few_scales_are_written_out_and_many_by_number_and_digest():
    few, many = print_graph(block(4)), print_graph(block(384))
    assert "scales(" not in few
    assert "scales(384, " in many
    assert "axis=1" in few
    assert "axis=1" in many
    assert max(map(len, many.splitlines())) < 160


def test_scales_that_differ_have_digests_that_differ():
    scales = [0.5] * 9
    first = TensorType(dtypes.i8, (9,), Quant(tuple(scales), 0, 0))
    scales[4] = float(np.nextafter(0.5, 1))
    assert str(first) != str(TensorType(dtypes.i8, (9,), Quant(tuple(scales), 0, 0)))


@pytest.mark.parametrize(
    "type_",
    [
        TensorType(dtypes.u8, ("batch", 4), Quant((0.1,), 128)),
        TensorType(dtypes.i16, (4,), Quant((2.0**-24,))),
        TensorType(dtypes.i8, (2, 3), Quant((0.1, 1e-30, 7.0), 0, 1)),
        TensorType(dtypes.i8, (1, 2), Quant((0.3,), -5, 0)),
        TensorType(dtypes.i32, (), Quant((1 / 3,))),
    ],
)
def test_the_type_of_an_input_is_read_back_to_the_bit(type_):
    graph = Graph("g")
    graph.add(Return(("y",)), graph.add_input("x", type_))
    copy = again(graph)
    assert copy.inputs[0].type == type_


def test_small_constants_of_codes_keep_their_scale():
    graph = Graph("g")
    data = Data(np.array([1, -2, 3], np.int8), Quant((0.25,), 1))
    out = ops.Dequantize()(data)
    graph.attach(out, None, Loc(("c",)))
    graph.add(Return(("y",)), out)
    copy = again(graph)
    assert copy.nodes(ops.Const)[0].op.data == data
    np.testing.assert_array_equal(interpret(copy, {})["y"], [0.0, -0.75, 0.5])


def test_constants_with_the_same_integers_and_other_scales_differ():
    codes = np.array([1, -2, 3], np.int8)
    one, other, plain = Data(codes, Quant((0.25,))), Data(codes, Quant((0.5,))), Data(codes)
    assert len({one, other, plain, Data(codes, Quant((0.25,)))}) == 3
    assert len({one.digest, other.digest, plain.digest}) == 3


def test_codes_take_no_part_in_shape_arithmetic():
    codes = np.array([1, 2, 3], np.int32)
    assert Data(codes).type.known == (1, 2, 3)
    assert Data(codes, Quant((0.5,))).type.known is None


TEXT = """def g(x: q(u8, 0.5, 3)[batch, 4]):
    y: q(i8, 0.25, -1)[batch, 4] = Requantize(scale=0.25, zero=-1, to=i8)(x)
    return y
"""


def test_the_text_of_a_quantized_graph_parses():
    graph = parse_graph(TEXT)
    assert print_graph(graph) == TEXT
    assert graph.outputs[0].type == TensorType(dtypes.i8, ("batch", 4), Quant((0.25,), -1))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("y: q(i8, 0.25, -1)", "y: q(i8, 0.5, -1)"),
        ("y: q(i8, 0.25, -1)", "y: q(i8, 0.25, 0)"),
        ("y: q(i8, 0.25, -1)", "y: q(u8, 0.25, -1)"),
        ("y: q(i8, 0.25, -1)", "y: i8"),
        ("y: q(i8, 0.25, -1)[batch, 4]", "y: q(i8, 0.25, -1)[batch, 5]"),
        ("y: q(i8, 0.25, -1)", "y: q(i8, scales(5, '00000000'), -1, axis=1)"),
    ],
)
def test_an_annotation_that_is_not_what_the_op_gives_is_refused(right, wrong):
    assert right in TEXT
    with pytest.raises(VerifyError, match="the annotation says"):
        parse_graph(TEXT.replace(right, wrong))


def test_a_digest_or_a_count_of_scales_that_is_not_the_op_s_is_refused():
    graph = block(384)
    text, constants = print_graph(graph), constants_of(graph)
    line = next(part for part in text.splitlines() if "IntLinear" in part)
    digest = line.split("scales(384, '")[1][:8]
    for wrong in (
        line.replace(digest, "0" * 8),
        line.replace("scales(384", "scales(383"),
        line.replace("axis=1", "axis=0"),
    ):
        assert wrong != line
        with pytest.raises(VerifyError, match="the annotation says"):
            parse_graph(text.replace(line, wrong), constants)


@pytest.mark.parametrize(
    ("right", "wrong", "match"),
    [
        ("q(u8, 0.5, 3)", "q(u8, 0.5)", "no element type"),
        ("q(u8, 0.5, 3)", "q(u8, '0.5', 3)", "is no number"),
        ("q(u8, 0.5, 3)", "q(u8, 0.5, 3.5)", "no element type"),
        ("q(u8, 0.5, 3)", "q(word, 0.5, 3)", "no element type"),
        ("q(u8, 0.5, 3)", "q(u8, scales(4, 'abcdabcd'), 3, axis=1)", "is no attribute|scales|no element type|is no"),
        ("q(u8, 0.5, 3)", "f32", "codes with a scale"),
    ],
)
def test_types_that_make_no_sense_are_refused(right, wrong, match):
    with pytest.raises(VerifyError, match=match):
        parse_graph(TEXT.replace(right, wrong, 1))
