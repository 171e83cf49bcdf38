"""ReluMLP for few rows: weights of neurons that are 0 for sure are not read.

A neuron is met up to three times: an int8 copy of what the rectifier reads bounds its value from above
(`planish.ir.screening`); if the bound is above 0, its value is computed; if that is above 0 too, its row of w_down is
added to the result. Neurons are cut into pieces, the same ones whatever is left out, which are summed for themselves,
neuron by neuron, and added up in the end. A neuron left out would add zeros, so the sums are the same to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue, chunks
from planish.backends.tvm.expressions import Reader, shape_of, unravelled
from planish.backends.tvm.float_math import real
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.screening import Screening, Work, counts, declared, fetch, filled_up, flag, quantize
from planish.ir import ops
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.screening import MOST, Screen, screen

MOST_ROWS = 4  # that are computed together; with more, hardly a neuron gives 0 for all of them
_PIECES, _PIECE = 32, 128  # of the neurons, at most; neurons of one, at least
_DEEPEST = 4  # vectors of a step along K


@dataclass(frozen=True)
class _Layer:
    """Weights of a layer, a neuron a row, float32[pieces * each, depth], and its bias."""

    weights: Expr
    bias: Expr

    def at(self, work: Work, neuron: Expr, following: Expr) -> list[Expr]:
        """The value of a neuron for each row. following: the neuron whose weights are fetched meanwhile."""
        lanes, deep = work.lanes, work.deep
        sums = [T.alloc_buffer((deep * lanes,), "float32", scope="global") for _ in range(work.height)]
        for total in sums:
            T.buffer_store(total, T.Broadcast(real(0), deep * lanes), [T.Ramp(0, 1, deep * lanes)])
        fetch(self.weights, following, 0, work.depth)
        with T.serial(0, work.depth // (deep * lanes)) as step:
            for v in range(deep):
                place, own = T.Ramp((step * deep + v) * lanes, 1, lanes), T.Ramp(v * lanes, 1, lanes)
                for row, total in enumerate(sums):
                    T.buffer_store(total, T.fma(work.x[row, place], self.weights[neuron, place], total[own]), [own])
        found = []
        for total in sums:
            half = deep * lanes // 2
            while half:
                left, right = (T.Ramp(0, 1, half), T.Ramp(half, 1, half)) if half > 1 else (0, 1)
                T.buffer_store(total, total[left] + total[right], [left])
                half //= 2
            found.append(total[0] + self.bias[neuron])
        return found


def relu_mlp(region: Region, context: Context) -> Kernel:
    """The kernel of a ReluMLP with constant weights; more than a few rows go a few at a time, without screening."""
    node = region.anchor
    assert node is not None
    assert isinstance(node.op, ops.ReluMLP)
    operands: list[Value | None] = [*node.operands, *[None] * (7 - len(node.operands))]
    x, w_up, w_down, b_up, b_down, w_gate, b_gate = operands
    assert x is not None
    *outer, depth = shape_of(x)
    rows, isa, scope = math.prod(outer), context.isa, Scope()
    neurons, columns = shape_of(_known(w_down))
    height = min(max(rows, 1), MOST_ROWS)
    deep = min(_DEEPEST, isa.registers // (2 * height))
    each = _whole(-(-neurons // min(_PIECES, -(-neurons // _PIECE))), isa.lanes)
    padded = _whole(depth, _DEEPEST * isa.lanes), _whole(columns, isa.lanes)
    skips = node.op.skip and rows <= MOST_ROWS and isa.multiplies and _is_safe(w_up, w_down, b_up, w_gate)
    first = (w_up, b_up) if w_gate is None else (w_gate, b_gate)
    work = Work(
        isa, height, *padded, deep, -(-neurons // each), each,
        scope.scratch((height, padded[0]), "float32"), scope.scratch((height,), "float32"),
    )  # fmt: skip
    layers = [_layer(scope, work, *first)] + ([] if w_gate is None else [_layer(scope, work, w_up, b_up)])
    down = scope.constant("down", filled_up(_array(w_down), work.neurons, work.width))
    sums = scope.scratch((work.pieces, height, work.width), "float32")
    found = _screen(*first) if skips else None
    screening = None if found is None else declared(scope, work, found)
    with IRBuilder() as builder, T.seq_scope(), T.serial(0, -(-rows // height)) as block:
        _read(scope, context, work, x, block, rows)
        if screening is None or found is None:
            for row in range(height):
                T.buffer_store(work.cut, real(math.nan), [row])
        else:
            quantize(work, screening, found)
        _in_pieces(scope, work, screening, layers, down, sums)
        for row in range(height):
            number = block * height + row
            if rows % height == 0:
                _finish(scope, region, context, work, sums, b_down, number, row, outer, columns)
                continue
            with T.If(number < rows), T.Then():
                _finish(scope, region, context, work, sums, b_down, number, row, outer, columns)
    return scope.finish(builder, region.result)


def _read(scope: Scope, context: Context, work: Work, x: Value, block: Expr, rows: int) -> None:
    """Copy some rows of x, zeros behind their ends, and zeros for rows that aren't there."""
    *outer, depth = shape_of(x)
    reader = Reader(scope, context.stored, {})
    for row in range(work.height):
        number = block * work.height + row
        if rows % work.height:
            number = T.min(number, rows - 1)
        for start, count in chunks(depth, 2 * work.lanes):
            with vector(count) as lane:
                element = reader.at(x, (*unravelled(number, outer), start + lane))
                T.buffer_store(work.x, element, [row, start + lane])
        for start, count in chunks(work.depth - depth, 2 * work.lanes):
            with vector(count) as lane:
                T.buffer_store(work.x, real(0), [row, depth + start + lane])


def _in_pieces(
    scope: Scope, work: Work, screening: Screening | None, layers: list[_Layer], down: Expr, sums: Expr
) -> None:
    """Sums [pieces, height, width] of each piece of the neurons, pieces in parallel."""
    listed = scope.scratch((work.pieces, work.each + 1), "int32")
    hidden = scope.scratch((work.pieces, work.each + 1, work.height), "float32")
    flags = scope.scratch((work.pieces, work.each), "int32")
    exact = scope.scratch((work.pieces, work.height, work.each), "int32")
    with T.parallel(0, work.pieces) as piece:
        count = variable("int32", T.int32(0))
        if screening is not None:
            flag(work, screening, piece, exact, flags)
        with T.serial(0, work.each) as place:
            T.buffer_store(listed, piece * work.each + place, [piece, count[0]])
            step = T.int32(1) if screening is None else flags[piece, place]
            T.buffer_store(count, count[0] + step, [0])
        kept = variable("int32", T.int32(0))
        fetch(layers[0].weights, listed[piece, 0], 0, work.depth)
        with T.serial(0, count[0]) as i:
            neuron = variable("int32", listed[piece, i])
            values = [variable("float32", v) for v in layers[0].at(work, neuron[0], listed[piece, i + 1])]
            counted = variable("int32", counts(work, [value[0] for value in values]))
            with T.If(counted[0] > 0), T.Then():
                fetch(down, neuron[0], 0, work.width)
            T.buffer_store(listed, neuron[0], [piece, kept[0]])
            for row, value in enumerate(values):
                positive = T.Select(value[0] <= real(0), real(0), value[0])  # NaN stays
                T.buffer_store(hidden, positive, [piece, kept[0], row])
            T.buffer_store(kept, kept[0] + counted[0], [0])
        for layer in layers[1:]:
            with T.serial(0, kept[0]) as i:
                for row, value in enumerate(layer.at(work, listed[piece, i], listed[piece, i + 1])):
                    T.buffer_store(hidden, hidden[piece, i, row] * value, [piece, i, row])
        _add_up(work, piece, kept, listed, hidden, down, sums)


def _add_up(work: Work, piece: Expr, kept: Expr, listed: Expr, hidden: Expr, down: Expr, sums: Expr) -> None:
    """The sums of a piece: for each neuron that is left, its row of w_down times its value."""
    lanes = work.lanes
    for row in range(work.height):
        with T.serial(0, work.width // lanes) as step:
            T.buffer_store(sums, T.Broadcast(real(0), lanes), [piece, row, T.Ramp(step * lanes, 1, lanes)])
    with T.serial(0, kept[0]) as i:
        neuron = variable("int32", listed[piece, i])
        with T.serial(0, work.width // lanes) as step:
            place = T.Ramp(step * lanes, 1, lanes)
            for row in range(work.height):
                factor = T.Broadcast(hidden[piece, i, row], lanes)
                T.buffer_store(
                    sums, T.fma(factor, down[neuron[0], place], sums[piece, row, place]), [piece, row, place]
                )


def _finish(
    scope: Scope,
    region: Region,
    context: Context,
    work: Work,
    sums: Expr,
    bias: Value | None,
    number: Expr,
    row: int,
    outer: list[int],
    columns: int,
) -> None:
    """Add the pieces up for a row, and write what follows."""
    reader = Reader(scope, context.stored, {})
    for start, count in chunks(columns, 2 * work.lanes):
        total = T.alloc_buffer((count,), "float32", scope="global")
        with vector(count) as lane:
            T.buffer_store(total, real(0), [lane])  # also makes 0 of -0, which a neuron left out might change
        with T.serial(0, work.pieces) as piece, vector(count) as lane:
            T.buffer_store(total, total[lane] + sums[piece, row, start + lane], [lane])

        def at(lane: Expr, start: Expr = start) -> Index:
            return (*unravelled(number, outer), start + lane)

        def done(where: Index, total: Expr = total, start: Expr = start) -> Expr:
            found = total[where[-1] - start]
            return found if bias is None else found + reader.at(bias, (where[-1],))

        Epilogue(scope, region, context, done).write_lanes(at, count)


def _layer(scope: Scope, work: Work, weights: Value | None, bias: Value | None) -> _Layer:
    """A layer of the op, [K, F], as rows of neurons."""
    array, b = _array(weights), np.zeros(0, np.float32) if bias is None else _array(bias)
    rows = scope.constant((weights, "rows"), filled_up(array.T, work.neurons, work.depth))
    return _Layer(rows, scope.constant((weights, "bias"), filled_up(b, work.neurons)))


def _screen(weights: Value | None, bias: Value | None) -> Screen:
    return screen(_array(weights).T, None if bias is None else _array(bias))


def _is_safe(w_up: Value | None, w_down: Value | None, b_up: Value | None, w_gate: Value | None) -> bool:
    """True if a neuron that the rectifier makes 0 adds 0 to the result: what it is multiplied with is finite."""
    gated = [] if w_gate is None else [w_up, *([] if b_up is None else [b_up])]
    if not all(np.isfinite(_array(value)).all() for value in (w_down, *gated)):
        return False
    return not gated or float(np.linalg.norm(_array(w_up).astype(np.float64), axis=0).max(initial=0)) < MOST


def _known(value: Value | None) -> Value:
    assert value is not None
    return value


def _array(value: Value | None) -> np.ndarray:
    data = constant(value)
    assert data is not None
    return data.numpy()


def _whole(extent: int, step: int) -> int:
    return -(-extent // step) * step
