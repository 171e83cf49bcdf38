"""Which neurons of a ReluMLP may be left out: inputs as integers, and bounds by int8 copies of weights, as code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import chunks
from planish.backends.tvm.float_math import real
from planish.backends.tvm.isa import Isa, Product, reduced
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import variable
from planish.backends.tvm.scope import Expr, Scope
from planish.backends.tvm.tiles import LINE, prefetch
from planish.ir.screening import LEAST, MOST, Screen

_TOGETHER = 4  # neurons that are screened at a time
_PAGE = 4096  # bytes
_LEADING = 2  # lines of a page that are asked for: a CPU goes on by itself. To ask for all takes 1.07 times as long
_ROUNDER, _ROUNDER_BITS = 1.5 * 2.0**23, 0x4B400000  # adding it leaves an integer in the low bits


@dataclass(frozen=True)
class Work:
    """Sizes and shared arrays of a kernel. depth: K in whole steps. width: N in whole vectors. deep: vectors in a step.

    x: float32[height, depth]. cut: float32[height], what a value must not exceed for its neuron to be left out: 0, or
    NaN where nothing may be. The neurons are pieces * each, those behind the last one included.
    """

    isa: Isa
    height: int
    depth: int
    width: int
    deep: int
    pieces: int
    each: int
    x: Expr
    cut: Expr

    @property
    def lanes(self) -> int:
        return self.isa.lanes

    @property
    def neurons(self) -> int:
        return self.pieces * self.each


@dataclass(frozen=True)
class Screening:
    """What neurons are screened with.

    codes: inputs as integers, [height * planes, depth]; two planes, the high bytes and the low ones, for products of
    bytes, which twice as fast take the bytes of weights as they are; else int16. bounds: float32[height, 4], of each
    row the norms, the step of the integers, and the noise per norm of weights. The rest are constants.
    """

    product: Product
    codes: Expr
    bounds: Expr
    weights: Expr
    steps: Expr
    offsets: Expr
    spreads: Expr
    worsts: Expr
    norms: Expr
    centres: Expr

    @property
    def planes(self) -> int:
        return 2 if self.product.group == 4 else 1


def declared(scope: Scope, work: Work, found: Screen) -> Screening:
    """Arrays of a screening; neurons behind the last one are proved to be 0."""
    product = work.isa.bytes_product or work.isa.words_product
    rows, kind = (2 * work.height, "uint8") if product.group == 4 else (work.height, "int16")
    vectors = {name: getattr(found, name) for name in ("steps", "offsets", "spreads", "worsts", "norms")}
    vectors["centres"] = 128 * found.codes.sum(axis=1, dtype=np.int32)
    vectors["offsets"] = np.append(vectors["offsets"], np.full(work.neurons - len(found.codes), -1, np.float32))
    constants = {name: scope.constant(name, filled_up(array, work.neurons)) for name, array in vectors.items()}
    wide = work.lanes * product.group
    together = filled_up(found.codes, work.neurons, work.depth).reshape(-1, _TOGETHER, work.depth // wide, wide)
    flat = together.transpose(0, 2, 1, 3).reshape(work.neurons // _TOGETHER, -1)  # in the order in which they are read
    codes, bounds = scope.scratch((rows, work.depth), kind), scope.scratch((work.height, 4), "float32")
    return Screening(product, codes, bounds, scope.constant("codes", flat), **constants)


def quantize(work: Work, screening: Screening, found: Screen) -> None:
    """Write inputs as integers and the bounds of rows, and say whether a row may be screened at all."""
    for row in range(work.height):
        most, total, squares = _moments(work, row)
        norm = variable("float32", T.sqrt(squares[0]) * real(found.slack))
        step = variable("float32", most[0] * real(float(np.float32(1 / found.levels))))
        noise = real(found.rounding) * norm[0] + real(found.coarse) * step[0]
        for place, value in enumerate((total[0] * real(found.slack), norm[0], step[0], noise)):
            T.buffer_store(screening.bounds, value, [row, place])
        usable = T.And(most[0] > real(LEAST), norm[0] < real(MOST))  # false for NaN
        T.buffer_store(work.cut, T.Select(usable, real(0), real(math.nan)), [row])
        factor = variable("float32", T.Select(usable, real(found.levels) / most[0], real(0)))
        for start, width in chunks(work.depth, work.lanes):
            with vector(width) as lane:
                q = work.x[row, start + lane] * factor[0]
                q = T.Select(q < real(found.levels), q, real(found.levels))  # also where it is NaN
                q = T.Select(q > real(-found.levels), q, real(-found.levels))
                code = T.reinterpret("int32", q + real(_ROUNDER)) - T.int32(_ROUNDER_BITS)
                if screening.planes == 1:
                    T.buffer_store(screening.codes, T.cast(code, "int16"), [row, start + lane])
                    continue
                shifted = code + T.int32(1 << 15)
                T.buffer_store(screening.codes, T.cast(shifted >> 8, "uint8"), [2 * row, start + lane])
                T.buffer_store(screening.codes, T.cast(shifted & 255, "uint8"), [2 * row + 1, start + lane])


def _moments(work: Work, row: int) -> list[Expr]:
    """The greatest size of an input of a row, the sum of sizes and the sum of squares, as variables."""
    lanes, every = work.lanes, T.Ramp(0, 1, work.lanes)
    greatest, one, two = parts = [T.alloc_buffer((lanes,), "float32", scope="global") for _ in range(3)]
    zero = T.Broadcast(real(0), lanes)
    for part in parts:
        T.buffer_store(part, zero, [every])
    with T.serial(0, work.depth // lanes) as step:
        x = work.x[row, T.Ramp(step * lanes, 1, lanes)]
        size = T.Select(x < zero, zero - x, x)
        T.buffer_store(greatest, T.Select(size > greatest[every], size, greatest[every]), [every])
        T.buffer_store(one, one[every] + size, [every])
        T.buffer_store(two, T.fma(x, x, two[every]), [every])
    most, total, squares = found = [variable("float32", part[0]) for part in parts]
    for lane in range(1, lanes):
        T.buffer_store(most, T.Select(greatest[lane] > most[0], greatest[lane], most[0]), [0])
        T.buffer_store(total, total[0] + one[lane], [0])
        T.buffer_store(squares, squares[0] + two[lane], [0])
    return found


def flag(work: Work, screening: Screening, piece: Expr, exact: Expr, flags: Expr) -> None:
    """Write 0 for neurons of a piece that are proved to give 0 for all rows, 1 for the others.

    exact: room for products of codes, int32[pieces, height, each]. flags: int32[pieces, each].
    """
    with T.serial(0, work.each // _TOGETHER) as group:
        _multiply(work, screening, piece, group, exact)
    for start, width in chunks(work.each, work.lanes):
        with vector(width) as lane:
            place = start + lane
            neuron = piece * work.each + place
            bounds = []
            for row in range(work.height):
                one, norm, step, noise = (screening.bounds[row, i] for i in range(4))
                spread, worst = screening.spreads[neuron] * norm, screening.worsts[neuron] * one
                radius = T.Select(spread < worst, spread, worst) + screening.norms[neuron] * noise
                term = T.cast(exact[piece, row, place], "float32") * step
                bounds.append(T.fma(term, screening.steps[neuron], screening.offsets[neuron]) + radius)
            T.buffer_store(flags, counts(work, bounds), [piece, place])


def _multiply(work: Work, screening: Screening, piece: Expr, group: Expr, exact: Expr) -> None:
    """Products of the codes of some neurons by those of all rows."""
    product, planes, lanes = screening.product, screening.planes, work.lanes
    wide, every = lanes * product.group, T.Ramp(0, 1, lanes)
    own = piece * (work.each // _TOGETHER) + group
    sums = []
    for _ in range(_TOGETHER):
        sums.append([T.alloc_buffer((lanes,), "int32", scope="global") for _ in range(planes * work.height)])
        for acc in sums[-1]:
            T.buffer_store(acc, T.Broadcast(T.int32(0), lanes), [every])
    fetch(screening.weights, own, _PAGE, _TOGETHER * work.depth)
    with T.serial(0, work.depth // wide) as step:
        first = step * (_TOGETHER * wide)
        for i, row in enumerate(sums):
            panel = screening.weights[own, T.Ramp(first + i * wide, 1, wide)]
            for plane, acc in enumerate(row):
                x = screening.codes[plane, T.Ramp(step * wide, 1, wide)]
                if product.intrinsic:
                    total = product.of_vectors(acc[every], x, panel, lanes)
                else:
                    total = acc[every] + T.Cast(f"int32x{lanes}", x) * T.Cast(f"int32x{lanes}", panel)
                T.buffer_store(acc, total, [every])
    for i, row in enumerate(sums):
        place = group * _TOGETHER + i
        found = [reduced("add", acc, lanes) for acc in row]
        for r in range(work.height):
            total = found[r]
            if planes == 2:
                total = (found[2 * r] - screening.centres[piece * work.each + place]) * 256 + found[2 * r + 1]
            T.buffer_store(exact, total, [piece, r, place])


def counts(work: Work, values: list[Expr]) -> Expr:
    """0 if no value exceeds what lets its neuron be left out, else 1; so also for NaN."""
    found: Expr = T.int32(0)
    for row, value in enumerate(values):
        found = T.Select(value <= work.cut[row], found, T.int32(1))
    return found


def fetch(weights: Expr, row: Expr, first: int, count: int) -> None:
    """Ask for so many elements of a row that are soon to be read. They need not exist."""
    size = np.dtype(str(weights.dtype)).itemsize
    for page in range(0, count * size, _PAGE):
        for line in range(page, min(page + _LEADING * LINE, count * size), LINE):
            prefetch(weights[row, first + line // size])


def filled_up(array: np.ndarray, *shape: int) -> np.ndarray:
    """The array with zeros behind the ends of its axes."""
    made = np.zeros(shape, array.dtype)
    made[tuple(slice(extent) for extent in array.shape)] = array
    return made
