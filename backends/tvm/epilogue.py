"""What follows a reduction, element by element, on vectors: the expression of a region and where its elements go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import shift_products
from planish.backends.tvm.expressions import (
    POINTWISE,
    RENAMING,
    Reader,
    broadcast,
    centred,
    dyadic,
    largest,
    moved,
    shape_of,
)
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.narrow import narrowed, narrows
from planish.backends.tvm.region import Region
from planish.backends.tvm.schedule import Schedule
from planish.backends.tvm.scope import Expr, Index, Scope
from planish.backends.tvm.token_blocks import Layouts
from planish.ir import ops, signed_digits
from planish.ir.graph import Node, Value
from planish.ir.ops.quantize import _ToCodes, quant_of, rescaling

WIDEST = 64  # lanes of a vector of bytes


@dataclass(frozen=True)
class Context:
    """What kernels are written for: all stored values, the instruction set, and tilings that were measured best.

    layouts: of codes between sparse products.
    """

    stored: frozenset[Value]
    isa: Isa
    schedule: Schedule = field(default_factory=Schedule)
    layouts: Layouts = field(default_factory=Layouts)


class Epilogue:
    """Writes elements of a region's result.

    reduced: gives the anchor's result, if there is one. known: further values that the kernel has computed.
    Values without operands may be added to `given`, and to `prepared` operands, by node and position, that the kernel
    has brought to the scale of the result beforehand (int32).
    """

    def __init__(
        self,
        scope: Scope,
        region: Region,
        context: Context,
        reduced: Callable[[Index], Expr] | None = None,
        known: Mapping[Value, Callable[[Index], Expr]] | None = None,
    ):
        self.region, self.scope, self.isa = region, scope, context.isa
        self.given: dict[Value, Callable[[Index], Expr]] = dict(known or {})
        if reduced is not None:
            assert region.anchor is not None
            self.given[region.anchor.result] = reduced
        self.prepared: dict[tuple[Node, int], Callable[[Index], Expr]] = {}
        self.rescaled: dict[tuple[Node, int], Callable[[Index], Expr]] = {}
        self.reader = Reader(scope, context.stored - {region.result}, self.given, self.rescaled)
        self._stages = self._staged(region.value)

    def write(self, index: Index) -> None:
        """Store the element at `index` of the region's value."""
        self._store(index, self.reader.at(self.region.value, index))

    def write_lanes(self, at: Callable[[Expr], Index], lanes: int) -> None:
        """Store `lanes` elements at once, or as many as lie next to each other; `at` gives the index of each."""
        self.stage(at, lanes)
        self.write_staged(at, lanes)

    def write_staged(self, at: Callable[[Expr], Index], lanes: int) -> None:
        """The same for elements that are given or have been staged."""
        run = math.gcd(self.region.run, lanes)
        for start in range(0, lanes, run):
            with vector(run) as lane:
                self.write(at(start + lane))

    def write_row(self, outer: Index, extent: int, widest: int = WIDEST) -> None:
        """Store a row of the region's value, in vectors."""
        for start, lanes in chunks(extent, widest):
            self.write_lanes(lambda lane, start=start: (*outer, start + lane), lanes)  # type: ignore[misc]

    def _store(self, index: Index, element: Expr) -> None:
        for move in self.region.moves:
            index = moved(move, index)
        T.buffer_store(self.scope.value(self.region.result), element, list(index) or [0])

    def _look_up(self, table: Node, at: Callable[[Expr], Index], lanes: int) -> None:
        """Elements of a table of bytes for a whole vector, which no expression of one element can say."""
        codes = T.alloc_buffer((lanes,), "uint8", scope="global")
        low = table.inputs[0].tensor.dtype.min
        with vector(lanes) as lane:
            place = T.cast(self.reader.at(table.inputs[0], at(lane)), "int32") - low
            T.buffer_store(codes, T.cast(place, "uint8"), [lane])
        entries = self.scope.value(table.inputs[1])
        found = T.alloc_buffer((lanes,), entries.dtype, scope="global")
        all_lanes = T.Ramp(0, 1, lanes) if lanes > 1 else 0
        T.buffer_store(found, self.isa.lookup(entries, codes[all_lanes], lanes), [all_lanes])
        lane_at = lane_of(at)
        self.given[table.result] = lambda index: found[lane_at(index)]

    def stage(self, at: Callable[[Expr], Index], lanes: int) -> None:
        """Compute what whole vectors do better than single elements: rescalings, and tables of bytes."""
        self.rescaled.clear()
        self.rescaled.update(self.prepared)
        for node in self._stages:
            self.given.pop(node.result, None)
        for node in self._stages:
            if isinstance(node.op, ops.IntTable):
                self._look_up(node, at, lanes)
            else:
                self._to_codes(node, at, lanes)

    def _to_codes(self, node: Node, at: Callable[[Expr], Index], lanes: int) -> None:
        """Operands on the scale of the result, and their sum saturated where instructions do that for whole vectors."""
        op, positions = node.op, range(len(node.inputs))
        assert isinstance(op, _ToCodes)
        ready = [p for p in positions if self._rescales(node, p, lanes)]
        bound = sum(largest(node, p) for p in positions) + abs(op.zero)
        shifted = abs(op.zero) << rescaling(node.inputs[0].tensor, op.scale).shift
        packed = len(ready) == len(positions) and bound < 2**31 and shifted < 2**62 and narrows(self.isa, op.to, lanes)
        for position in ready:
            if (node, position) not in self.prepared:
                self._rescale(node, position, at, lanes, op.zero if packed and position == 0 else 0)
        if not packed:
            return
        total = T.alloc_buffer((lanes,), "int32", scope="global")
        with vector(lanes) as lane:
            parts = [self.rescaled[node, p](broadcast(at(lane), shape_of(node.inputs[p]))) for p in positions]
            T.buffer_store(total, sum(parts[1:], parts[0]), [lane])
        codes, lane_at = narrowed(self.isa, op.to, total, lanes), lane_of(at)
        self.given[node.result] = lambda index: codes[lane_at(index)]

    def _rescales(self, node: Node, position: int, lanes: int) -> bool:
        """True if an operand can be rescaled in 32 bits, and the vector is long enough; by shifts alone, always."""
        type_ = node.inputs[position].tensor
        if quant_of("x", type_).zero and type_.dtype.bits > 16:
            return False
        return not self.isa.multiplies or (min(self.isa.lanes, lanes) >= 4 and largest(node, position) < 2**31)

    def _rescale(self, node: Node, position: int, at: Callable[[Expr], Index], lanes: int, zero: int) -> None:
        """An operand on the scale of the result, and `zero` more."""
        value = node.inputs[position]
        assert isinstance(node.op, _ToCodes)
        quant, width = quant_of("x", value.tensor), min(self.isa.lanes, lanes)
        dtype = "int32" if largest(node, position) < 2**31 else "int64"
        codes, found = (T.alloc_buffer((lanes,), kind, scope="global") for kind in ("int32", dtype))
        with vector(lanes) as lane:
            code = self.reader.operand(node, position, at(lane))
            if quant.zero:
                code = centred(node, position, code, self.scope)
            T.buffer_store(codes, T.cast(code, "int32"), [lane])
        multiplier, half, shift = dyadic(node, position, self.scope, zero)
        factors: Expr = None
        if quant.axis is not None:
            factors = T.alloc_buffer((lanes,), "int32", scope="global")
            with vector(lanes) as lane:
                own = broadcast(at(lane), shape_of(value))[quant.axis]
                T.buffer_store(factors, multiplier[own], [lane])
        if self.isa.multiplies:
            far = rescaling(value.tensor, node.op.scale).shift > 32
            for start in range(0, lanes, width):
                every = T.Ramp(start, 1, width)
                factor = T.Broadcast(multiplier, width) if factors is None else factors[every]
                product = times(codes[every], factor, half, shift, width, far=far)
                T.buffer_store(found, product, [every])
        else:
            shifted = self._shifted(node, position, factors)
            with vector(lanes) as lane:
                T.buffer_store(found, T.cast((shifted(codes, lane) + half) >> shift, dtype), [lane])
        lane_at = lane_of(lambda lane: broadcast(at(lane), shape_of(value)))
        self.rescaled[node, position] = lambda index: found[lane_at(index)]

    def _shifted(self, node: Node, position: int, factors: Expr) -> Callable[[Expr, Expr], Expr]:
        """The product of a code and its multiplier without a multiplication. factors: per lane, or None for one."""
        assert isinstance(node.op, _ToCodes)
        known = rescaling(node.inputs[position].tensor, node.op.scale).multiplier.reshape(-1)
        if factors is not None:
            return lambda codes, lane: shift_products.times_own(
                T.cast(codes[lane], "int64"), T.cast(factors[lane], "int64"), known
            )
        digits = [(place, int(sign)) for place, sign in signed_digits.planes(known[0])]
        places = self.scope.constant((node, position, "digits"), np.array([place for place, _ in digits], np.int64))
        signs = [sign for _, sign in digits]
        return lambda codes, lane: shift_products.times_one(T.cast(codes[lane], "int64"), signs, places)

    def _staged(self, value: Value) -> list[Node]:
        """Nodes of the region's expression, in order, that whole vectors compute."""
        node = value.node
        if node is None or value in self.given or type(node.op) not in (*POINTWISE, *RENAMING):
            return []
        if value in self.reader.stored:
            return []
        found = [inner for operand in node.inputs for inner in self._staged(operand)]
        if isinstance(node.op, ops.Requantize | ops.IntAdd):
            return [*found, node]
        bytes_only = isinstance(node.op, ops.IntTable) and all(v.tensor.dtype.bits == 8 for v in node.inputs)
        return [*found, node] if bytes_only and self.isa.byte_table else found


def lane_of(at: Callable[[Expr], Index]) -> Callable[[Index], Expr]:
    """From the index of an element of a vector back to its lane."""
    first = at(0)

    def lane(index: Index) -> Expr:
        found: Expr = 0
        for i, j in zip(index, first, strict=True):
            found = found + (i - j)
        return found

    return lane


def times(codes: Expr, factor: Expr, addend: Expr, shift: Expr, lanes: int, *, far: bool = False) -> Expr:
    """(codes * factor + addend) >> shift for int32 vectors, where results have 32 bits.

    addend: int64. far: the shift is known to be more than 32 and the addend a multiple of 2**32, so that only the upper
    halves of products count, to which that of the addend is added.

    The products of even and of odd lanes have 64 bits in the same registers, so that nothing moves across lanes.
    """
    pairs = lanes // 2
    even, odd = even_lanes(codes, lanes) * even_lanes(factor, lanes), odd_lanes(codes, lanes) * odd_lanes(factor, lanes)
    if far:
        high = upper_halves(even, odd, lanes) + T.Broadcast(T.cast(addend >> T.int64(32), "int32"), lanes)
        return high >> T.Broadcast(T.cast(shift - T.int64(32), "int32"), lanes)
    amount, half, bits = (T.Broadcast(number, pairs) for number in (shift, addend, T.int64(32)))
    low = ((even + half) >> amount) & T.Broadcast(T.int64(0xFFFFFFFF), pairs)
    return T.reinterpret(f"int32x{lanes}", low | (((odd + half) >> amount) << bits))


def even_lanes(vector: Expr, lanes: int) -> Expr:
    """Even lanes of an int32 vector as int64."""
    bits = T.Broadcast(T.int64(32), lanes // 2)
    return (T.reinterpret(f"int64x{lanes // 2}", vector) << bits) >> bits


def odd_lanes(vector: Expr, lanes: int) -> Expr:
    """Odd lanes of an int32 vector as int64."""
    return T.reinterpret(f"int64x{lanes // 2}", vector) >> T.Broadcast(T.int64(32), lanes // 2)


def upper_halves(even: Expr, odd: Expr, lanes: int) -> Expr:
    """Upper halves of int64 products of even and of odd lanes, in turns, as an int32 vector."""
    places = [tirx.const(part, "int32") for i in range(1, lanes, 2) for part in (i, lanes + i)]
    return tirx.Shuffle([T.reinterpret(f"int32x{lanes}", product) for product in (even, odd)], places)


def pieces(extent: int, widest: int) -> Iterator[tuple[int, int]]:
    """Start and width of vectors that cover a row, widths being powers of two: others are slow."""
    start = 0
    while start < extent:
        lanes = min(widest, 1 << ((extent - start).bit_length() - 1))
        yield start, lanes
        start += lanes


def spans(extent: int, width: int) -> Iterator[tuple[Expr, int]]:
    """Start and width of parts of a row: a loop over whole ones, then what is left."""
    whole = extent // width
    if whole > 1:
        with T.serial(0, whole) as part:
            yield part * width, width
    elif whole:
        yield 0, width
    if extent % width:
        yield whole * width, extent % width


def chunks(extent: int, widest: int) -> Iterator[tuple[Expr, int]]:
    """Start and width of vectors that cover a row: a loop over the widest, then smaller ones."""
    for start, width in spans(extent, widest):
        for inner, lanes in pieces(width, widest):
            yield start + inner, lanes
