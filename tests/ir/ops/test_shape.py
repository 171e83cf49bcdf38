"""Shape and indexing ops: contents of shape tensors through exporter idioms, and evaluation against ONNX."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from planish.ir import dtypes
from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Value
from planish.ir.ops import (
    Add,
    Concat,
    ConstantOfShape,
    DynamicReshape,
    Equal,
    Expand,
    Gather,
    Mul,
    Opaque,
    Pad,
    Range,
    Reshape,
    Shape,
    Size,
    Slice,
    Split,
    Squeeze,
    Tile,
    Transpose,
    Unsqueeze,
    Where,
)
from planish.ir.types import OtherType, Quant, TensorType, tensor

f32, i64 = dtypes.f32, dtypes.i64


def given(*shape):
    return Value(tensor(f32, *shape), hint="x")


def ints(*values):
    return np.array(values, np.int64)


def scalar(value):
    return np.array(value, np.int64)


def reference(op_type, inputs, opset=17, outputs=1, **attributes):
    """What onnx.reference computes for one node."""
    names = [f"i{k}" for k in range(len(inputs))]
    node = helper.make_node(op_type, names, [f"o{k}" for k in range(outputs)], **attributes)
    declared = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    results = [helper.make_tensor_value_info(f"o{k}", TensorProto.UNDEFINED, None) for k in range(outputs)]
    graph = helper.make_graph([node], "g", declared, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))


def same(got, expected):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


# contents of shape tensors


def test_reshape_by_a_computed_shape_is_understood_when_built():
    x = given("batch", 197, 384)
    batch = Gather(0)(Shape()(x), scalar(0))
    target = Concat(0)(Unsqueeze((0,))(batch), ints(197), ints(6), ints(-1))
    assert target.type.known == ("batch", 197, 6, -1)
    assert DynamicReshape()(x, target).type == tensor(f32, "batch", 197, 6, 64)


def test_flattening_a_sum_of_symbols_cancels_the_common_dimension():
    x = given("batch*196+1", 6, 64)
    target = Concat(0)(Slice((0,), (1,), (0,), (1,))(Shape()(x)), ints(-1))
    assert DynamicReshape()(x, target).type == tensor(f32, "196*batch+1", 384) or DynamicReshape()(
        x, target
    ).type == tensor(f32, "batch*196+1", 384)


def test_arithmetic_on_sizes_reaches_the_target_shape():
    x = given("n", 14, 14, 384)
    shape = Shape()(x)
    area = Mul()(Gather(0)(shape, scalar(1)), Gather(0)(shape, scalar(2)))
    target = Concat(0)(*(Unsqueeze((0,))(v) for v in (Gather(0)(shape, scalar(0)), area, Gather(0)(shape, scalar(-1)))))
    assert DynamicReshape()(x, target).type == tensor(f32, "n", 196, 384)


def test_expand_with_minus_one_replaced_by_where_is_understood():
    wanted = ints(-1, 5, 384)
    token = given("n", 1, 384)
    ones = ConstantOfShape(Data(ints(1)))(ints(3))
    target = Where()(Equal()(wanted, ints(-1, -1, -1)), ones, wanted)
    assert Expand()(token, target).type == tensor(f32, "n", 5, 384)


def test_class_token_appended_to_patches_has_a_symbolic_length():
    patches, token = given("batch", "patches", 384), given("batch", 1, 384)
    joined = Concat(1)(token, patches)
    assert joined.type.shape == ("batch", "patches+1", 384)
    assert Slice((1,), (2**63 - 1,), (1,), (1,))(joined).type.shape == ("batch", "patches", 384)


def test_range_over_a_symbolic_length_is_that_long():
    x = given("n", 7)
    n = Gather(0)(Shape()(x), scalar(0))
    assert Range()(scalar(0), n, scalar(1)).type.shape == ("n",)
    assert Range()(scalar(0), Add()(n, scalar(2)), scalar(1)).type.shape == ("n+2",)
    with pytest.raises(VerifyError, match="negative length"):
        Range()(scalar(3), n, scalar(1))


def test_contents_survive_squeeze_tile_split_and_expand():
    shape = Shape()(given("n", 3))
    assert Size()(given("n", 3)).type.known == ("3*n",)
    assert Split(0, (1, 1))(shape)[1].type.known == (3,)
    assert Squeeze((0,))(Split(0, (1, 1))(shape)[0]).type == TensorType(i64, (), known=("n",))
    assert Tile((2,))(shape).type.known == ("n", 3, "n", 3)
    assert Expand()(scalar(4), ints(3)).type.known == (4, 4, 4)
    assert Slice((1,), (-5,), (0,), (-1,))(shape).type.known == (3, "n")
    assert Pad((1, 0), "constant", 9)(shape).type.known == (9, "n", 3)
    assert Reshape((-1,))(Gather(0)(shape, scalar(0))).type.known == ("n",)


def test_contents_of_high_rank_or_many_elements_are_not_kept():
    assert Unsqueeze((0,))(Shape()(given(2, 3))).type.known is None
    assert ConstantOfShape(Data(ints(1)))(ints(65)).type.known is None
    assert ConstantOfShape(Data(ints(1)))(ints(64)).type.known == (1,) * 64


@pytest.mark.parametrize(
    ("op", "operands"),
    [
        (DynamicReshape(), ()),
        (Expand(), ()),
    ],
)
def test_an_unknown_target_shape_is_refused(op, operands):
    with pytest.raises(VerifyError, match="aren't known"):
        op(given(2, 3), Value(tensor(i64, 2)), *operands)


# reshape


@pytest.mark.parametrize(
    ("source", "target", "spelled"),
    [
        (("n", 197, 384), ("n", 197, 6, 64), (0, 197, 6, 64)),
        (("n", 6, 4), (6, "n", 4), (6, -1, 4)),
        (("n", "m", 4), ("n", "m", 2, 2), (0, 0, 2, 2)),
        (("n", "m", 4), ("m", "n", 4), None),
        ((2, 0, 4), (0, 8), None),
        ((2, 3), (3, 2), (3, 2)),
        ((2, 3), (4, 2), None),
        ((1, 1), (), ()),
        (("n", 3), ("3*n",), (-1,)),
    ],
)
def test_reshape_spells_a_target_in_one_way(source, target, spelled):
    op = Reshape.to(tensor(f32, *source), target)
    assert op == (None if spelled is None else Reshape(spelled))
    if op is not None:
        assert op.infer(tensor(f32, *source)).shape == target


@pytest.mark.parametrize(
    ("source", "shape", "reason"),
    [
        ((2, 3), (5,), "don't fill"),
        ((2, 3), (-1, -1), "several"),
        ((2, 3), (2, 3, 0), "copies axis 2"),
        ((2, 3), (4, -1), "don't fill"),
        ((0, 3), (0, -1), "empty dimension"),
        ((2, 3), (-2, 3), "below -1"),
    ],
)
def test_reshape_refuses_what_cannot_be_filled(source, shape, reason):
    with pytest.raises(VerifyError, match=reason):
        Reshape(shape)(given(*source))


@pytest.mark.parametrize("shape", [(0, -1), (3, 0, 2), (-1,), (2, 3, 4), (4, 3, 2), (0, 0, 0)])
def test_reshape_evaluates_like_onnx_where_that_is_defined(shape):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    try:
        Reshape(shape)(Value(tensor(f32, 2, 3, 4)))
    except VerifyError:
        with pytest.raises(ValueError, match="reshape"):
            Reshape(shape).evaluate(x)
        return
    same(Reshape(shape).evaluate(x), reference("Reshape", [x, ints(*shape)])[0])
    same(DynamicReshape().evaluate(x, ints(*shape)), reference("Reshape", [x, ints(*shape)])[0])


def test_allow_zero_makes_an_empty_dimension():
    op = DynamicReshape(allow_zero=True)
    assert op(given(0, 3), ints(3, 0)).type.shape == (3, 0)
    assert op.evaluate(np.zeros((0, 3), np.float32), ints(3, 0)).shape == (3, 0)


# indexing against ONNX

BOUNDS = (-(2**63), -7, -5, -1, 0, 2, 4, 5, 9, 2**63 - 1)


@pytest.mark.parametrize("step", [1, 2, 7, -1, -2, -7])
def test_slice_clamps_like_onnx(step):
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    for start, end in itertools.product(BOUNDS, BOUNDS):
        op = Slice((start,), (end,), (1,), (step,))
        got = op.evaluate(x)
        assert op.infer(tensor(f32, 2, 5)).shape == got.shape, (start, end)
        first = min(max(start + 5 if start < 0 else start, 0), 5 if step > 0 else 4)
        last = end + 5 if end < 0 else end
        last = min(max(last, 0), 5) if step > 0 else min(max(last, -1), 4)
        same(got, x[:, list(range(first, last, step))])


@pytest.mark.parametrize(("start", "end", "step"), [(1, 4, 1), (-3, 2**63 - 1, 2), (-1, -(2**63), -1), (9, 0, -2)])
def test_slice_agrees_with_the_reference(start, end, step):
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    expected = reference("Slice", [x, ints(start), ints(end), ints(1), ints(step)])[0]
    same(Slice((start,), (end,), (1,), (step,)).evaluate(x), expected)


@pytest.mark.parametrize(
    ("extent", "start", "end", "step", "length"),
    [
        ("n", 0, 2**63 - 1, 1, "n"),
        ("n", 1, 2**63 - 1, 1, "n-1"),
        ("n", 0, -1, 1, "n-1"),
        ("n", 0, 1, 1, 1),
        ("n", -1, 2**63 - 1, 1, 1),
        ("2*n", 0, 2**63 - 1, 2, None),
        ("n", -1, -(2**63), -1, "n"),
        ("n", 0, 0, 1, 0),
    ],
)
def test_slice_of_a_symbolic_axis_follows_from_the_bounds(extent, start, end, step, length):
    result = Slice((start,), (end,), (0,), (step,))(given(extent, 4)).type.shape[0]
    assert result == ("((2*n+1)//(2))" if length is None else length)


@pytest.mark.parametrize(("start", "end", "step"), [(0, 5, 1), (2, 2**63 - 1, 1), (1, -1, 1), (5, 0, -1), (-1, 5, 1)])
def test_slice_of_a_symbolic_axis_is_refused_where_clamping_may_matter(start, end, step):
    with pytest.raises(VerifyError, match=r"no known length|may lie outside"):
        Slice((start,), (end,), (0,), (step,))(given("n", 4))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("indices", [np.array(-1), np.array([[0, -2], [1, 1]]), np.zeros((0,), np.int64)])
def test_gather_takes_negative_indices_like_onnx(axis, indices):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    got = Gather(axis).evaluate(x, indices)
    same(got, np.asarray(reference("Gather", [x, indices], axis=axis)[0]))
    assert Gather(axis)(x, indices).type.shape == got.shape


def test_gather_refuses_a_known_index_out_of_bounds():
    with pytest.raises(VerifyError, match="index 3 is out of bounds of extent 3"):
        Gather(0)(given(3), scalar(3))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(1, 0, 0, 2), (0, 2, 1, 3), (0, 0, 0, 0)])
def test_pad_agrees_with_the_reference(mode, pads):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    inputs = [x, ints(*pads), *([np.array(-1.5, np.float32)] if mode == "constant" else [])]
    got = Pad(pads, mode, -1.5).evaluate(x)
    same(got, reference("Pad", inputs, opset=19, mode=mode)[0])
    assert Pad(pads, mode)(given(3, 4)).type.shape == got.shape


def test_pad_with_negative_numbers_cuts_before_it_fills():
    x = np.arange(5, dtype=np.int64)
    same(Pad((-2, 1), "constant", 7).evaluate(x), ints(2, 3, 4, 7))
    assert Pad((-2, 1), "constant", 7)(given("n")).type.shape == ("n-1",)
    with pytest.raises(VerifyError, match="more than"):
        Pad((-4, -2))(given(5))


def test_split_agrees_with_the_reference():
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    got = Split(1, (1, 0, 5)).evaluate(x)
    for part, expected in zip(got, reference("Split", [x, ints(1, 0, 5)], outputs=3, axis=1), strict=True):
        same(part, expected)
    with pytest.raises(VerifyError, match="sum up"):
        Split(1, (1, 4))(given(2, 6))


@pytest.mark.parametrize(
    ("op_type", "op", "inputs", "attributes"),
    [
        ("Transpose", Transpose((2, 0, 1)), [np.arange(24.0).reshape(2, 3, 4)], {"perm": [2, 0, 1]}),
        ("Expand", Expand(), [np.arange(3.0).reshape(3, 1), ints(2, 1, 4)], {}),
        ("Expand", Expand(), [np.arange(3.0), ints(1)], {}),
        ("Tile", Tile((2, 0)), [np.arange(6.0).reshape(2, 3)], None),
        ("Tile", Tile((1, 3)), [np.arange(6.0).reshape(2, 3)], None),
        ("Range", Range(), [scalar(10), scalar(-3), scalar(-4)], {}),
        ("Range", Range(), [scalar(3), scalar(3), scalar(1)], {}),
        ("Range", Range(), [np.array(0, np.float32), np.array(1, np.float32), np.array(0.3, np.float32)], {}),
        ("Shape", Shape(), [np.zeros((2, 0, 3))], {}),
        ("Size", Size(), [np.zeros((2, 4, 3))], {}),
        ("Concat", Concat(1), [np.ones((2, 1)), np.zeros((2, 0)), np.ones((2, 3))], {"axis": 1}),
    ],
)
def test_op_agrees_with_the_reference(op_type, op, inputs, attributes):
    extra = [ints(*op.repeats)] if attributes is None else []
    expected = np.asarray(reference(op_type, [*inputs, *extra], **(attributes or {}))[0])
    got = op.evaluate(*inputs)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if op_type != "Range" or inputs[0].dtype == np.int64:
        assert op(*inputs).type.shape == got.shape


def test_constant_of_shape_fills_with_its_value_and_type():
    op = ConstantOfShape(Data(np.array([2.5], np.float16)))
    same(op.evaluate(ints(2, 0)), np.zeros((2, 0), np.float16))
    same(op.evaluate(ints()), np.array(2.5, np.float16))
    assert op(Shape()(given("n", 2))).type == tensor(dtypes.f16, "n", 2)


# operands that don't fit


@pytest.mark.parametrize(
    ("op", "operands"),
    [
        (Concat(2), [given(2, 3)]),
        (Concat(0), [given(2, 3), given(2, 4)]),
        (Concat(0), []),
        (Transpose((0, 0)), [given(2, 3)]),
        (Squeeze((0,)), [given(2, 3)]),
        (Squeeze((1, 0)), [given(1, 1)]),
        (Unsqueeze((5,)), [given(2)]),
        (Tile((2,)), [given(2, 3)]),
        (Pad((1,)), [given(2)]),
        (Shape(), [Value(TensorType(f32, None))]),
        (Shape(), [Value(OtherType("seq"))]),
        (Gather(0), [given(2), given(1)]),
        (Gather(0), [None, np.array(0)]),
    ],
)
def test_operands_that_do_not_fit_are_refused(op, operands):
    with pytest.raises(VerifyError):
        op(*operands)


def test_quantization_per_channel_moves_with_transpose_and_stops_reshape():
    weights = Value(TensorType(dtypes.i8, (2, 3), Quant((0.1, 0.2), 0, axis=0)))
    assert Transpose((1, 0))(weights).type.quant == Quant((0.1, 0.2), 0, axis=1)
    with pytest.raises(VerifyError, match="per channel"):
        Reshape((3, 2))(weights)


@pytest.mark.parametrize(
    ("op_type", "domain", "pure"),
    [
        ("Det", "", True),
        ("FusedMatMul", "com.microsoft", True),
        ("RandomNormalLike", "", False),
        ("Multinomial", "", False),
        ("Dropout", "", False),
        ("If", "", False),
        ("Det", "my.domain", False),
    ],
)
def test_opaque_op_is_pure_only_where_that_is_sure(op_type, domain, pure):
    assert Opaque(op_type, domain, 17, (), (tensor(f32),)).pure is pure


def test_opaque_ops_are_equal_only_with_the_same_payload():
    payload = [1]
    types = (TensorType(i64, (1,), known=(3,)),)
    one = Opaque("If", "", 17, (), types, (), payload)
    assert one == Opaque("If", "", 17, (), (tensor(i64, 1),), (), payload)
    assert one != Opaque("If", "", 17, (), types, (), [1])
    assert hash(one) == hash(Opaque("If", "", 17, (), types, (), [1]))
