"""Interval analysis of integer ops: sampled evaluations stay inside, and overflow is seen exactly where it can be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph
from planish.ir.int_ranges import overflows
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.ops.int_softmax import EXP_SCALE
from planish.ir.ranges import Interval, ranges
from planish.ir.types import Quant, TensorType

MOST = 2**31 - 1


def coded(dtype, *shape, scale=0.5, zero=0):
    return TensorType(dtype, shape, Quant((scale,), zero))


def graph_of(*inputs, build):
    """A graph with inputs x0, x1, .. of the given types and the values that `build` makes of them as outputs."""
    graph = Graph()
    values = [graph.add_input(f"x{i}", type_) for i, type_ in enumerate(inputs)]
    made = build(*values)
    made = made if isinstance(made, tuple) else (made,)
    for i, value in enumerate(made):
        graph.attach(value, None, Loc(("made",)))
        value.hint = f"y{i}"
    graph.add(Return(tuple(f"y{i}" for i in range(len(made)))), *made)
    return graph


def applied(op, *types):
    """A graph that applies one op to inputs of the given types."""
    return graph_of(*types, build=op)


def bound_of(graph, **inputs):
    return ranges(graph, inputs)[graph.outputs[0]]


def weights(codes, axis=None, scale=0.25):
    array = np.asarray(codes, np.int8)
    return Data(array, Quant((scale,) * (1 if axis is None else array.shape[axis]), 0, axis))


# bounds that are exact


@pytest.mark.parametrize(
    ("interval", "expected"), [(None, (-128 * 5 - 127 * 3 - 1000, 127 * 5 + 128 * 3 + 7)), ((0, 10), (-1030, 57))]
)
def test_a_linear_layer_is_bounded_column_by_column(interval, expected):
    b = Data(np.array([-1000, 7], np.int32), Quant((0.125,)))
    w = weights([[5, 1], [-3, 4], [0, 0]])
    graph = graph_of(coded(dtypes.i8, 2, 3), build=lambda x: ops.IntLinear()(x, w, b))
    if interval is None:  # the first column has the least, the second, of weights 1 and 4, isn't the sum of both
        assert bound_of(graph) == Interval(-128 * 5 - 127 * 3 - 1000, 127 * 5 + 7)
    else:
        assert bound_of(graph, x0=Interval(*interval)) == Interval(expected[0], expected[1])


def test_zero_points_are_taken_off():
    w = weights([[2], [-1]])
    graph = graph_of(coded(dtypes.u8, 2, zero=100), build=lambda x: ops.IntLinear()(x, w))
    assert bound_of(graph) == Interval(-100 * 2 - 155, 155 * 2 + 100)


def test_a_bias_that_is_computed_adds_its_bounds():
    w = weights([[2], [-1]])
    graph = graph_of(
        coded(dtypes.i8, 2), coded(dtypes.i32, 1, scale=0.125), build=lambda x, b: ops.IntLinear()(x, w, b)
    )
    found = ranges(graph, {"x0": Interval(0, 10), "x1": Interval(-5, 6)})[graph.outputs[0]]
    assert found == Interval(-10 - 5, 20 + 6)


def test_weights_that_are_computed_count_by_their_bounds_and_number():
    graph = applied(ops.IntLinear(), coded(dtypes.i8, 4, 6), coded(dtypes.i8, 6, 3))
    assert bound_of(graph) == Interval(-128 * 127 * 6, 128 * 128 * 6)


def test_padding_of_a_convolution_counts_as_zero():
    w = weights(np.full((1, 1, 2, 2), 3))
    for pads, least in (((0, 0, 0, 0), 4 * 3 * 10), ((1, 0, 0, 0), 0)):
        op = ops.IntConv((1, 1), pads, (1, 1))
        graph = graph_of(coded(dtypes.u8, 1, 1, 4, 4, zero=10), build=lambda x, op=op: op(x, w))
        assert bound_of(graph, x0=Interval(20, 30)) == Interval(least, 4 * 3 * 20)


def test_a_matrix_product_is_bounded_by_products_and_the_inner_extent():
    graph = applied(ops.IntMatMul(), coded(dtypes.u8, 3, 7, zero=128), coded(dtypes.i8, 7, 2))
    assert bound_of(graph) == Interval(-128 * 127 * 7, 128 * 128 * 7)


def test_a_product_of_signs_is_bounded_by_the_inner_extent():
    graph = applied(ops.IntBinaryMatMul(), coded(dtypes.i8, 3, 7), coded(dtypes.i8, 7, 2))
    assert bound_of(graph) == Interval(-7, 7)


def test_products_of_elements_and_squares():
    graph = applied(ops.IntMul(), coded(dtypes.i8, 3), coded(dtypes.u8, 3, zero=5))
    assert bound_of(graph) == Interval(-128 * 250, 127 * 250)
    square = graph_of(coded(dtypes.i8, 3), build=lambda a: ops.IntMul()(a, a))
    assert bound_of(square) == Interval(0, 128 * 128)
    assert bound_of(square, x0=Interval(3, 5)) == Interval(9, 25)


def test_sums_are_bounded_by_the_number_of_terms():
    graph = applied(ops.IntReduceSum((-2, -1)), coded(dtypes.u8, 2, 3, 4, zero=7))
    assert bound_of(graph) == Interval(-7 * 12, 248 * 12)


def test_a_mean_lies_among_its_terms():
    def build(e, v):
        return ops.IntWeightedMean(7)(e, v)

    graph = graph_of(coded(dtypes.u8, 3, "rows"), coded(dtypes.i8, "rows", 2), build=build)
    assert bound_of(graph) == Interval(-128 * 128, 127 * 128)
    assert bound_of(graph, x1=Interval(3, 5)) == Interval(0, 5 * 128)


@pytest.mark.parametrize(
    ("scale", "expected"), [(1.0, (-64, 64)), (0.5, (-128, 127)), (100.0, (-1, 1)), (2.0, (-32, 32))]
)
def test_requantizing_rounds_and_saturates_bounds(scale, expected):
    graph = applied(ops.Requantize(scale, 0, dtypes.i8), coded(dtypes.i8, 3))
    assert bound_of(graph) == Interval(*expected)


def test_requantizing_takes_the_widest_channel_and_the_zero_point():
    x = TensorType(dtypes.i32, (2, 3), Quant((0.5, 4.0, 0.25), 0, 1))
    graph = applied(ops.Requantize(1.0, 10, dtypes.i16), x)
    assert bound_of(graph, x0=Interval(-3, 5)) == Interval(-12 + 10, 20 + 10)


def test_sums_of_two_scales_saturate():
    graph = applied(ops.IntAdd(0.5, 3, dtypes.i16), coded(dtypes.i8, 3), coded(dtypes.u8, 3, zero=128))
    assert bound_of(graph) == Interval(-256 + 3, 254 + 3)
    graph = applied(ops.IntAdd(0.5, 3, dtypes.i8), coded(dtypes.i8, 3), coded(dtypes.i8, 3))
    assert bound_of(graph) == Interval(-128, 127)


def test_a_table_is_bounded_by_the_entries_that_can_be_reached():
    table = Data(np.concatenate([np.full(128, -100), np.arange(128)]).astype(np.int8))
    graph = graph_of(coded(dtypes.i8, 3), build=lambda x: ops.IntTable(0.5)(x, table))
    assert bound_of(graph) == Interval(-100, 127)
    assert bound_of(graph, x0=Interval(5, 9.5)) == Interval(5, 9)


def test_softmax_numerators_and_shifts():
    graph = applied(ops.IntExp(), coded(dtypes.i16, 2, 9, scale=EXP_SCALE))
    assert bound_of(graph) == Interval(0, 255)
    near = bound_of(graph, x0=Interval(10, 20))
    assert near == Interval(float(fixedpoint.exp_table(EXP_SCALE, 255, 256)[10]), 255)
    masked = applied(ops.IntExp(), coded(dtypes.i16, 2, 9, scale=EXP_SCALE), TensorType(dtypes.boolean, (2, 9)))
    assert bound_of(masked, x0=Interval(10, 20)) == Interval(0, 255)
    assert bound_of(applied(ops.IntSoftmax(100), coded(dtypes.i16, 2, 9))) == Interval(0, 100)
    assert bound_of(applied(ops.Shiftmax(), coded(dtypes.i16, 2, 9))) == Interval(0, 32767)


def test_gelu_by_shifts_is_bounded_by_what_its_codes_give():
    graph = applied(ops.ShiftGelu(), coded(dtypes.i8, 3, scale=0.05))
    x = np.arange(-128, 128).astype(np.int8)
    y = interpret(applied(ops.ShiftGelu(), coded(dtypes.i8, 256, scale=0.05)), {"x0": x})["y0"]
    assert bound_of(graph) == Interval(float(y.min()), float(y.max()))


def test_codes_are_bounded_at_the_border():
    graph = applied(ops.Quantize(0.5, 10, dtypes.u8), TensorType(dtypes.f32, (3,)))
    assert bound_of(graph) == Interval(0, 255)
    assert bound_of(graph, x0=Interval(-1.1, 3.1)) == Interval(8, 16)
    graph = graph_of(coded(dtypes.u8, 3, zero=10), build=lambda x: ops.Dequantize()(ops.ScaleBy(2.0)(x)))
    assert bound_of(graph) == Interval(-10.0, 245.0)
    graph = graph_of(TensorType(dtypes.u8, (3,)), build=lambda x: ops.ToCodes()(ops.FromCodes(0.5, 3)(x)))
    assert bound_of(graph, x0=Interval(3, 9)) == Interval(3, 9)


# soundness


KINDS = [dtypes.u8, dtypes.i8, dtypes.i16]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_sampled_evaluations_stay_inside_the_bounds(seed):
    rng = np.random.default_rng(seed)
    graph, limits = random_integer_graph(rng)
    found = ranges(graph, limits)
    proved = overflows(graph, found) == []
    outside = []

    def tap(value, array):
        if not found[value].holds(array):
            outside.append((value, found[value], array.min(), array.max()))

    for corner in (None, "lo", "hi", "mixed"):
        feeds = {v.hint: sample(rng, v, limits[v.hint], corner) for v in graph.inputs}
        try:
            interpret(graph, feeds, taps=tap)
        except VerifyError:
            assert not proved
    assert outside == []


def sample(rng, value, limit, corner):
    dtype, shape = value.tensor.dtype, value.tensor.shape
    lo, hi = int(limit.lo), int(limit.hi)
    if corner == "mixed":
        return np.where(rng.random(shape) < 0.5, lo, hi).astype(dtype.storage)
    if corner is not None:
        return np.full(shape, lo if corner == "lo" else hi, dtype.storage)
    return rng.integers(lo, hi, shape, endpoint=True).astype(dtype.storage)


def random_integer_graph(rng):
    """Three layers of random integer ops on [4, 6] codes, and the intervals of the inputs."""
    graph, limits = Graph(), {}
    values = []
    for i in range(2):
        dtype = KINDS[rng.integers(len(KINDS))]
        zero = int(rng.integers(dtype.min, dtype.max)) if rng.random() < 0.5 and dtype != dtypes.i16 else 0
        zero = zero if rng.random() < 0.7 else 0
        ends = sorted(rng.integers(dtype.min, dtype.max, 2, endpoint=True).tolist())
        value = graph.add_input(f"x{i}", coded(dtype, 4, 6, scale=float(rng.uniform(0.01, 0.1)), zero=zero))
        limits[value.hint] = Interval(*map(float, ends if rng.random() < 0.7 else (dtype.min, dtype.max)))
        values.append(value)
    for _ in range(12):
        x, y = (values[i] for i in rng.integers(len(values), size=2))
        try:
            made = proposal(rng, x, y)
        except VerifyError:
            continue
        graph.attach(made, None, Loc(("random",)))
        values.append(made)
    graph.add(Return(("y",)), values[-1])
    return graph, limits


def proposal(rng, x, y):
    """A random op on x, or on x and y. Raises VerifyError if they don't fit."""
    target = (float(rng.uniform(0.01, 0.5)), 0, KINDS[rng.integers(len(KINDS))])
    columns = int(rng.integers(1, 7))
    w = Data(rng.integers(-128, 128, (x.tensor.dims[-1], columns)).astype(np.int8), Quant((0.01,) * columns, 0, 1))
    table = Data(rng.integers(-128, 128, 256 if x.tensor.dtype.bits == 8 else 65536).astype(np.int8))

    def scores():
        return ops.IntMatMul()(x, ops.Transpose((1, 0))(y))

    options = [
        scores,
        lambda: ops.IntLinear()(x, w),
        lambda: ops.IntMul()(x, y),
        lambda: ops.IntReduceSum((-1,))(x),
        lambda: ops.IntAdd(*target)(x, y),
        lambda: ops.Requantize(*target)(x),
        lambda: norm(rng, x, x.tensor.dims[-1]),
        lambda: ops.IntExp()(x),
        lambda: ops.IntSoftmax(int(rng.integers(1, 256)))(x),
        lambda: ops.Shiftmax()(x),
        lambda: ops.IntWeightedMean(int(rng.integers(0, 9)))(ops.IntExp()(scores()), y),
        lambda: ops.IntMatMul()(ops.Shiftmax()(scores()), y),
        lambda: ops.IntMatMul()(ops.IntSoftmax()(x), ops.Transpose((1, 0))(x)),
        lambda: ops.ShiftGelu()(x),
        lambda: ops.IntTable(0.1)(x, table),
        lambda: ops.ScaleBy(0.5)(x),
        lambda: ops.Concat(0)(x, x),
        lambda: ops.Quantize(*target)(ops.Dequantize()(x)),
    ]
    return options[rng.integers(len(options))]()


def norm(rng, x, channels):
    kind = (ops.IntLayerNorm, ops.IntRMSNorm, ops.ShiftLayerNorm)[rng.integers(3)]
    size = math.sqrt(channels) / 2.0**30 if kind is ops.ShiftLayerNorm else 2.0**-20
    step = 0.05 / 2.0**24 / size
    gamma = Data(rng.integers(-(2**12), 2**12, channels).astype(np.int32), Quant((step,)))
    if kind is ops.IntRMSNorm:
        return kind(0.05)(x, gamma)
    return kind(0.05)(x, gamma, Data(rng.integers(-(2**30), 2**30, channels), Quant((step * size,))))


@pytest.mark.parametrize("kind", [ops.IntLayerNorm, ops.IntRMSNorm, ops.ShiftLayerNorm])
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 50])
def test_no_row_of_a_norm_leaves_its_bounds_and_one_channel_alone_comes_near(kind, channels):
    size = math.sqrt(channels) / 2.0**30 if kind is ops.ShiftLayerNorm else 2.0**-20
    gamma = Data(np.full(channels, 2**22, np.int32), Quant((2.0**-10 / 2.0**32 / size,)))
    graph = graph_of(
        coded(dtypes.i16, "n", channels, scale=0.01), build=lambda x: kind(2.0**-10, 0, dtypes.i32)(x, gamma)
    )
    found = bound_of(graph)
    rng = np.random.default_rng(channels)
    alone = np.eye(channels, dtype=np.int64)
    rows = [alone * k for k in (1, -1, 2, 3, 32767, -32768)] + [rng.integers(-4, 5, (300, channels))]
    x = np.concatenate([*rows, rng.integers(-32768, 32768, (300, channels))]).astype(np.int16)
    y = interpret(graph, {"x0": x})["y0"]
    assert found.holds(y)
    assert found.magnitude < 2**31 - 1
    if channels > 1:
        assert np.abs(y.astype(np.int64)).max() > 0.4 * found.magnitude


# overflow


def product_of(rows):
    """Two matrices of i8 of that inner extent: the greatest sum is 128 * 128 * rows."""
    return applied(ops.IntMatMul(), coded(dtypes.i8, 1, rows), coded(dtypes.i8, rows, 1))


def test_a_matrix_product_just_inside_32_bits_is_proved_and_just_outside_is_named():
    inside = MOST // (128 * 128)
    assert overflows(product_of(inside)) == []
    (finding,) = overflows(product_of(inside + 1))
    assert finding.startswith("IntMatMul at made: a sum")
    assert f"{(inside + 1) * 128 * 128:,}" in finding


@pytest.mark.parametrize(("bias", "fits"), [(MOST - 127 * 128, True), (MOST - 127 * 128 + 1, False)])
def test_a_linear_layer_is_proved_to_the_last_code(bias, fits):
    w, b = weights([[-127]]), Data(np.array([bias], np.int32), Quant((0.125,)))
    graph = graph_of(coded(dtypes.i8, 1, 1), build=lambda x: ops.IntLinear()(x, w, b))
    assert (overflows(graph) == []) is fits
    x = np.array([[-128]], np.int8)
    if fits:
        assert interpret(graph, {"x0": x})["y0"].item() == MOST
    else:
        with pytest.raises(VerifyError, match="32 bits"):
            interpret(graph, {"x0": x})


def test_the_sign_of_each_weight_counts():
    rows = 2 * (MOST // (255 * 127)) - 2
    w = weights(np.where(np.arange(rows)[:, None] % 2, 127, -127))
    graph = graph_of(coded(dtypes.u8, 1, rows), build=lambda x: ops.IntLinear()(x, w))
    assert overflows(graph) == []  # |w| summed up would be twice too much
    assert (
        len(
            overflows(
                graph_of(
                    coded(dtypes.u8, 1, rows), build=lambda x: ops.IntLinear()(x, weights(np.full((rows, 1), 127)))
                )
            )
        )
        == 1
    )


def test_bounds_that_are_given_count():
    graph = product_of(2**18)
    assert len(overflows(graph)) == 1
    assert overflows(graph, ranges(graph, {"x0": Interval(-10, 10)})) == []


@pytest.mark.parametrize(
    ("graph", "most"),
    [
        (product_of("rows"), MOST // (128 * 128)),
        (applied(ops.IntReduceSum((-1,)), coded(dtypes.u8, "rows")), MOST // 255),
        (
            applied(ops.IntWeightedMean(), coded(dtypes.u8, 1, "rows"), coded(dtypes.i8, "rows", 1)),
            2**31 // (255 * 128),
        ),
        (
            applied(ops.IntLinear(), coded(dtypes.u8, 1, "rows"), coded(dtypes.i8, "rows", 1)),
            2**31 // (255 * 128),
        ),
        (
            applied(ops.IntConv((1,), (0, 0), (1,)), coded(dtypes.u8, 1, 1, "rows"), coded(dtypes.i8, 1, 1, "rows")),
            2**31 // (255 * 128),
        ),
    ],
)
def test_a_symbolic_extent_is_unbounded_until_it_is_bound(graph, most):
    (finding,) = overflows(graph)
    assert "inf" in finding
    assert overflows(graph, binding={"rows": most}) == []
    assert len(overflows(graph, binding={"rows": most + 1})) == 1
    assert len(overflows(graph, binding={"other": 3})) == 1


def test_a_symbolic_batch_is_no_matter():
    w = weights(np.ones((4, 4)))
    assert overflows(graph_of(coded(dtypes.u8, "batch", 4), build=lambda x: ops.IntLinear()(x, w))) == []


def test_products_of_elements_and_gelu_never_leave_32_bits():
    pair = coded(dtypes.u16, 3, zero=65535), coded(dtypes.u8, 3, zero=255)
    assert overflows(applied(ops.IntMul(), *pair)) == []
    assert overflows(applied(ops.ShiftGelu(), coded(dtypes.i16, 3, scale=2e-5))) == []


ROWS = 800


@pytest.mark.parametrize(
    ("softmax", "scale"), [(ops.Shiftmax(), 0.05), (ops.IntSoftmax(32767, dtypes.u16), EXP_SCALE / 4)]
)
@pytest.mark.parametrize("through", [False, True])
def test_probabilities_sum_up_to_one_and_so_their_product_fits(softmax, scale, through):
    def build(x, v):
        p = softmax(x)
        return ops.IntMatMul()(ops.ScaleBy(0.5)(p) if through else p, v)

    graph = graph_of(coded(dtypes.i16, 2, ROWS, scale=scale), coded(dtypes.i8, ROWS, 3), build=build)
    assert overflows(graph) == []
    total = 32767 if isinstance(softmax, ops.Shiftmax) else 32767 + ROWS // 2
    assert bound_of(graph) == Interval(-128 * total, 127 * total)


def test_probabilities_that_were_moved_about_count_by_number():
    def build(x, v):
        return ops.IntMatMul()(ops.Transpose((1, 0))(ops.IntSoftmax(32767, dtypes.u16)(x)), v)

    graph = graph_of(coded(dtypes.i16, ROWS, ROWS, scale=EXP_SCALE), coded(dtypes.i8, ROWS, 3), build=build)
    assert len(overflows(graph)) == 1


def test_probabilities_of_unknown_number_sum_up_to_at_most_two():
    def build(x, v):
        return ops.IntMatMul()(ops.IntSoftmax(32767, dtypes.u16)(x), v)

    graph = graph_of(coded(dtypes.i16, 2, "n", scale=EXP_SCALE), coded(dtypes.i8, "n", 3), build=build)
    assert overflows(graph) == []
    assert bound_of(graph) == Interval(-128 * 65534, 127 * 65534)


def test_flat_rows_reach_the_stated_sum_of_probabilities():
    x = np.zeros((1, 6), np.int16)  # 5 / 6 of a code each, rounded up
    graph = applied(ops.IntSoftmax(5), coded(dtypes.i16, 1, 6, scale=0.1))
    assert interpret(graph, {"x0": x})["y0"].sum() == 6
    product = graph_of(
        coded(dtypes.i16, 1, 6, scale=0.1),
        coded(dtypes.i8, 6, 1),
        build=lambda x, v: ops.IntMatMul()(ops.IntSoftmax(5)(x), v),
    )
    assert bound_of(product) == Interval(-128 * 8, 127 * 8)


def test_only_integer_ops_are_looked_at():
    graph = applied(ops.MatMul(), TensorType(dtypes.f32, (3, "n")), TensorType(dtypes.f32, ("n", 3)))
    assert overflows(graph) == []
