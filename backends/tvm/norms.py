"""Layer and root-mean-square normalisation of codes, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, spans
from planish.backends.tvm.expressions import Reader, centred, finished, shape_of, unravelled
from planish.backends.tvm.isa import Isa, reduced
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.narrow import narrowed, narrows
from planish.backends.tvm.plain import variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Scope
from planish.ir.op import constant
from planish.ir.ops.int_norm import NORM_BITS, RECIPROCAL_BITS, _IntNorm
from planish.ir.ops.quantize import quant_of
from planish.ir.types import TensorType

BLOCK = 8  # rows whose square roots and reciprocals, which take long, are computed at a time
_FAST_CHANNELS = 1 << 14  # so many codes of 17 bits, and one as many times, fit in 32 bits
_SHIFT = RECIPROCAL_BITS - NORM_BITS


Statistics = tuple[Expr, Expr, Expr]


class IntNorm:
    """IntLayerNorm and IntRMSNorm: two sums, an integer square root and one reciprocal per row, then an affine map.

    Rows whose reciprocal has at most 31 bits, all but nearly constant ones, take factors of 32 bits.
    known: statistics of the rows under way, in common to the norms of a kernel.
    """

    def __init__(self, region: Region, context: Context, scope: Scope, known: dict[object, Statistics]):
        assert region.anchor is not None
        assert isinstance(region.anchor.op, _IntNorm)
        self.region, self.context, self.scope, self.known = region, context, scope, known
        self.node, self.op = region.anchor, region.anchor.op
        self.x, self.gamma, *self.beta = self.node.inputs
        *self.outer, self.channels = shape_of(self.x)
        self.shift = self.op.shift(self.x.tensor, self.gamma.tensor)
        self.reader = Reader(self.scope, context.stored, {})
        self.bound, self.gammas, self.addends = self.parameters_of_lanes()
        zero = abs(self.op.zero)
        self.packs = self.bound + zero < 2**31 and zero << self.shift < 2**61

    def block(self, first: Expr, count: Expr) -> None:
        """Normalise `count` rows from `first` on, at most `BLOCK` of them."""
        key = self.x, self.op.centre, self.op.epsilon(self.x.tensor)
        if key not in self.known:
            self.known[key] = self.statistics(first, count)
        totals, reciprocals, offsets = self.known[key]
        with T.serial(0, count) as i:
            self.map_row(unravelled(first + i, self.outer), totals[i], reciprocals[i], offsets[i])

    def code(self, index: Index) -> Expr:
        return centred(self.node, 0, self.reader.at(self.x, index), self.scope)

    def statistics(self, first: Expr, count: Expr) -> Statistics:
        """Sums of rows, 0 where they aren't centred, reciprocals of their deviations, and half a unit of z less the
        products of both (int64, one per row; the last one is right where the reciprocal has 31 bits)."""
        isa, op = self.context.isa, self.op
        totals, values, offsets = (T.alloc_buffer((BLOCK,), "int64", scope="global") for _ in range(3))
        for array in (totals, values):  # rows that a block lacks
            with vector(BLOCK) as row:
                T.buffer_store(array, T.int64(0), [row])
        with T.serial(0, count) as i:
            outer = unravelled(first + i, self.outer)
            sums, squares = moments(isa, self.channels, self.x.tensor, lambda c: self.code((*outer, c)))
            if op.centre:
                T.buffer_store(totals, T.cast(reduced("add", sums, isa.lanes), "int64"), [i])
            T.buffer_store(values, reduced("add", squares, isa.lanes), [i])
        epsilon = self.scope.number((self.node, "epsilon"), op.epsilon(self.x.tensor))
        with vector(BLOCK) as row:
            variance = values[row] * T.int64(self.channels) - totals[row] * totals[row] + epsilon
            T.buffer_store(values, variance, [row])
        square_roots(values, BLOCK)
        # A quotient of 2**40 in float64 is off by less than it lies from the next integer, so it is cut off right.
        with vector(BLOCK) as row:
            root = T.cast(T.max(values[row], T.int64(1)), "float64")
            T.buffer_store(values, T.cast(T.float64(2.0**RECIPROCAL_BITS) / root, "int64"), [row])
        with vector(BLOCK) as row:
            T.buffer_store(offsets, T.int64(1 << (_SHIFT - 1)) - totals[row] * values[row], [row])
        return totals, values, offsets

    def map_row(self, outer: Index, total: Expr, reciprocal: Expr, offset: Expr) -> None:
        """The affine map of a row, in 32 bits if its reciprocal allows."""
        if self.addends is None:
            self.in_64_bits(outer, 0, self.channels, total, reciprocal)
            return
        with T.If(reciprocal < T.int64(2**31)):
            with T.Then():
                for start, width in chunks(self.channels, WIDEST):
                    if width < 4:
                        self.in_64_bits(outer, start, width, total, reciprocal)
                    else:
                        self.in_32_bits(outer, start, width, reciprocal, offset)
            with T.Else():
                self.in_64_bits(outer, 0, self.channels, total, reciprocal)

    def in_64_bits(self, outer: Index, start: Expr, extent: int, total: Expr, reciprocal: Expr) -> None:
        """The map of some channels, whatever their size."""

        def element(index: Index) -> Expr:
            off = T.cast(self.code(index), "int64") * T.int64(self.channels) - total
            z = (off * reciprocal + T.int64(1 << (NORM_BITS - 1))) >> T.int64(_SHIFT)
            scaled = z * T.cast(self.reader.at(self.gamma, index[-1:]), "int64")
            if self.beta:
                scaled = scaled + self.reader.at(self.beta[0], index[-1:])
            half = self.scope.number((self.node, "half"), 1 << (self.shift - 1))
            shift = self.scope.number((self.node, "shift"), self.shift)
            return finished(self.node, (scaled + half) >> shift, float("inf"), self.scope)

        epilogue = Epilogue(self.scope, self.region, self.context, element)
        for first, width in chunks(extent, WIDEST):
            epilogue.write_lanes(lambda lane, first=start + first: (*outer, first + lane), width)  # type: ignore[misc]

    def in_32_bits(self, outer: Index, start: Expr, width: int, reciprocal: Expr, offset: Expr) -> None:
        """The map of a vector of channels, with factors of 32 bits.

        Products of even and of odd lanes have 64 bits in the same registers: nothing is put together before the end.
        """
        isa, count = self.context.isa, min(self.context.isa.lanes, width)
        packed = self.packs and narrows(isa, self.op.to, width)
        codes, found = (T.alloc_buffer((width,), "int32", scope="global") for _ in range(2))
        with vector(width) as lane:
            T.buffer_store(codes, self.code((*outer, start + lane)) * self.channels, [lane])
        assert self.addends is not None
        assert self.gammas is not None
        gammas = self.scope.constant((self.node, "gammas"), self.gammas)
        addends = self.scope.constant(
            (self.node, "addends", packed), self.addends + (self.op.zero << self.shift) * packed
        )
        high = self.shift >= 32  # the upper half of a product is this shift's first 32 bits
        amount = self.scope.number((self.node, "amount"), self.shift - 32 if high else self.shift)
        pairs = count // 2
        factor = low_half(sides(T.Broadcast(T.cast(reciprocal, "int32"), count), 0, count), pairs)
        addend, bits = T.Broadcast(offset, pairs), T.Broadcast(T.int64(_SHIFT), pairs)
        for first in range(0, width, count):
            every, both = T.Ramp(first, 1, count), []
            for side in (0, 1):
                place = T.Ramp(T.floordiv(start + first, 2), 1, pairs)
                z = low_half(sides(codes[every], side, count), pairs) * factor + addend >> bits
                scaled = low_half(z, pairs) * low_half(gammas[side, place], pairs) + addends[side, place]
                both.append(scaled if high else scaled >> T.Broadcast(amount, pairs))
            mapped = interleaved(both[0], both[1], high, count)
            shifted = mapped >> T.Broadcast(T.cast(amount, "int32"), count) if high else mapped
            T.buffer_store(found, shifted, [every])
        narrow = narrowed(isa, self.op.to, found, width) if packed else found

        def element(index: Index) -> Expr:
            code = narrow[index[-1] - start]
            return code if packed else finished(self.node, code, self.bound, self.scope)

        epilogue = Epilogue(self.scope, self.region, self.context, element)
        epilogue.write_lanes(lambda lane: (*outer, start + lane), width)

    def parameters_of_lanes(self) -> tuple[float, np.ndarray | None, np.ndarray | None]:
        """A bound of mapped codes; gamma, and what is added before the last shift, of even and of odd channels (int64).

        None where gamma or beta isn't known or 32 bits don't suffice.
        """
        gamma, beta = constant(self.gamma), constant(self.beta[0]) if self.beta else None
        if gamma is None or (self.beta and beta is None):
            return math.inf, None, None
        offsets = np.zeros(self.channels, np.int64) if beta is None else beta.numpy()
        widest = 2.0 ** (NORM_BITS + 1) * math.sqrt(self.channels) * float(np.max(np.abs(gamma.numpy()), initial=0))
        bound = (widest + float(np.max(np.abs(offsets), initial=0))) / 2.0**self.shift + 1
        if bound >= 2**31 or self.channels > _FAST_CHANNELS:
            return bound, None, None
        return bound, _paired(gamma.numpy()), _paired(offsets) + (1 << (self.shift - 1))


def _paired(channels: np.ndarray) -> np.ndarray:
    """Numbers of even and of odd channels, as int64 [2, C / 2]."""
    padded = np.zeros(-(-channels.size // 2) * 2, np.int64)
    padded[: channels.size] = channels
    return np.ascontiguousarray(padded.reshape(-1, 2).T)


def moments(isa: Isa, channels: int, type_: TensorType, code: Callable[[Expr], Expr]) -> tuple[Expr, Expr]:
    """Sums of codes (int32) and of their squares (int64) in the lanes of two arrays."""
    lanes, words = isa.lanes, isa.words_product
    sums, squares, carried = (T.alloc_buffer((lanes,), d, scope="global") for d in ("int32", "int64", "int64"))
    for array in (sums, squares, carried):
        with vector(lanes) as lane:
            T.buffer_store(array, T.Cast(array.dtype, 0), [lane])
    width = 2 * lanes
    paired = (
        words.group == 2 and quant_of("x", type_).zero == 0 and type_.dtype.min >= -(2**15) and type_.dtype.max < 2**15
    )
    whole = channels // width * width if paired else 0
    for start, _ in spans(whole, width):
        codes = T.alloc_buffer((width,), "int16", scope="global")
        with vector(width) as lane:
            T.buffer_store(codes, T.cast(code(start + lane), "int16"), [lane])
        every, half, row = T.Ramp(0, 1, lanes), T.Ramp(0, 1, lanes // 2), codes[T.Ramp(0, 1, width)]
        T.buffer_store(sums, words.total(sums[every], row, lanes), [every])
        # Sums of two squares, up to 2**31, are added up two at a time; how far the upper ones are from the lower ones
        # is put right at the end.
        pairs = T.reinterpret(f"uint64x{lanes // 2}", words.squares(row, lanes))
        high = T.reinterpret(f"int64x{lanes // 2}", pairs >> T.Broadcast(T.uint64(32), lanes // 2))
        T.buffer_store(squares, squares[half] + T.reinterpret(f"int64x{lanes // 2}", pairs), [half])
        T.buffer_store(carried, carried[half] + high, [half])
    with vector(lanes) as lane:
        T.buffer_store(squares, squares[lane] - carried[lane] * T.int64(2**32 - 1), [lane])
    for start, count in chunks(channels - whole, lanes):
        with vector(count) as lane:
            T.buffer_store(sums, sums[lane] + code(whole + start + lane), [lane])
        with vector(count) as lane:
            wide = T.cast(code(whole + start + lane), "int64")
            T.buffer_store(squares, squares[lane] + wide * wide, [lane])
    return sums, squares


def square_root(v: Expr) -> Expr:
    """floor(sqrt(v)) of an int64 expression 0 <= v < 2**62."""
    return square_roots(variable("int64", v), 1)


def square_roots(values: Expr, count: int) -> Expr:
    """floor(sqrt(v)) of an int64 array in place, 0 <= v < 2**62: a rounded one, corrected by at most one."""
    roots = T.alloc_buffer((count,), "int64", scope="global")
    with vector(count) as i:
        T.buffer_store(roots, T.cast(T.sqrt(T.cast(values[i], "float64")), "int64"), [i])
    with vector(count) as i:
        T.buffer_store(roots, T.Select(roots[i] * roots[i] > values[i], roots[i] - T.int64(1), roots[i]), [i])
    with vector(count) as i:
        above = roots[i] + T.int64(1)
        T.buffer_store(values, T.Select(above * above <= values[i], above, roots[i]), [i])
    return values


def low_half(wide: Expr, lanes: int) -> Expr:
    """The lower 32 bits of int64 lanes, with their sign: what one instruction multiplies."""
    bits = T.Broadcast(T.int64(32), lanes)
    return (wide << bits) >> bits


def sides(codes: Expr, side: int, lanes: int) -> Expr:
    """int32 lanes as int64 ones whose lower halves are the even ones (side 0) or the odd ones (side 1)."""
    if side:
        codes = tirx.Shuffle([codes], [tirx.const(i | 1, "int32") for i in range(lanes)])
    return T.reinterpret(f"int64x{lanes // 2}", codes)


def interleaved(even: Expr, odd: Expr, high: bool, lanes: int) -> Expr:
    """The upper or lower halves of int64 lanes, those of `even` in even lanes and those of `odd` in odd ones."""
    halves = [T.reinterpret(f"int32x{lanes}", wide) for wide in (even, odd)]
    places = [(i & ~1) + high + lanes * (i & 1) for i in range(lanes)]
    return tirx.Shuffle(halves, [tirx.const(place, "int32") for place in places])
