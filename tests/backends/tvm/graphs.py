"""Small integer graphs with random codes."""

from __future__ import annotations

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(7)


def coded(dtype, *shape, scale=0.05, zero=0):
    return TensorType(dtype, shape, Quant((scale,), zero))


def codes(dtype, *shape):
    return RNG.integers(dtype.min, dtype.max, shape, endpoint=True).astype(dtype.storage)


def graph_of(*types, build):
    """A graph of inputs x0, x1, .. and the output y that `build` makes of them, with random codes to feed."""
    graph = Graph()
    inputs = [graph.add_input(f"x{i}", type_) for i, type_ in enumerate(types)]
    made = build(*inputs)
    graph.attach(made, None, Loc(("made",)))
    graph.add(Return(("y",)), made)
    return graph, {f"x{i}": codes(type_.dtype, *type_.dims) for i, type_ in enumerate(types)}


def weights(*shape, axis=-1):
    scales = tuple(float(s) for s in RNG.uniform(0.001, 0.01, shape[axis]))
    return Data(codes(dtypes.i8, *shape), Quant(scales, 0, axis % len(shape)))


def linear(x, depth, columns):
    w = weights(depth, columns)
    scale = x.tensor.quant.scale[0]
    bias = Data(
        RNG.integers(-10000, 10000, columns).astype(np.int32), Quant(tuple(scale * s for s in w.type.quant.scale), 0, 0)
    )
    return ops.IntLinear()(x, w, bias)
