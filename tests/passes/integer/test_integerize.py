"""Float graphs become integer graphs that compute nearly the same, or say why they don't."""

from __future__ import annotations

import numpy as np
import pytest
from integerizing import encoded, feeds_for, integerized

from planish.ir import ops
from planish.ir.errors import CalibrationError, RewriteError, UnsupportedOp, UsageError
from planish.ir.interpret import interpret
from planish.ir.parser import parse_graph
from planish.passes.base import Context, Pipeline
from planish.passes.integer import IntegerBoundary, Integerize

MLP = """
def g(x: f32[3, 4]):
    w: f32[4, 3] = Const(f32, [[0.5, -0.25, 0.125], [1.0, 0.75, -0.5], [0.3, 0.2, 0.1], [-0.6, 0.9, 1.1]])
    b: f32[3] = Const(f32, [0.1, -0.2, 0.3])
    y: f32[3, 3] = Linear()(x, w, b)
    z: f32[3, 3] = Gelu(approximate='none')(y)
    v: f32[3, 2] = Const(f32, [[0.5, -0.25], [1.0, 0.75], [-0.4, 0.2]])
    r: f32[3, 2] = Linear()(z, v)
    return r
"""

NORM = """
def g(x: f32[3, 4]):
    s: f32[4] = Const(f32, [1.5, -0.5, 1.0, 0.7])
    t: f32[4] = Const(f32, [0.25, 0.5, 0.0, -0.1])
    n: f32[3, 4] = LayerNorm(axis=-1, eps=1e-05)(x, s, t)
    w: f32[4, 4] = Const(f32, [[0.5, -0.25, 0.1, 1], [1.0, 0.75, 0.2, -1], [0.3, 0.2, 2, 0.1], [-0.6, 0.9, 1.1, 0.5]])
    y: f32[3, 4] = Linear()(n, w)
    r: f32[3, 4] = Add()(x, y)
    return r
"""

ATTENTION = """
def g(q: f32[1, 2, 6, 4], k: f32[1, 2, 6, 4], v: f32[1, 2, 6, 4]):
    y: f32[1, 2, 6, 4] = Attention(scale=0.5, causal=False)(q, k, v)
    return y
"""

MASKED = """
def g(q: f32[2, 2, 6, 4], k: f32[2, 2, 6, 4], v: f32[2, 2, 6, 4], mask: i64[2, 6]):
    u: i64[2, 1, 1, 6] = Unsqueeze(axes=(1, 2))(mask)
    none: i64[()] = Const(i64, 0)
    out: bool[2, 1, 1, 6] = Equal()(u, none)
    low: f32[()] = Const(f32, -3.4028235e+38)
    zero: f32[()] = Const(f32, 0.0)
    m: f32[2, 1, 1, 6] = Where()(out, low, zero)
    y: f32[2, 2, 6, 4] = Attention(scale=0.5, causal=False)(q, k, v, m)
    return y
"""

POOLED = """
def g(x: f32[2, 5, 4], mask: i64[2, 5]):
    u: i64[2, 5, 1] = Unsqueeze(axes=(2,))(mask)
    m: f32[2, 5, 1] = Cast(to=f32)(u)
    p: f32[2, 5, 4] = Mul()(x, m)
    s: f32[2, 4] = ReduceSum(axes=(-2,), keepdims=False)(p)
    c: f32[2, 1] = ReduceSum(axes=(-2,), keepdims=False)(m)
    k: f32[2, 1] = Clip(lo=1e-09, hi=None)(c)
    d: f32[2, 4] = Div()(s, k)
    l: f32[2, 1] = ReduceL2(axes=(-1,), keepdims=True)(d)
    q: f32[2, 1] = Clip(lo=1e-12, hi=None)(l)
    y: f32[2, 4] = Div()(d, q)
    return y
"""

CNN = """
def g(x: u8[1, 1, 6, 6]):
    f: f32[1, 1, 6, 6] = Cast(to=f32)(x)
    d: f32[()] = Const(f32, 255.0)
    a: f32[1, 1, 6, 6] = Div()(f, d)
    mean: f32[()] = Const(f32, 0.3)
    n: f32[1, 1, 6, 6] = Sub()(a, mean)
    w: f32[2, 1, 3, 3] = Const(f32, [[[[0.1, 0.2, -0.3], [0.4, 1.0, 0.5], [0, 0.2, 0.1]]],
                                     [[[0.3, 0.2, 0.3], [-0.4, 1.0, -0.5], [0, 0.2, 0.1]]]])
    b: f32[2] = Const(f32, [0.5, -0.25])
    y: f32[1, 2, 6, 6] = Conv(strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1)(n, w, b)
    z: f32[1, 2, 6, 6] = Clip(lo=0.0, hi=6.0)(y)
    p: f32[1, 2, 3, 3] = MaxPool(kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1))(z)
    g: f32[1, 2, 1, 1] = ReduceMean(axes=(-2, -1), keepdims=True)(p)
    h: f32[1, 2, 1, 1] = HardSigmoid(alpha=0.16666667, beta=0.5)(g)
    e: f32[1, 2, 3, 3] = Mul()(p, h)
    return e
"""

LINEAR_THEN_UNKNOWN = """
def g(x: f32[3, 4], y: f32[3, 3]):
    w: f32[4, 3] = Const(f32, [[0.5, -0.25, 0.125], [1.0, 0.75, -0.5], [0.3, 0.2, 0.1], [-0.6, 0.9, 1.1]])
    a: f32[3, 3] = Linear()(x, w)
    b: f32[3, 3] = Div()(a, y)
    c: f32[3, 3] = Relu()(b)
    return c
"""


@pytest.mark.parametrize(
    ("graph", "ops_made", "floor_db"),
    [
        (MLP, ["Quantize", "IntLinear", "Requantize", "IntTable", "IntLinear", "Dequantize"], 33),
        (NORM, ["Quantize", "IntLayerNorm", "IntLinear", "IntAdd", "Dequantize"], 38),
        (POOLED, ["Quantize", "Reshape", "Cast", "FromCodes", "IntWeightedMean", "Squeeze", "Requantize", "IntRMSNorm",
                  "Dequantize"], 30),
        (CNN, ["FromCodes", "IntTable", "IntConv", "Requantize", "MaxPool", "IntReduceSum", "ScaleBy", "Requantize",
               "IntTable", "IntMul", "Dequantize"], 28),
    ],
    ids=["mlp", "norm", "pooling", "cnn"],
)  # fmt: skip
def test_a_graph_becomes_integers_throughout(graph, ops_made, floor_db):
    result = integerized(graph)
    assert result.ops == ops_made
    assert result.changes.skipped == []
    assert result.sqnr_db > floor_db


def test_attention_divides_after_the_second_product():
    result = integerized(ATTENTION)
    assert [op for op in result.ops if op.startswith("Int")] == ["IntMatMul", "IntExp", "IntWeightedMean"]
    assert result.sqnr_db > 30


def test_an_additive_mask_becomes_places_to_keep():
    result = integerized(MASKED)
    exp = result.graph.nodes(ops.IntExp)[0]
    assert str(exp.operands[1].type) == "bool[2, 1, 1, 6]"
    assert result.changes.skipped == []
    assert result.sqnr_db > 28


def test_a_mask_of_other_numbers_leaves_attention_in_float():
    result = integerized(MASKED.replace("-3.4028235e+38", "-1.5"))
    assert [reason for _, reason in result.changes.skipped] == ["its mask isn't one of places that take part or not"]
    assert result.sqnr_db > 60


def test_relu_is_the_saturation_of_the_codes_before_it():
    result = integerized(MLP.replace("Gelu(approximate='none')", "Relu()"))
    assert result.ops == ["Quantize", "IntLinear", "Requantize", "IntLinear", "Dequantize"]
    requantized = result.graph.nodes(ops.Requantize)[0].op
    assert (requantized.to.name, requantized.zero) == ("u8", 0)


def test_bytes_are_their_own_codes():
    first = integerized(CNN).graph.nodes(ops.FromCodes)[0]
    assert str(first.result.type) == "q(u8, 1.0, 0)[1, 1, 6, 6]"


def test_what_has_no_integer_form_stays_and_so_do_light_ops_after_it():
    result = integerized(LINEAR_THEN_UNKNOWN)
    assert result.ops == ["Quantize", "IntLinear", "Dequantize", "Div", "Relu"]
    assert [reason for _, reason in result.changes.skipped] == [
        "its divisor is computed",
        "what it reads is in floating point",
    ]


def test_strict_names_what_has_no_integer_form():
    with pytest.raises(UnsupportedOp, match="2 nodes have no integer form; the first: its divisor is computed"):
        integerized(LINEAR_THEN_UNKNOWN, strict=True)


def test_a_node_can_be_kept_in_float_by_name():
    result = integerized(MLP, keep=("z",))
    assert "Gelu" in result.ops
    assert ("z", "it was asked to stay in floating point") in [(w.split(" ")[0], r) for w, r in result.changes.skipped]


def test_wide_activations_have_as_many_bits_as_sums_have_room_for():
    narrow, wide = integerized(MLP), integerized(MLP, wide=("y", "r"))
    first = wide.graph.nodes(ops.IntLinear)[0]
    assert first.operands[0].tensor.dtype.name == "i16"
    assert wide.changes.rewrites["16-bit activations"] == 2
    assert wide.sqnr_db > narrow.sqnr_db + 1


def test_noisy_activations_get_sixteen_bits_by_themselves():
    assert integerized(MLP, wide_below=60.0).changes.rewrites["16-bit activations"] == 2
    assert integerized(MLP, wide_below=20.0).changes.rewrites["16-bit activations"] == 0


def test_evening_out_moves_factors_from_a_norm_to_its_readers():
    scaled = NORM.replace("[1.5, -0.5, 1.0, 0.7]", "[150.0, -0.05, 1.0, 0.07]")
    assert integerized(scaled, equalize=0.5).sqnr_db > integerized(scaled, equalize=0.0).sqnr_db + 3


@pytest.mark.parametrize(("graph", "op"), [(MLP, ops.ShiftGelu), (NORM, ops.ShiftLayerNorm), (ATTENTION, ops.Shiftmax)])
def test_the_published_operators_are_a_profile(graph, op):
    result = integerized(graph, profile="ivit", calibration="minmax")
    assert len(result.graph.nodes(op)) == 1
    assert result.changes.skipped == []
    assert result.sqnr_db > 12


def test_an_unknown_profile_or_method_is_refused():
    with pytest.raises(UsageError, match="there is no profile 'best'"):
        integerized(MLP, profile="best")
    with pytest.raises(UsageError, match="there is no calibration method 'best'"):
        integerized(MLP, calibration="best")


def test_without_samples_nothing_is_done():
    with pytest.raises(RewriteError, match="needs calibration data"):
        Pipeline(Integerize()).run(parse_graph(MLP), Context())


def test_nan_in_an_activation_is_named():
    graph = parse_graph(MLP)
    feeds = feeds_for(graph)
    feeds[3]["x"][0, 0] = np.nan
    with pytest.raises(CalibrationError, match="NaN or infinity for calibration sample 3"):
        Integerize().run(graph, Context(calibration=feeds))


def test_nan_in_a_weight_leaves_the_layer_and_says_so():
    graph = parse_graph(MLP.replace("0.125]", "nan]"))
    with pytest.raises(CalibrationError, match="NaN"):
        Integerize().run(graph, Context(calibration=feeds_for(graph)))


def test_codes_at_the_border_are_written_down():
    result = integerized(MLP, IntegerBoundary())
    metadata = result.graph.extras["metadata"]
    assert str(result.graph.inputs[0].type) == "u8[3, 4]"
    assert result.outputs["r"].dtype == np.int32
    feed = feeds_for(result.before, 1, seed=1)[0]["x"]
    real = interpret(result.graph, encoded(result.graph, {"x": feed}))["r"] * float(metadata["planish.scale.r"])
    true = interpret(result.before, {"x": feed})["r"]
    assert np.max(np.abs(real - true)) < 0.05 * np.max(np.abs(true))


def test_an_input_that_is_read_as_float_stays_float():
    result = integerized(LINEAR_THEN_UNKNOWN, IntegerBoundary())
    assert [str(value.type) for value in result.graph.inputs] == ["u8[3, 4]", "f32[3, 3]"]
    assert ("y", "it is read as float") in result.changes.skipped


def test_the_same_samples_give_the_same_graph():
    assert integerized(MLP).text == integerized(MLP).text
