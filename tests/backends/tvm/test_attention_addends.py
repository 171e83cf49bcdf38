"""Attention whose logits take in a value that is computed at run time, such as what merged tokens weigh."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm.regions import regions
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import TensorType
from tests.backends.tvm.floats import RNG, both, float_isas, normal
from tests.backends.tvm.graphs import coded, codes, graph_of
from tests.backends.tvm.running import assert_exact, runnable_isas

RUNNABLE, FLOATS = runnable_isas(), float_isas()
SHAPES = [(1, 3, 197, 197, 32), (2, 2, 5, 17, 9), (3, 1, 70, 65, 20), (2, 2, 9, 1, 4)]


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(
    ("form", "batch", "heads", "rows", "tokens", "width"),
    [
        *(("codes", *shape) for shape in SHAPES),
        *((form, *SHAPES[1]) for form in ("wide", "of 32 bits", "per row", "broadcast")),
        ("per row", *SHAPES[2]),
    ],
)
def test_codes_are_added_to_logits_in_the_kernel_of_attention(isa, form, batch, heads, rows, tokens, width):
    def build(q, k, v, sizes):
        logits = ops.ScaleBy(0.2)(ops.IntMatMul()(q, k))
        if form == "codes":
            addend = ops.Requantize(0.01, 9, dtypes.i16)(sizes)
            logits = ops.IntAdd(0.02444, 0, dtypes.i16)(logits, addend)
        else:
            to, scale = (dtypes.i32, 0.0001) if form == "of 32 bits" else (dtypes.i16, 0.005)
            addend = ops.Requantize(scale, 0, to)(sizes)
            total = ops.IntAdd(0.0004 if form == "wide" else 0.002, 0, dtypes.i32)(logits, addend)
            logits = ops.Requantize(0.02444, 0, dtypes.i16)(total)
        mean = ops.IntWeightedMean(7)(ops.IntExp()(logits), v)
        y = ops.Requantize(0.02, 115, dtypes.u8)(mean)
        return ops.Reshape((batch, rows, heads * width))(ops.Transpose((0, 2, 1, 3))(y))

    added = {"per row": (batch, 1, rows, tokens), "broadcast": (tokens,)}.get(form, (batch, 1, 1, tokens))
    types = [
        coded(dtypes.u8, batch, heads, rows, width, zero=120),
        coded(dtypes.i8, batch, heads, width, tokens),
        coded(dtypes.i8, batch, heads, tokens, width),
        coded(dtypes.i16, *added, scale=0.0005),
    ]
    graph, feeds = graph_of(*types, build=build)
    assert [region.attention is not None for region in regions(graph)[0]][-1]
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_an_addend_that_is_fed_needs_no_room_behind_it(isa):
    """Results are the same whatever follows it in memory: vectors of logits go beyond the last token."""

    def build(q, k, v, addend):
        logits = ops.IntAdd(0.02444, 0, dtypes.i16)(ops.ScaleBy(0.2)(ops.IntMatMul()(q, k)), addend)
        return ops.Requantize(0.02, 115, dtypes.u8)(ops.IntWeightedMean(7)(ops.IntExp()(logits), v))

    types = [
        coded(dtypes.u8, 2, 3, 7, 8, zero=120),
        coded(dtypes.i8, 2, 3, 8, 33),
        coded(dtypes.i8, 2, 3, 33, 8),
        coded(dtypes.i32, 2, 1, 1, 33, scale=1e-8),
    ]
    graph, feeds = graph_of(*types, build=build)
    assert len(regions(graph)[0]) == 1
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("shape", [(3, 7, 33), (1, 3, 1, 33), (33,), (7, 33)])
def test_constants_are_added_to_logits(isa, shape):
    """Logits beyond the last token, which whole vectors have, never are the greatest of their row."""
    bias = Data(codes(dtypes.i8, *shape), coded(dtypes.i8, 1).quant)

    def build(q, k, v):
        logits = ops.IntAdd(0.02444, 0, dtypes.i16)(ops.ScaleBy(0.2)(ops.IntMatMul()(q, k)), bias)
        return ops.Requantize(0.02, 115, dtypes.u8)(ops.IntWeightedMean(7)(ops.IntExp()(logits), v))

    types = coded(dtypes.u8, 2, 3, 7, 8, zero=120), coded(dtypes.i8, 2, 3, 8, 33), coded(dtypes.i8, 2, 3, 33, 8)
    graph, feeds = graph_of(*types, build=build)
    feeds["x0"] //= 64  # what is added decides which logit is the greatest
    assert len(regions(graph)[0]) == 1
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_places_that_do_not_take_part_and_constants_that_are_added(isa):
    graph = Graph()
    types = [
        coded(dtypes.u8, 2, 3, 7, 8, zero=120),
        coded(dtypes.i8, 2, 3, 8, 33),
        coded(dtypes.i8, 2, 3, 33, 8),
        coded(dtypes.i16, 2, 1, 1, 33, scale=0.005),
        TensorType(dtypes.boolean, (2, 1, 1, 33)),
    ]
    q, k, v, addend, keep = (graph.add_input(f"x{i}", type_) for i, type_ in enumerate(types))
    bias = Data(codes(dtypes.i8, 3, 7, 33), coded(dtypes.i8, 1).quant)
    logits = ops.IntAdd(0.01, 0, dtypes.i32)(ops.ScaleBy(0.2)(ops.IntMatMul()(q, k)), addend)
    logits = ops.IntAdd(0.02444, 0, dtypes.i16)(logits, bias)
    y = ops.Requantize(0.02, 115, dtypes.u8)(ops.IntWeightedMean(7)(ops.IntExp()(logits, keep), v))
    graph.attach(y, None, Loc(("made",)))
    graph.add(Return(("y",)), y)
    feeds = {f"x{i}": codes(type_.dtype, *type_.dims) for i, type_ in enumerate(types[:4])}
    feeds["x4"] = RNG.random((2, 1, 1, 33)) < 0.7
    assert len(regions(graph)[0]) == 1
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", FLOATS)
@pytest.mark.parametrize(("batch", "heads", "rows", "tokens", "width"), SHAPES)
def test_logarithms_of_sizes_are_added_to_logits(isa, batch, heads, rows, tokens, width):
    graph = Graph()
    feeds = {
        "q": normal(batch, heads, rows, width),
        "k": normal(batch, heads, tokens, width),
        "v": normal(batch, heads, tokens, width),
        "sizes": RNG.integers(1, 40, (batch, tokens)).astype(np.float32),
    }
    q, k, v, sizes = (graph.add_input(name, TensorType(dtypes.f32, array.shape)) for name, array in feeds.items())
    y = ops.Attention(0.3)(q, k, v, ops.Unsqueeze((1, 2))(ops.Log()(sizes)))
    graph.attach(y, None, Loc(("made",)))
    graph.add(Return(("y",)), y)
    assert len(regions(graph)[0]) == 2
    found, wanted = both(graph, feeds, isa)
    np.testing.assert_allclose(found["y"], wanted["y"], atol=1e-5)
