"""Each historical spelling of an op becomes the one spelling of the IR."""

from __future__ import annotations

import numpy as np
import pytest
from reading import live, model, only, ops, read, types, weight

from planish.frontend.reader import from_proto
from planish.ir.interpret import interpret
from planish.ir.op import constant

X = "(float[2,3,4] x) => (float[2,3,4] y)"
ANY = "(float[2,3,4] x) => (float[] y)"

REDUCTIONS = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_axes_of_a_reduction_as_attribute_and_as_input_read_the_same(op: str) -> None:
    old = read(ANY, f"y = {op}<axes=[1, -1], keepdims=0>(x)", 13)
    new = read(ANY, f"a = Constant<value_ints=[2, 1]>() y = {op}<keepdims=0>(x, a)", 18)
    assert live(old) == live(new)
    assert f"{op}(axes=(-2, -1), keepdims=False)(x)" in live(new)


def test_axes_of_reduce_sum_became_an_input_in_operator_set_13() -> None:
    old = read(ANY, "y = ReduceSum<axes=[0]>(x)", 11)
    new = read(ANY, "a = Constant<value_ints=[-3]>() y = ReduceSum(x, a)", 13)
    assert live(old) == live(new)
    assert "ReduceSum(axes=(-3,), keepdims=True)(x)" in live(new)


@pytest.mark.parametrize("opset", [11, 18, 23])
def test_a_reduction_without_axes_is_over_all_of_them(opset: int) -> None:
    assert only(read(ANY, "y = ReduceMax<keepdims=0>(x)", opset)).axes == (-3, -2, -1)


def test_a_reduction_that_is_asked_to_do_nothing_is_the_identity() -> None:
    assert ops(read(ANY, "y = ReduceMean<noop_with_empty_axes=1>(x)", 18)) == ["Identity"]


def test_axes_of_a_reduction_that_are_computed_at_run_time_are_carried() -> None:
    graph = read("(float[2,3] x, int64[1] a) => (float[] y)", "y = ReduceMean(x, a)", 18)
    assert ops(graph) == ["[ReduceMean]"]
    assert graph.extras["carried"] == {"ReduceMean_y": "operand 1 isn't constant"}


def test_arg_max_counts_its_axis_from_the_end() -> None:
    assert "ArgMax(axis=-3, keepdims=True)(x)" in live(read("(float[2,3,4] x) => (int64[] y)", "y = ArgMax(x)", 13))


def test_squeeze_and_unsqueeze_with_axes_as_attribute_and_as_input_read_the_same() -> None:
    old = read(ANY, "u = Unsqueeze<axes=[-1, 0]>(x) y = Squeeze<axes=[4, 0]>(u)", 11)
    new = read(
        ANY,
        "a = Constant<value_ints=[0, 4]>() b = Constant<value_ints=[0, -1]>() u = Unsqueeze(x, a) y = Squeeze(u, b)",
        13,
    )
    assert live(old) == live(new)
    assert "Unsqueeze(axes=(0, 4))(x)" in live(new)


def test_squeeze_without_axes_removes_all_dimensions_of_one() -> None:
    assert only(read("(float[1,3,1] x) => (float[] y)", "y = Squeeze(x)", 13)).axes == (0, 2)


def test_squeeze_without_axes_of_a_symbolic_dimension_is_carried() -> None:
    assert ops(read("(float[1,n] x) => (float[] y)", "y = Squeeze(x)", 13)) == ["[Squeeze]"]


@pytest.mark.parametrize(("opset", "count"), [(7, ""), (13, ""), (18, "num_outputs=2")])
def test_an_equal_split_states_its_sizes(opset: int, count: str) -> None:
    graph = read("(float[2,4] x) => (float[] a, float[] b)", f"a, b = Split<axis=-1, {count or 'axis=1'}>(x)", opset)
    assert (only(graph).axis, only(graph).sizes) == (1, (2, 2))


def test_split_sizes_as_attribute_and_as_input_read_the_same() -> None:
    signature = "(float[2,4] x) => (float[] a, float[] b)"
    old = read(signature, "a, b = Split<axis=1, split=[1, 3]>(x)", 11)
    new = read(signature, "s = Constant<value_ints=[1, 3]>() a, b = Split<axis=-1>(x, s)", 13)
    assert live(old) == live(new)


def test_an_uneven_split_leaves_the_rest_to_the_last_part() -> None:
    graph = read("(float[7] x) => (float[] a, float[] b, float[] c)", "a, b, c = Split<num_outputs=3>(x)", 18)
    assert only(graph).sizes == (3, 3, 1)


def test_slice_bounds_as_attributes_and_as_inputs_read_the_same() -> None:
    old = read(ANY, "y = Slice<axes=[2, 0], starts=[1, 0], ends=[-1, 9223372036854775807]>(x)", 9)
    new = read(
        ANY,
        "s = Constant<value_ints=[0, -3]>() e = Constant<value_ints=[2, 3]>() "
        "a = Constant<value_ints=[0, -1]>() y = Slice(x, s, e, a)",
        13,
    )
    assert live(old) == live(new)
    assert "Slice(starts=(0, 1), ends=(2, 3), axes=(0, 2), steps=(1, 1))(x)" in live(new)


def test_a_slice_backwards_keeps_its_bounds() -> None:
    graph = read(
        ANY,
        "s = Constant<value_ints=[-1]>() e = Constant<value_ints=[-9223372036854775808]>() "
        "a = Constant<value_ints=[2]>() t = Constant<value_ints=[-1]>() y = Slice(x, s, e, a, t)",
    )
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(interpret(graph, {"x": x})["y"], x[:, :, ::-1])


def test_pad_amounts_as_attribute_and_as_input_read_the_same() -> None:
    signature = "(float[2,3] x) => (float[] y)"
    old = read(signature, "y = Pad<pads=[0, 1, 0, 2], value=2.5>(x)", 10)
    mid = read(
        signature, "p = Constant<value_ints=[0, 1, 0, 2]>() v = Constant<value_float=2.5>() y = Pad(x, p, v)", 13
    )
    new = read(
        signature,
        "p = Constant<value_ints=[1, 2]>() v = Constant<value_float=2.5>() a = Constant<value_ints=[-1]>() "
        "y = Pad(x, p, v, a)",
        18,
    )
    assert live(old) == live(mid) == live(new)


def test_clip_bounds_as_attributes_and_as_inputs_read_the_same() -> None:
    old = read(X, "y = Clip<min=0.0, max=6.0>(x)", 7)
    new = read(X, "a = Constant<value_float=0.0>() b = Constant<value_float=6.0>() y = Clip(x, a, b)", 13)
    assert live(old) == live(new)
    assert "Clip(lo=0.0, hi=6.0)(x)" in live(new)


def test_clip_with_one_bound_leaves_the_other_open() -> None:
    old = read(X, "y = Clip<max=0.1>(x)", 7)
    new = read(X, "b = Constant<value_float=0.1>() y = Clip(x, , b)", 13)
    assert live(old) == live(new)
    assert (only(new).lo, only(new).hi) == (None, 0.1)


def test_clip_between_computed_bounds_is_a_maximum_and_a_minimum() -> None:
    graph = read("(float[2] x, float a, float b) => (float[2] y)", "y = Clip(x, a, b)", 13)
    assert ops(graph) == ["Max", "Min"]


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 22])
def test_dropout_at_inference_is_the_identity(opset: int) -> None:
    assert ops(read(X, "y = Dropout(x)", opset)) == ["Identity"]


def test_dropout_whose_mask_is_used_is_carried() -> None:
    graph = read("(float[2] x) => (float[2] y, bool[2] m)", "y, m = Dropout(x)", 13)
    assert ops(graph) == ["[Dropout]"]


def test_dropout_in_training_mode_is_carried() -> None:
    body = "r = Constant<value_float=0.5>() t = Constant<value = bool {1}>() y = Dropout(x, r, t)"
    assert ops(read(X, body, 13)) == ["[Dropout]"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_over_the_last_axis_reads_the_same_in_all_operator_sets(op: str) -> None:
    old, new = read(X, f"y = {op}<axis=2>(x)", 11), read(X, f"y = {op}(x)", 13)
    assert live(old) == live(new)
    assert f"{op}(axis=-1)(x)" in live(new)


def test_old_softmax_flattens_everything_from_its_axis_on() -> None:
    graph = read(X, "y = Softmax(x)", 11)
    assert ops(graph) == ["Reshape", "Softmax", "Reshape"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    flat = np.exp(x.reshape(2, 12))
    expected = (flat / flat.sum(-1, keepdims=True)).reshape(2, 3, 4)
    np.testing.assert_allclose(interpret(graph, {"x": x})["y"], expected, rtol=1e-5)


def test_new_softmax_over_an_inner_axis_stays_one_op() -> None:
    assert only(read(X, "y = Softmax<axis=1>(x)", 13)).axis == -2


@pytest.mark.parametrize(
    "spelling",
    [
        "value_ints=[1, 2]",
        "value = int64[2] {1, 2}",
    ],
)
def test_constants_of_all_spellings_read_the_same(spelling: str) -> None:
    assert "Const(i64, [1, 2])" in live(read("() => (int64[2] y)", f"y = Constant<{spelling}>()", 13))


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("value_int=3", np.array(3)),
        ("value_float=0.1", np.array(0.1, np.float32)),
        ("value_floats=[0.5, 1.5]", np.array([0.5, 1.5], np.float32)),
        ('value_string="a"', np.array("a", object)),
        ('value_strings=["a", "b"]', np.array(["a", "b"], object)),
    ],
)
def test_a_constant_attribute_gives_its_array(spelling: str, expected: np.ndarray) -> None:
    graph = from_proto(model("() => (float[] y)", f"y = Constant<{spelling}>()", 13))
    data = constant(graph.outputs[0])
    assert data is not None
    assert data.numpy().dtype == expected.dtype
    np.testing.assert_array_equal(data.numpy(), expected)


@pytest.mark.parametrize(("op", "binary"), [("Max", "Max"), ("Min", "Min"), ("Sum", "Add")])
def test_an_op_of_many_operands_is_a_chain_of_two(op: str, binary: str) -> None:
    signature = "(float[2] a, float[2] b, float[2] c) => (float[2] y)"
    assert ops(read(signature, f"y = {op}(a, b, c)", 13)) == [binary, binary]
    assert ops(read(signature, f"y = {op}(a, b)", 13)) == [binary]
    assert ops(read(signature, f"y = {op}(a)", 13)) == ["Identity"]


def test_the_mean_of_operands_is_their_sum_divided() -> None:
    graph = read("(float[2] a, float[2] b, float[2] c) => (float[2] y)", "y = Mean(a, b, c)", 13)
    arrays = {name: np.array(v, np.float32) for name, v in {"a": [1, 2], "b": [2, 4], "c": [6, 9]}.items()}
    np.testing.assert_allclose(interpret(graph, arrays)["y"], [3, 5])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("", ["Linear"]),
        ("alpha=1.0, beta=1.0", ["Linear"]),
        ("transA=1", ["Transpose", "Linear"]),
        ("alpha=2.0", ["Linear", "Mul", "Add"]),
        ("beta=0.5", ["Linear", "Mul", "Add"]),
    ],
)
def test_gemm_is_linear_with_its_factors_around_it(attributes: str, expected: list[str]) -> None:
    signature = "(float[4,4] x, float[4,4] w, float[4] b) => (float[4,4] y)"
    graph = read(signature, f"y = Gemm<{attributes or 'transA=0'}>(x, w, b)", 13)
    assert ops(graph) == expected
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 4), (4, 4), (4,)))
    alpha, beta = 2.0 if "alpha=2" in attributes else 1.0, 0.5 if "beta=0.5" in attributes else 1.0
    left = x.T if "transA=1" in attributes else x
    found = interpret(graph, {"x": x, "w": w, "b": b})["y"]
    np.testing.assert_allclose(found, alpha * (left @ w) + beta * b, rtol=1e-4, atol=1e-5)


def test_a_transposed_constant_of_gemm_becomes_the_constant_the_other_way_round() -> None:
    proto = model("(float[2,3] x) => (float[2,4] y)", "y = Gemm<transB=1>(x, w)", 13)
    w = np.arange(12, dtype=np.float32).reshape(4, 3)
    proto.graph.initializer.append(weight("w", w))
    graph = from_proto(proto)
    assert ops(graph) == ["Linear"]
    data = constant(graph.nodes()[-1].operands[1] if graph.nodes() else graph.outputs[0].node.operands[1])  # type: ignore[union-attr]
    assert data is not None
    np.testing.assert_array_equal(data.numpy(), w.T)


def test_a_transposed_constant_that_others_read_too_is_kept_once() -> None:
    proto = model(
        "(float[2,3] x, int64[1] i) => (float[2,4] y, float[] z)", "y = Gemm<transB=1>(x, w) z = Gather(w, i)"
    )
    proto.graph.initializer.append(weight("w", np.zeros((4, 3), np.float32)))
    assert ops(from_proto(proto)) == ["Transpose", "Linear", "Gather"]


@pytest.mark.parametrize(
    ("attributes", "pads"),
    [
        ("pads=[1, 0, 2, 1]", (1, 0, 2, 1)),
        ('auto_pad="VALID"', (0, 0, 0, 0)),
        ('auto_pad="SAME_UPPER", strides=[2, 2]', (0, 0, 1, 1)),
        ('auto_pad="SAME_LOWER", strides=[2, 2]', (1, 1, 0, 0)),
        ('auto_pad="SAME_UPPER"', (1, 1, 1, 1)),
    ],
)
def test_padding_of_a_convolution_is_resolved(attributes: str, pads: tuple[int, ...]) -> None:
    graph = read("(float[1,3,8,8] x, float[5,3,3,3] w) => (float[] y)", f"y = Conv<{attributes}>(x, w)", 13)
    assert only(graph).pads == pads


def test_automatic_padding_of_a_symbolic_extent_with_stride_is_carried() -> None:
    body = 'y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)'
    assert ops(read("(float[1,3,h,w] x, float[5,3,3,3] w) => (float[] y)", body, 13)) == ["[Conv]"]


@pytest.mark.parametrize("attributes", ["epsilon=0.001", "epsilon=0.001, training_mode=0", "epsilon=0.001, spatial=1"])
def test_batch_normalization_for_inference_reads_the_same_in_all_operator_sets(attributes: str) -> None:
    opset = 7 if "spatial" in attributes else 14 if "training" in attributes else 9
    signature = "(float[2,3] x, float[3] g, float[3] b, float[3] m, float[3] v) => (float[] y)"
    graph = read(signature, f"y = BatchNormalization<{attributes}>(x, g, b, m, v)", opset)
    assert "BatchNorm(eps=0.001)(x, g, b, m, v)" in live(graph)


@pytest.mark.parametrize(("opset", "attributes"), [(7, "spatial=0"), (14, "training_mode=1")])
def test_other_batch_normalization_is_carried(opset: int, attributes: str) -> None:
    signature = "(float[2,3] x, float[3] g, float[3] b, float[3] m, float[3] v) => (float[] y)"
    body = f"y = BatchNormalization<{attributes}>(x, g, b, m, v)"
    assert ops(read(signature, body, opset)) == ["[BatchNormalization]"]


def test_layer_normalization_whose_statistics_are_used_is_carried() -> None:
    signature = "(float[2,3] x, float[3] g) => (float[] y, float[] m)"
    assert ops(read(signature, "y, m = LayerNormalization(x, g)", 17)) == ["[LayerNormalization]"]
    assert ops(read("(float[2,3] x, float[3] g) => (float[] y)", "y, m = LayerNormalization(x, g)", 17)) == [
        "LayerNorm"
    ]


def test_a_shape_of_some_dimensions_is_a_slice_of_the_shape() -> None:
    graph = read("(float[2,n,4] x) => (int64[] y)", "y = Shape<start=-2, end=3>(x)", 15)
    assert ops(graph) == ["Shape", "Slice"]
    assert graph.outputs[0].tensor.known == ("n", 4)


@pytest.mark.parametrize("target", ["[0, -1]", "[2, 12]", "[-1, 12]", "[0, 12]"])
def test_reshapes_of_all_spellings_to_one_static_shape_read_the_same(target: str) -> None:
    graph = read(ANY, f"s = Constant<value_ints={target}>() y = Reshape(x, s)", 13)
    assert "Reshape(shape=(2, 12))(x)" in live(graph)


def test_a_target_shape_that_is_computed_from_the_input_is_read_as_a_constant_one() -> None:
    body = (
        "s = Shape(x) i = Constant<value_int=0>() n = Gather(s, i) a = Constant<value_ints=[0]>() m = Unsqueeze(n, a) "
        "r = Constant<value_ints=[-1]>() t = Concat<axis=0>(m, r) y = Reshape(x, t)"
    )
    assert "Reshape(shape=(0, 12))(x)" in live(read("(float[batch,3,4] x) => (float[] y)", body, 13))


def test_a_target_shape_that_comes_from_float_arithmetic_on_constants_is_known() -> None:
    body = (
        "n = Constant<value_float=196.0>() h = Constant<value_float=0.5>() p = Pow(n, h) i = Cast<to=7>(p) "
        "a = Constant<value_ints=[0]>() s = Unsqueeze(i, a) t = Concat<axis=0>(s, s) y = Reshape(x, t)"
    )
    graph = read("(float[196] x) => (float[] y)", body, 13)
    assert only(graph).shape == (14, 14)
    assert types(graph) == ["f32[14, 14]"]


def test_a_target_shape_that_is_an_input_is_carried() -> None:
    graph = read("(float[2,3] x, int64[2] s) => (float[] y)", "y = Reshape(x, s)", 13)
    assert ops(graph) == ["[Reshape]"]
    assert types(graph) == ["f32[u0, u1]"]


def test_flatten_is_a_reshape() -> None:
    graph = read("(float[n,3,4] x) => (float[] y)", "y = Flatten(x)", 13)
    assert only(graph).shape == (0, 12)


def test_a_cast_of_strings_is_carried() -> None:
    assert ops(read("(string[2] x) => (float[2] y)", "y = Cast<to=1>(x)", 13)) == ["[Cast]"]


def test_float_attributes_are_the_shortest_decimals() -> None:
    assert only(read(X, "y = LeakyRelu<alpha=0.1>(x)", 13)).alpha == 0.1


@pytest.mark.parametrize("op", ["Gelu", "HardSwish"])
def test_newer_activations_are_read(op: str) -> None:
    assert ops(read(X, f"y = {op}(x)", 22)) == [op]


def test_attention_of_four_dimensions_is_read_with_its_default_scale() -> None:
    signature = "(float[1,4,5,16] q, float[1,2,7,16] k, float[1,2,7,16] v) => (float[] y)"
    op = only(read(signature, "y = Attention(q, k, v)", 23))
    assert (op.name, op.scale, op.causal) == ("Attention", 0.25, False)


def test_attention_of_three_dimensions_splits_and_merges_its_heads() -> None:
    signature = "(float[n,5,64] q, float[n,7,32] k, float[n,7,32] v) => (float[] y)"
    graph = read(signature, "y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)", 23)
    assert ops(graph).count("Attention") == 1
    assert types(graph) == ["f32[n, 5, 64]"]


def test_attention_with_a_cache_is_carried() -> None:
    signature = (
        "(float[1,2,5,8] q, float[1,2,7,8] k, float[1,2,7,8] v, float[1,2,3,8] c) => (float[] y, float[] p, float[] r)"
    )
    assert ops(read(signature, "y, p, r = Attention(q, k, v, , c, c)", 23)) == ["[Attention]"]


def test_rotary_embedding_with_positions_gathers_its_tables() -> None:
    signature = "(float[1,2,5,8] x, float[9,4] c, float[9,4] s, int64[1,5] p) => (float[] y)"
    assert ops(read(signature, "y = RotaryEmbedding(x, c, s, p)", 23)) == ["Gather", "Gather", "RotaryEmbedding"]


def test_a_group_norm_is_carried() -> None:
    signature = "(float[1,4,5] x, float[4] g, float[4] b) => (float[] y)"
    graph = read(signature, "y = GroupNormalization<num_groups=2>(x, g, b)", 21)
    assert ops(graph) == ["[GroupNormalization]"]
    assert types(graph) == ["f32[1, 4, 5]"]
