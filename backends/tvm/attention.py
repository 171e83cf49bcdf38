"""Attention on codes, row by row: products with the keys, exponentials, and the mean of the values in one kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx
from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, lane_of, pieces, spans
from planish.backends.tvm.expressions import Reader, broadcast, largest, rescaled, shape_of, unravelled
from planish.backends.tvm.isa import TileProduct, reduced
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.repack import Packed, copy_rows
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.tiles import Rows, Start, multiply, shared_out, tiling
from planish.ir import dtypes, ops
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.ops.int_softmax import EXP_ENTRIES
from planish.ir.ops.quantize import quant_of


def attention(region: Region, context: Context) -> Kernel:
    """One head at a time: its queries, keys and values are packed, then blocks of rows go all the way.

    Only the logits and exponentials of a block are in memory, and they stay in the nearest cache.
    """
    return _Attention(region, context).kernel()


class _Attention:
    """Extents: `rows` queries of `width`, `tokens` keys, `depth` columns of values, for each of `heads`."""

    def __init__(self, region: Region, context: Context):
        found = region.attention
        assert found is not None
        assert isinstance(found.exponential.op, ops.IntExp)
        assert isinstance(found.mean.op, ops.IntWeightedMean)
        self.region, self.context, self.isa, self.scope = region, context, context.isa, Scope()
        self.product_node = found.product
        self.exp, self.bits = found.exponential.op, found.mean.op.bits
        (self.queries, self.keys), self.values = found.product.inputs, found.mean.inputs[1]
        self.logits, *self.keep = found.exponential.inputs
        self.reader = Reader(self.scope, context.stored, {})
        self.added = _added_to_rows(self.logits, self.product_node)
        others = _others(self.logits, self.product_node, self.added)
        # Then whole vectors of logits cost nothing more.
        self.padded = all(constant(value) is not None for value in others)
        # Those behind the last one are like it, or else they mustn't count.
        self.repeated = all(shape_of(value)[-1:] in ((), (1,)) for value in others)
        *self.batch, self.rows, self.width = shape_of(self.queries)
        self.tokens, self.depth, self.heads = shape_of(self.keys)[-1], shape_of(self.values)[-1], math.prod(self.batch)
        lanes = self.lanes = self.isa.lanes
        product = self.product = self.isa.product_of(self.queries.tensor.dtype, self.rows)
        means = self.mean_product = self.isa.product_of(dtypes.u8, self.rows)
        self.vectors = self.isa.product(dtypes.u8)  # sums of keys and of numerators
        self.group = product.group
        self.plan = tiling(self.rows, min(self.tokens, 4 * lanes), self.isa, product)
        self.zero = quant_of("x", self.queries.tensor).zero + product.shift(self.queries.tensor.dtype)
        self.steps, self.mean_steps = -(-self.width // product.depth), -(-self.tokens // means.depth)
        k_depth, v_depth = self.steps * product.depth, self.mean_steps * means.depth
        self.columns = _padded(self.tokens, lanes)
        self.across = _padded(self.tokens, max(WIDEST, means.depth))  # of logits and numerators
        self.k, self.v = (
            Packed(self.scope.scratch((size,), "int8"), depth, columns, lanes, self.group)
            for size, depth, columns in (
                (self.heads * self.columns * k_depth, k_depth, self.tokens),
                (self.heads * _padded(self.depth, lanes) * v_depth, v_depth, self.depth),
            )
        )
        self.q = self.rows_of_queries()
        self.first = self.scope.scratch((self.heads * self.columns,), "int32")
        self.addends = [self.scope.scratch((self.heads, self.columns), "int32") for _ in self.added]
        self.codes = self.scope.scratch(
            (self.heads, self.plan.height * self.across), str(self.logits.tensor.dtype.storage)
        )
        self.numerators = self.scope.scratch((self.heads * self.plan.height * self.across + WIDEST,), means.dtype)
        self.table = self.scope.constant("exp", self.exp.table(self.logits.tensor).astype(np.uint8))
        self.scope.reaching(amx.ROWS * max(self.q.stride, self.across) + product.depth)

    def rows_of_queries(self) -> Rows:
        """Where they are stored, if they are stored as rows that products take; else room for a copy."""
        stride, shift = _padded(self.width, self.group), self.product.shift(self.queries.tensor.dtype)
        self.copied = self.queries not in self.context.stored or shift != 0 or stride != self.width
        self.copied = self.copied or self.product.dtype != str(self.queries.tensor.dtype.storage)
        if not self.copied:
            return Rows(self.scope.flat(self.queries), stride)
        return Rows(self.scope.scratch((self.heads * self.rows * stride + WIDEST,), self.product.dtype), stride)

    def kernel(self) -> Kernel:
        with IRBuilder() as builder, T.seq_scope(), shared_out(self.heads, self.scope, self.product) as (head, room):
            index = unravelled(head, self.batch)
            if self.copied:
                self.copy_queries(head, index)
            self.k.by_column(head, self.width, lambda e, n: self.reader.at(self.keys, (*index, e, n)))
            self.v.by_row(head, self.tokens, lambda n, e: self.reader.at(self.values, (*index, n, e)))
            if self.zero:
                self.start_of_sums(head)
            self.rescale_addends(head, index)
            row = 0
            for count, height in self.plan.spans:
                with T.serial(0, count) as block:
                    self.block(room, head, index, row + block * height, height)
                row += count * height
        return self.scope.finish(builder, self.region.result)

    def block(self, room: amx.Room | None, head: Expr, index: Index, row: Expr, height: int) -> None:
        """A block of rows, from logits to results."""
        self.logits_of(room, head, index, row, height)
        weights = T.alloc_buffer((height,), "int32", scope="global")
        with T.serial(0, height) as i:
            T.buffer_store(weights, self.exponentials_of(head, index, row + i, i), [i])
        self.means_of(room, head, index, row, height, weights)

    def copy_queries(self, head: Expr, index: Index) -> None:
        copy_rows(
            self.q, head * self.rows, self.rows, self.width, self.product, self.queries.tensor.dtype,
            lambda n, e: self.reader.at(self.queries, (*index, n, e)),
        )  # fmt: skip

    def start_of_sums(self, head: Expr) -> None:
        """What the zero point of the queries adds to the sum of each key."""
        self.k.sum_columns(head, self.vectors, self.first, self.scope.number("offset", -self.zero))

    def rescale_addends(self, head: Expr, index: Index) -> None:
        """What is added to every row of logits, once on the scale of the sums; the last one repeated, as keys are."""
        for (node, position), array in zip(self.added, self.addends, strict=True):
            with T.serial(0, self.columns // self.lanes) as block, vector(self.lanes) as lane:
                token = block * self.lanes + lane
                place = T.min(token, self.tokens - 1) if self.columns > self.tokens else token
                addend, _ = rescaled(node, position, self.reader, (*index, 0, place))
                T.buffer_store(array, T.cast(addend, "int32"), [head, token])

    def logits_of(self, room: amx.Room | None, head: Expr, index: Index, row: Expr, height: int) -> None:
        """Logits of a block of rows, as codes."""
        lanes = self.lanes
        for column, used in spans(self.columns if self.padded else self.tokens, self.plan.vectors * lanes):

            def finish(i: Expr, sums: Callable[[Expr], Expr], column: Expr = column, used: int = used) -> None:
                for start, count in pieces(used, WIDEST):
                    self.store_logits(head, (*index, row + i), column + start, count, i, lambda c, s=start: sums(s + c))  # type: ignore[misc]

            first = Start(self.first, head * self.columns + column)
            multiply(
                self.q, head * self.rows + row, height, -(-used // lanes), self.steps,
                self.k.panels(head, T.floordiv(column, lanes)),
                first if self.zero else None, self.isa, self.product, room, finish,
            )  # fmt: skip

    def store_logits(
        self, head: Expr, outer: Index, first: Expr, count: int, i: Expr, sums: Callable[[Expr], Expr]
    ) -> None:
        def at(lane: Expr) -> Index:
            return (*outer, first + lane)

        lane_at = lane_of(at)
        region = Region(self.logits, self.logits, (), self.product_node)
        codes = Epilogue(self.scope, region, self.context, lambda where: sums(lane_at(where)))
        for place, array in zip(self.added, self.addends, strict=True):
            codes.prepared[place] = lambda where, array=array: array[head, where[-1]]  # type: ignore[misc]
        codes.stage(at, count)
        with vector(count) as lane:
            code = codes.reader.at(self.logits, at(lane))
            T.buffer_store(self.codes, code, [head, i * self.across + first + lane])

    def exponentials_of(self, head: Expr, index: Index, row: Expr, i: Expr) -> Expr:
        """Numerators of a row, and zeros behind them; the value is their sum, at least 1."""
        dtype, columns = self.logits.tensor.dtype, self.columns if self.padded else self.tokens
        stored, lanes = str(dtype.storage), T.Ramp(0, 1, self.lanes)

        def kept(token: Expr) -> Expr:
            where = (*index, row, T.min(token, self.tokens - 1) if self.padded else token)
            return self.reader.at(self.keep[0], broadcast(where, shape_of(self.keep[0])))

        def code(token: Expr) -> Expr:
            c = self.codes[head, i * self.across + token]
            return T.Select(kept(token), c, T.Cast(stored, dtype.min)) if self.keep else c

        greatest = self.greatest(code, columns if self.repeated else self.tokens, stored)
        sums = T.alloc_buffer((self.lanes,), "int32", scope="global")
        T.buffer_store(sums, T.Broadcast(T.int32(0), self.lanes), [lanes])
        for start, used in spans(self.tokens, WIDEST):
            distance, found = (T.alloc_buffer((WIDEST,), "uint8", scope="global") for _ in range(2))
            for first, count in pieces(_padded(used, self.lanes) if self.padded else used, WIDEST):
                with vector(count) as lane:
                    below = self.distance(greatest, code(start + first + lane), stored)
                    T.buffer_store(distance, below, [first + lane])
            self.look_up(distance, found, used)
            numerators = T.alloc_buffer((WIDEST,), "uint8", scope="global")
            with vector(WIDEST) as lane:
                inside = found[lane] if used == WIDEST else T.Select(lane < used, found[lane], T.uint8(0))
                T.buffer_store(numerators, inside, [lane])
            if self.keep:
                for first, count in pieces(used, WIDEST):
                    with vector(count) as lane:
                        e = T.Select(kept(start + first + lane), numerators[first + lane], T.uint8(0))
                        T.buffer_store(numerators, e, [first + lane])
            with vector(WIDEST) as lane:
                e = T.cast(numerators[lane], self.mean_product.dtype)
                T.buffer_store(self.numerators, e, [self.numerator(head, i, start + lane)])
            for first in range(0, WIDEST, self.k.panel):
                e = self.numerators[T.Ramp(self.numerator(head, i, start + first), 1, self.k.panel)]
                T.buffer_store(sums, self.vectors.total(sums[lanes], e, self.lanes), [lanes])
        return T.max(reduced("add", sums, self.lanes), 1)

    def greatest(self, code: Callable[[Expr], Expr], columns: int, stored: str) -> Expr:
        """The greatest code of a row."""
        wide = min(2 * self.lanes, 1 << (columns.bit_length() - 1))
        most = T.alloc_buffer((wide,), stored, scope="global")
        with vector(wide) as lane:
            T.buffer_store(most, code(lane), [lane])
        for start, count in chunks(columns - wide, wide):
            with vector(count) as lane:
                T.buffer_store(most, T.max(most[lane], code(wide + start + lane)), [lane])
        return variable(stored, reduced("max", most, wide))[0]

    def distance(self, greatest: Expr, code: Expr, stored: str) -> Expr:
        """How far below the greatest code, in the unsigned type of the same size, which holds it; at most a byte."""
        unsigned = "u" + stored.removeprefix("u")
        below = T.cast(greatest, unsigned) - T.cast(code, unsigned)
        return T.cast(T.min(below, T.Cast(unsigned, EXP_ENTRIES - 1)), "uint8")

    def look_up(self, distance: Expr, found: Expr, used: int) -> None:
        """Exponentials of distances."""
        every = T.Ramp(0, 1, WIDEST)
        if self.isa.byte_table:
            T.buffer_store(found, self.isa.lookup(self.table, distance[every], WIDEST), [every])
            return
        for first, count in pieces(used, WIDEST):
            with vector(count) as lane:
                T.buffer_store(found, self.table[T.cast(distance[first + lane], "int32")], [first + lane])

    def numerator(self, head: Expr, i: int, token: Expr) -> Expr:
        return (head * self.plan.height + i) * self.across + token

    def means_of(self, room: amx.Room | None, head: Expr, index: Index, row: Expr, height: int, weights: Expr) -> None:
        """Weighted means of a block of rows, as many columns at a time as there are registers for."""
        lanes = self.lanes
        most = 4 if isinstance(self.mean_product, TileProduct) else max(1, (self.isa.registers - 4) // (height + 1))
        for column in range(0, self.depth, most * lanes):
            used = min(most * lanes, self.depth - column)

            def finish(i: Expr, sums: Callable[[Expr], Expr], column: int = column, used: int = used) -> None:
                self.store_means((*index, row + i), column, used, sums, weights[i])

            multiply(
                Rows(self.numerators, self.across), head * self.plan.height, height, -(-used // lanes),
                self.mean_steps, self.v.panels(head, column // lanes), None,
                self.isa, self.mean_product, room, finish,
            )  # fmt: skip

    def store_means(self, outer: Index, column: int, used: int, sums: Callable[[Expr], Expr], weight: Expr) -> None:
        means = T.alloc_buffer((_padded(used, self.lanes),), "int32", scope="global")
        reciprocal = variable("int64", T.truncdiv(T.int64(2**32), T.cast(weight, "int64")))
        for start, count in pieces(used, self.lanes):
            with vector(count) as lane:
                T.buffer_store(means, self.mean(sums(start + lane), weight, reciprocal[0]), [start + lane])
        epilogue = Epilogue(self.scope, self.region, self.context, lambda where: means[where[-1] - column])
        for start, count in pieces(used, WIDEST):
            epilogue.write_lanes(lambda lane, first=column + start: (*outer, first + lane), count)  # type: ignore[misc]

    def mean(self, total: Expr, weight: Expr, reciprocal: Expr) -> Expr:
        """floor((2**bits * total + weight // 2) / weight) as int32.

        The dividend by floor(2**32 / weight) is at most one off the quotient if it has 31 bits; the remainder tells.
        """
        if (255 * self.tokens) << (7 + self.bits) >= 2**31 - 2**16:
            wide = T.cast(weight, "int64")
            dividend = (T.cast(total, "int64") << T.int64(self.bits)) + (wide >> T.int64(1))
            return T.cast(T.floordiv(dividend, wide), "int32")
        dividend = (total << T.int32(self.bits)) + (weight >> T.int32(1))
        quotient = T.cast((T.cast(dividend, "int64") * reciprocal) >> T.int64(32), "int32")
        rest = dividend - quotient * weight
        above = T.Select(rest >= weight, quotient + 1, quotient)
        return T.Select(rest < 0, quotient - 1, above)


def _padded(extent: int, to: int) -> int:
    return -(-extent // to) * to


def _chain(value: Value, node: Node) -> Iterator[Node]:
    """The ops that lead from the result of `node` to `value`, the last one first."""
    while value is not node.result:
        assert value.node is not None
        yield value.node
        value = value.node.inputs[0]


def _added_to_rows(value: Value, node: Node) -> list[tuple[Node, int]]:
    """Sums between the result of `node` and `value` that add the same to all rows, and the operand's position."""
    sums = [made for made in _chain(value, node) if isinstance(made.op, ops.IntAdd) and largest(made, 1) < 2**31]
    return [(made, 1) for made in sums if shape_of(made.inputs[1])[-2:-1] in ((), (1,))]


def _others(value: Value, node: Node, added: Collection[tuple[Node, int]]) -> list[Value]:
    """What `value` rests on beside the result of `node` and the operands `added`, but for tables."""
    return [
        operand
        for made in _chain(value, node)
        for place, operand in enumerate(made.inputs)
        if place > 0 and (made, place) not in added and not isinstance(made.op, ops.IntTable)
    ]
