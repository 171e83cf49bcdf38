"""Sums and norms of the same rows: one kernel where that is right, the references' bits in any case."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from planish.backends.tvm.build import Executable
from planish.backends.tvm.profile import profile
from planish.backends.tvm.program import lower
from planish.backends.tvm.regions import regions
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType, tensor
from tests.backends.tvm.floats import assert_close, both, float_isas, normal
from tests.backends.tvm.graphs import RNG, coded, codes, linear
from tests.backends.tvm.running import HOST, assert_exact, runnable_isas

i16, u8, f32 = dtypes.i16, dtypes.u8, dtypes.f32
SHAPES = [(1, 1), (3, 5), (197, 96), (3, 100), (17, 384)]

Norm = Callable[[Value], Value]


def int_norm(channels: int, centred: bool = True, to: dtypes.DType = u8, eps: float = 1e-6) -> Norm:
    """A norm of codes with its own gamma and beta."""
    scale = 0.02 if to is u8 else 2e-4
    gamma = Data(RNG.integers(-(2**20), 2**20, channels).astype(np.int32), Quant((scale / 2**15,), 0))
    beta = Data(RNG.integers(-(2**34), 2**34, channels), Quant((scale / 2**35,), 0))
    zero = 121 if to is u8 else 0
    if centred:
        return lambda x: ops.IntLayerNorm(scale, zero, to, eps=eps)(x, gamma, beta)
    return lambda x: ops.IntRMSNorm(scale, zero, to, eps=eps)(x, gamma)


def float_norm(channels: int, centred: bool = True) -> Norm:
    gamma, beta = Data(normal(channels)), Data(normal(channels))
    if centred:
        return lambda x: ops.LayerNorm(-1, 1e-5)(x, gamma, beta)
    return lambda x: ops.RMSNorm(-1, 1e-5)(x, gamma)


def int_add(a: Value, b: Value) -> Value:
    total: Value = ops.IntAdd(2e-4, 0, i16)(a, b)
    return total


def stream(*shape: int, scale: float = 1e-4) -> TensorType:
    return coded(i16, *shape, scale=scale)


def graph_of(build: Callable[..., tuple[Value, ...]], *types: TensorType) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of inputs x0, x1, .. and outputs y0, y1, .., and something to feed."""
    graph, feeds = Graph(), {}
    inputs = [graph.add_input(f"x{i}", type_) for i, type_ in enumerate(types)]
    for value in inputs:
        dtype, shape = value.tensor.dtype, tuple(value.tensor.dims)
        feeds[value.hint] = normal(*shape) if dtype is f32 else codes(dtype, *shape)
    made = build(*inputs)
    for value in made:
        graph.attach(value, None, Loc(("made",)))
    graph.add(Return(tuple(f"y{i}" for i in range(len(made)))), *made)
    return graph, feeds


def kernels(graph: Graph) -> list[tuple[str, int]]:
    """The op that ends each kernel's first result, and how many norms go with it."""
    return [(region.value.op.name, len(region.norms)) for region in regions(graph)[0]]


def assert_floats(graph: Graph, feeds: dict[str, np.ndarray], isa=HOST) -> None:
    found, wanted = both(graph, feeds, isa)
    for name, array in wanted.items():
        assert_close(found[name], array, 2e-5, name)


# a sum and its norm


@pytest.mark.parametrize("isa", runnable_isas())
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("flipped", [False, True])
def test_codes_are_added_and_normalised_in_one_kernel(isa, centred, flipped):
    def build(*inputs):
        found = []
        for i, (_, channels) in enumerate(SHAPES):
            a, b = inputs[2 * i : 2 * i + 2]
            total = int_add(b, a) if flipped else int_add(a, b)
            found += [total, int_norm(channels, centred)(total)]
        return tuple(found)

    types = [type_ for shape in SHAPES for type_ in (stream(1, *shape), stream(1, *shape, scale=3e-4))]
    graph, feeds = graph_of(build, *types)
    assert kernels(graph) == [("IntAdd", 1)] * len(SHAPES)
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", float_isas())
@pytest.mark.parametrize("centred", [True, False])
def test_numbers_are_added_and_normalised_in_one_kernel(isa, centred):
    def build(*inputs):
        found = []
        for i, (_, channels) in enumerate(SHAPES):
            total = ops.Add()(*inputs[2 * i : 2 * i + 2])
            found += [total, float_norm(channels, centred)(total)]
        return tuple(found)

    graph, feeds = graph_of(build, *(tensor(f32, 1, *shape) for shape in SHAPES for _ in range(2)))
    assert kernels(graph) == [("Add", 1)] * len(SHAPES)
    assert_floats(graph, feeds, isa)


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_a_sum_is_there_for_all_its_readers(uses):
    def build(x, y):
        total = int_add(x, y)
        normed = ops.Requantize(0.03, 3, dtypes.i8)(int_norm(96)(total))
        readers = [ops.Requantize(1e-3 * (i + 1), 0, i16)(total) for i in range(uses - 1)]
        return (normed, *readers)

    graph, feeds = graph_of(build, stream(1, 13, 96), stream(1, 13, 96))
    assert kernels(graph)[0] == ("IntAdd", 1)
    assert_exact(graph, feeds)


@pytest.mark.parametrize("isa", runnable_isas())
def test_norms_of_one_sum_share_a_kernel(isa):
    def build(x, y):
        total = int_add(x, y)
        norms = int_norm(100), int_norm(100, to=i16), int_norm(100, centred=False), int_norm(100, eps=1e-3)
        return tuple(norm(total) for norm in norms)

    graph, feeds = graph_of(build, stream(1, 11, 100), stream(1, 11, 100))
    assert kernels(graph) == [("IntAdd", 3 + 1)]
    assert_exact(graph, feeds, isa)


def test_norms_of_an_input_share_a_kernel():
    def build(x, y):
        return (int_norm(37)(x), int_norm(37, to=i16)(x), int_norm(37)(y))

    graph, feeds = graph_of(build, stream(2, 5, 37), stream(2, 5, 37))
    assert kernels(graph) == [("IntLayerNorm", 1), ("IntLayerNorm", 0)]
    assert_exact(graph, feeds)


def test_the_result_of_a_norm_goes_to_where_movement_takes_it():
    def build(x, y):
        total = int_add(x, y)
        return (total, ops.Transpose((0, 2, 1, 3))(ops.Reshape((1, 9, 4, 24))(int_norm(96)(total))))

    graph, feeds = graph_of(build, stream(1, 9, 96), stream(1, 9, 96))
    assert len(kernels(graph)) == 1
    assert_exact(graph, feeds)


# what broadcasts, and what comes later


@pytest.mark.parametrize("shape", [(1, 5, 96), (5, 96), (3, 1, 96), (3, 5, 1), (96,)])
def test_an_operand_that_broadcasts_is_added_to_every_row(shape):
    def build(x, y):
        total = int_add(x, y)
        return (total, int_norm(96)(total))

    graph, feeds = graph_of(build, stream(3, 5, 96), stream(*shape))
    assert kernels(graph) == [("IntAdd", 1)]
    assert_exact(graph, feeds)


def test_a_norm_that_is_broadcast_to_more_rows_stays_alone():
    def build(x, y, z):
        total = int_add(x, y)
        return (total, int_add(int_norm(96, to=i16)(total), z))

    graph, feeds = graph_of(build, stream(1, 5, 96), stream(1, 5, 96), stream(3, 5, 96))
    assert_exact(graph, feeds)


def test_a_norm_that_reads_other_rows_of_its_sum_stays_alone():
    def build(x, y):
        total = int_add(x, y)
        turned = ops.Transpose((0, 2, 1))(total)
        return (total, int_add(int_norm(64, to=i16)(total), turned))

    graph, feeds = graph_of(build, stream(1, 64, 64), stream(1, 64, 64))
    assert kernels(graph) == [("IntAdd", 0), ("IntAdd", 0)]
    assert_exact(graph, feeds)


def test_a_norm_may_read_the_same_row_of_its_sum_again():
    def build(x, y):
        total = int_add(x, y)
        return (total, int_add(int_norm(64, to=i16)(total), total))

    graph, feeds = graph_of(build, stream(1, 33, 64), stream(1, 33, 64))
    assert kernels(graph) == [("IntAdd", 1)]
    assert_exact(graph, feeds)


def test_a_norm_that_waits_for_a_later_value_stays_behind_it():
    def build(x, y):
        total = int_add(x, y)
        later = ops.IntReduceSum(axes=(-2,), keepdims=True)(int_norm(64)(total))
        return (total, int_add(int_norm(64, to=i16)(total), ops.Requantize(1e-3, 0, i16)(later)))

    graph, feeds = graph_of(build, stream(1, 9, 64), stream(1, 9, 64))
    assert kernels(graph)[0] == ("IntAdd", 1)
    assert_exact(graph, feeds)


@pytest.mark.parametrize("axis", [-1, -2])
def test_only_norms_of_the_last_axis_go_by_rows(axis):
    def build(x, y):
        total = ops.Add()(x, y)
        return (total, ops.LayerNorm(axis, 1e-5)(total))

    graph, feeds = graph_of(build, tensor(f32, 2, 7, 19), tensor(f32, 2, 7, 19))
    assert kernels(graph)[0] == ("Add", int(axis == -1))
    assert_floats(graph, feeds)


# blocks


def pre_norm(x: Value, channels: int) -> Value:
    """A residual block whose branch begins with a norm."""
    inner = ops.Requantize(0.05, 128, u8)(linear(int_norm(channels)(x), channels, channels))
    return int_add(x, linear(inner, channels, channels))


def post_norm(x: Value, channels: int) -> Value:
    """A residual block that normalises its sum, for the products in 8 bits and for the next sum in 16."""
    inner = ops.Requantize(0.05, 128, u8)(linear(int_norm(channels)(x), channels, channels))
    return int_add(linear(inner, channels, channels), int_norm(channels, to=i16)(x))


@pytest.mark.parametrize("isa", runnable_isas())
@pytest.mark.parametrize(("block", "count"), [(pre_norm, 3), (post_norm, 3)])
def test_a_chain_of_residual_blocks(isa, block, count):
    def build(x, y):
        total = int_add(x, y)
        for _ in range(count):
            total = block(total, 96)
        return (int_norm(96)(total),)

    graph, feeds = graph_of(build, stream(1, 29, 96), stream(1, 29, 96))
    assert_exact(graph, feeds, isa)


def test_a_product_takes_in_the_sum_with_a_norm():
    graph, _ = graph_of(lambda x: (int_norm(96)(post_norm(x, 96)),), stream(1, 29, 96))
    assert kernels(graph) == [("IntLayerNorm", 1), ("Requantize", 0), ("IntAdd", 0), ("IntLayerNorm", 0)]
    assert all(region.result.tensor.dtype.bits <= 16 for region in regions(graph)[0])


def test_sums_that_no_product_takes_in_and_norms_alternate_in_one_kernel():
    def build(x, y):
        total = ops.Add()(x, y)
        for _ in range(3):
            total = ops.Add()(float_norm(48)(total), total)
        return (float_norm(48)(total), total)

    graph, feeds = graph_of(build, tensor(f32, 1, 21, 48), tensor(f32, 1, 21, 48))
    assert kernels(graph) == [("Add", 4)]
    assert_floats(graph, feeds)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(threads):
    import tvm_ffi

    def build(x, y):
        total = int_add(x, y)
        return (total, int_norm(96)(total), int_norm(96, to=i16)(total))

    graph, feeds = graph_of(build, stream(1, 197, 96), stream(1, 197, 96))
    executable = Executable(lower(graph, HOST), HOST.target())
    wanted = interpret(graph, dict(feeds))
    tvm_ffi.get_global_func("runtime.config_threadpool")(-3, threads)
    try:
        for _ in range(20):
            for name, array in executable(**feeds).items():
                np.testing.assert_array_equal(array, wanted[name])
    finally:
        tvm_ffi.get_global_func("runtime.config_threadpool")(-3, 1)


def test_a_profile_lists_a_kernel_once():
    def build(x, y):
        total = int_add(x, y)
        return (total, int_norm(96)(total))

    graph, _ = graph_of(build, stream(1, 9, 96), stream(1, 9, 96))
    timings = profile(Executable(lower(graph, HOST, steps=True), HOST.target()), 2)
    assert [timing.op.split()[0] for timing in timings] == ["IntAdd"]
