"""Which values are stored, and what is computed together: a region is a stored value and all that only it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from planish.backends.tvm.expressions import BIJECTIONS, EXPRESSIONS, MOVING, POINTWISE, RENAMING
from planish.backends.tvm.float_expressions import FLOAT_POINTWISE, why_not
from planish.backends.tvm.joining import is_norm, joined
from planish.backends.tvm.region import Attention, Region
from planish.backends.tvm.scope import extents
from planish.ir import dtypes, ops
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, Op
from planish.ir.ops.quantize import quant_of
from planish.ir.types import TensorType

FLOAT_REDUCTIONS: tuple[type[Op], ...] = (
    ops.Linear,
    ops.MatMul,
    ops.AddMatMul,
    ops.Conv,
    ops.ReluMLP,
    ops.Attention,
    ops.SparseAttention,
    ops.RotaryEmbedding,
    ops.LayerNorm,
    ops.RMSNorm,
    ops.InstanceNorm,
    ops.Softmax,
    ops.LogSoftmax,
    ops.MaxPool,
    ops.AveragePool,
    ops.ReduceMean,
    ops.ReduceSum,
    ops.ReduceMax,
    ops.ReduceMin,
    ops.ReduceProd,
    ops.ReduceL2,
    ops.ReduceSumSquare,
    ops.ArgMax,
)
"""Ops on plain numbers whose elements need many of their operands'."""

REDUCTIONS: tuple[type[Op], ...] = (
    *FLOAT_REDUCTIONS,
    ops.IntLinear,
    ops.IntMatMul,
    ops.IntAddMatMul,
    ops.IntBinaryMatMul,
    ops.IntConv,
    ops.IntReduceSum,
    ops.IntLayerNorm,
    ops.IntRMSNorm,
    ops.IntExp,
    ops.IntWeightedMean,
    ops.IntSoftmax,
    ops.Shiftmax,
    ops.ShiftLayerNorm,
    ops.Concat,
    ops.TakeTokens,
    ops.PlaceTokens,
)

CHOICES: tuple[type[Op], ...] = (
    ops.MatchTokens,
    ops.MergeTokens,
    ops.TopTokens,
    ops.IntMatchTokens,
    ops.IntMergeTokens,
)
"""Ops with several results, which one kernel computes together; nothing that follows is done in it."""

PRODUCTS: tuple[type[Op], ...] = (
    *(ops.Linear, ops.MatMul, ops.AddMatMul, ops.Conv),
    *(ops.IntLinear, ops.IntMatMul, ops.IntAddMatMul, ops.IntBinaryMatMul, ops.IntConv),
)


def regions(graph: Graph) -> tuple[list[Region], frozenset[Value]]:
    """The regions in order of computation, and all stored values.

    Raises UnsupportedOp listing the ops that have no kernel.
    """
    _check(graph)
    outputs = set(graph.outputs)
    fused: dict[Value, Value] = {}  # a reduction's result to the pointwise result that takes it in
    attentions = {node: match for node in graph.nodes(ops.IntWeightedMean) if (match := _attention(node))}
    absorbed = {value for attention in attentions.values() for value in _inside(attention)}
    found: list[Region] = []
    placed: set[Value] = set()
    for node in graph:
        if isinstance(node.op, Const | ops.Return):
            continue
        if isinstance(node.op, CHOICES):
            first, *others = [v for v in node.results if v.uses or v in outputs] or node.results[:1]
            found.append(Region(first, first, (), node, others=tuple(others)))
            continue
        for value in node.results:
            if value in placed or value in absorbed:
                continue
            if value in outputs or not _vanishes(value, fused):
                anchor = _anchor(value, fused)
                result, moves, run = _moved(value, anchor, outputs) if anchor is not None else (value, (), 0)
                placed.add(result)
                found.append(Region(value, result, moves, anchor, attentions.get(anchor) if anchor else None, run))
    return joined(found), frozenset(value for region in found for value in region.results)


def _check(graph: Graph) -> None:
    known = (*EXPRESSIONS, *REDUCTIONS, *CHOICES, ops.Split, Const, ops.Return)
    missing = {node: node.op.name for node in graph if not isinstance(node.op, known)}
    plain = (*FLOAT_POINTWISE, *FLOAT_REDUCTIONS, *CHOICES, ops.TakeTokens, ops.ConstantOfShape, ops.Range, ops.Pad)
    for node in graph:
        if node not in missing and isinstance(node.op, plain) and (reason := why_not(node)):
            missing[node] = reason
    for value in graph.outputs:
        if value.node is None or isinstance(value.op, Const) or graph.outputs.count(value) > 1:
            assert graph.tail is not None
            missing[graph.tail] = "outputs that are inputs, constants or other outputs"
    if missing:
        raise UnsupportedOp(
            f"target tvm-cpu has no kernel for {', '.join(sorted(set(missing.values())))}",
            where=str(next(iter(missing)).loc),
            remedy="take target ort-cpu, or a recipe that makes other ops of them",
        )


def _vanishes(value: Value, fused: dict[Value, Value]) -> bool:
    """True if a value is computed where it is read instead of stored. Notes what a reduction is fused with."""
    node = value.node
    assert node is not None
    kind = type(node.op)
    if kind in MOVING or (kind in RENAMING and _anchor(value, fused) is None):
        return True
    reader = value.users[0] if len(value.uses) == 1 else None
    if reader is None or type(reader.op) not in (*POINTWISE, *RENAMING):
        return False
    if value.tensor.dims != reader.result.tensor.dims:
        return False
    if kind in POINTWISE and _anchor(value, fused) is None:
        return True
    if any(other in fused for other in reader.inputs):
        return False  # one reduction per region: the other operand rests on one already
    if is_norm(_anchor(value, fused)) and any(_is_of_product(other) for other in reader.inputs if other is not value):
        return False  # the product takes the sum in: its own result would have 32 bits
    fused[value] = reader.result
    return True


def _is_of_product(value: Value) -> bool:
    """True if pointwise ops alone lead from a product to a value that is read once."""
    while value.node is not None and len(value.uses) == 1:
        if isinstance(value.op, PRODUCTS):
            return True
        if type(value.op) not in (*POINTWISE, *RENAMING) or value.node.inputs[0].tensor.dims != value.tensor.dims:
            return False
        value = value.node.inputs[0]
    return False


def _anchor(value: Value, fused: Mapping[Value, Value]) -> Node | None:
    """The reduction that `value` rests on through unstored values."""
    node = value.node
    if node is None:
        return None
    if type(node.op) in REDUCTIONS:
        return node
    if type(node.op) in MOVING:
        return None
    for operand in node.inputs:
        if operand in fused:
            return _anchor(operand, fused)
    return None


def _moved(value: Value, anchor: Node, outputs: set[Value]) -> tuple[Value, tuple[Node, ...], int]:
    """What to store instead of `value`: its only readers move its elements, so they are written to where they go.

    As many moves are made as leave what is computed together next to each other; all of them if none does.
    Also says how many elements stay next to each other then.
    """
    shape = extents(value.tensor, value.hint)
    axis = 1 if isinstance(anchor.op, ops.IntConv | ops.Conv) else len(shape) - 1
    together = shape[axis] if shape else 1
    places = np.arange(math.prod(shape)).reshape(shape)
    successors = np.arange(together) * math.prod(shape[axis + 1 :])
    made: list[Node] = []

    def neighbours() -> int:
        run = places.ravel()[:together]
        return int(np.argmin([*(run == successors[: run.size]), False]))

    runs = [(value, neighbours())]
    while len(value.uses) == 1 and value not in outputs and isinstance(value.users[0].op, BIJECTIONS):
        made.append(value.users[0])
        places, value = made[-1].op.evaluate(places), made[-1].result
        runs.append((value, neighbours()))
    count = max((i for i, (_, run) in enumerate(runs) if run > 1 or together == 1), default=len(made))
    result, run = runs[count]
    return result, tuple(made[:count]), 0 if run == together else run


def _attention(mean: Node) -> Attention | None:
    """The attention that ends in a weighted mean, if its kernel can take it."""
    weights, values = mean.inputs
    exponential = _sole(weights, ops.IntExp)
    if exponential is None:
        return None
    node = exponential.inputs[0].node
    if len(exponential.inputs[0].uses) != 1:
        return None
    while node is not None and type(node.op) in (*POINTWISE, *RENAMING) and len(node.result.uses) == 1:
        if node.inputs[0].tensor.dims != node.result.tensor.dims:
            return None
        node = node.inputs[0].node
    if node is None or not isinstance(node.op, ops.IntMatMul) or len(node.result.uses) != 1:
        return None
    queries, keys = node.inputs
    batches = {extents(v.tensor, v.hint)[:-2] for v in (queries, keys, values, weights, mean.result)}
    fits = len(batches) == 1 and _is_centred_i8(keys) and _is_centred_i8(values)
    fits = fits and queries.tensor.dtype.bits == 8 and weights.tensor.dtype == dtypes.u8
    logits = exponential.inputs[0].tensor.dtype.bits <= 16
    return Attention(node, exponential, mean) if fits and logits else None


def _inside(attention: Attention) -> list[Value]:
    """Values of an attention that are never stored."""
    found = [attention.exponential.result]
    while found[-1] is not attention.product.result:
        node = found[-1].node
        assert node is not None
        found.append(node.inputs[0])
    return found


def _sole(value: Value, kind: type[Op]) -> Node | None:
    """The node of that kind which makes a value that is read once."""
    return value.node if len(value.uses) == 1 and isinstance(value.op, kind) else None


def _is_centred_i8(value: Value) -> bool:
    type_: TensorType = value.tensor
    return type_.dtype == dtypes.i8 and quant_of("x", type_).zero == 0
