"""Attention on codes, row by row: products with the keys, exponentials, and the mean of the values in one kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, lane_of, pieces, spans
from planish.backends.tvm.expressions import Reader, broadcast, shape_of, unravelled
from planish.backends.tvm.isa import reduced
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import variable
from planish.backends.tvm.regions import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.tiles import Rows, tile, tiling
from planish.ir import ops
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
        self.product_node, self.exp_node = found.product, found.exponential
        self.exp, self.bits = found.exponential.op, found.mean.op.bits
        (self.queries, self.keys), self.values = found.product.inputs, found.mean.inputs[1]
        self.logits, *self.keep = found.exponential.inputs
        self.reader = Reader(self.scope, context.stored, {})
        *self.batch, self.rows, self.width = shape_of(self.queries)
        self.tokens, self.depth, self.heads = shape_of(self.keys)[-1], shape_of(self.values)[-1], math.prod(self.batch)
        lanes = self.lanes = self.isa.lanes
        product = self.product = self.isa.product(self.queries.tensor.dtype)
        self.group = product.group
        self.plan = tiling(self.rows, min(self.tokens, 4 * lanes), self.isa, product)
        self.shift = product.shift(self.queries.tensor.dtype)
        self.steps, self.mean_steps = -(-self.width // self.group), -(-self.tokens // self.group)
        self.stride = self.steps * self.group  # of packed queries
        self.across = _padded(self.tokens, WIDEST)  # of logits and numerators
        self.columns = _padded(self.tokens, lanes)
        self.panel = lanes * self.group
        self.q = self.scope.scratch((self.heads * self.rows * self.stride + WIDEST,), product.dtype)
        self.k = self.scope.scratch((self.heads, self.columns * self.stride), "int8")
        self.v = self.scope.scratch((self.heads, _padded(self.depth, lanes) * self.mean_steps * self.group), "int8")
        self.first = self.scope.scratch((self.heads, self.columns), "int32")
        self.codes = self.scope.scratch(
            (self.heads, self.plan.height * self.across), str(self.logits.tensor.dtype.storage)
        )
        self.numerators = self.scope.scratch((self.heads * self.plan.height * self.across + WIDEST,), product.dtype)
        self.table = self.scope.constant("exp", self.exp.table(self.logits.tensor).astype(np.uint8))

    def kernel(self) -> Kernel:
        plan = self.plan
        with IRBuilder() as builder, T.seq_scope(), T.parallel(0, self.heads) as head:
            index = unravelled(head, self.batch)
            self.pack_queries(head, index)
            self.pack(self.k, head, self.width, self.tokens,
                      lambda e, n: self.reader.at(self.keys, (*index, e, n)))  # fmt: skip
            self.pack(self.v, head, self.tokens, self.depth,
                      lambda n, e: self.reader.at(self.values, (*index, n, e)))  # fmt: skip
            self.start_of_sums(head)
            if plan.taller:
                with T.serial(0, plan.taller) as block:
                    self.block(head, index, block * plan.height, plan.height)
            if plan.taller < plan.blocks:
                with T.serial(0, plan.blocks - plan.taller) as block:
                    self.block(head, index, block * (plan.height - 1) + plan.taller * plan.height, plan.height - 1)
        return self.scope.finish(builder, self.region.result)

    def block(self, head: Expr, index: Index, row: Expr, height: int) -> None:
        """A block of rows, from logits to results."""
        self.logits_of(head, index, row, height)
        weights = T.alloc_buffer((height,), "int32", scope="global")
        for i in range(height):
            T.buffer_store(weights, self.exponentials_of(head, index, row + i, i), [i])
        self.means_of(head, index, row, height, weights)

    def pack_queries(self, head: Expr, index: Index) -> None:
        with T.serial(0, self.rows) as n:
            place = (head * self.rows + n) * self.stride
            for start, count in chunks(self.width, WIDEST):
                with vector(count) as e:
                    code = T.cast(self.reader.at(self.queries, (*index, n, start + e)), "int32") + self.shift
                    T.buffer_store(self.q, T.cast(code, self.product.dtype), [place + start + e])
            for e in range(self.width, self.stride):
                T.buffer_store(self.q, T.Cast(self.product.dtype, 0), [place + e])

    def pack(self, panels: Expr, head: Expr, inner: int, columns: int, at: Callable[[Expr, Expr], Expr]) -> None:
        """[inner, columns] as [columns / lanes][inner / group][lanes * group], with zeros where it ends."""
        deep = -(-inner // self.group)
        with T.serial(0, deep) as k:
            for start, count in chunks(columns, self.lanes):
                place = (T.floordiv(start, self.lanes) * deep + k) * self.panel + T.floormod(
                    start, self.lanes
                ) * self.group
                for g in range(self.group):
                    with vector(count) as lane:
                        inside = k * self.group + g
                        code = at(T.min(inside, inner - 1), start + lane)
                        if inner % self.group:
                            code = T.Select(inside < inner, code, T.int8(0))
                        T.buffer_store(panels, code, [head, place + lane * self.group + g])

    def start_of_sums(self, head: Expr) -> None:
        """What the zero point of the queries adds to the sum of each key."""
        zero = quant_of("x", self.queries.tensor).zero + self.shift
        every = T.Ramp(0, 1, self.lanes)
        with T.serial(0, self.columns // self.lanes) as block:
            total = T.alloc_buffer((self.lanes,), "int32", scope="global")
            T.buffer_store(total, T.Broadcast(T.int32(0), self.lanes), [every])
            with T.serial(0, self.steps) as k:
                panel = self.k[head, T.Ramp((block * self.steps + k) * self.panel, 1, self.panel)]
                T.buffer_store(total, self.product(total[every], self.product.ones, panel, self.lanes), [every])
            offset = T.Broadcast(T.cast(self.scope.number("offset", -zero), "int32"), self.lanes)
            T.buffer_store(self.first, total[every] * offset, [head, T.Ramp(block * self.lanes, 1, self.lanes)])

    def logits_of(self, head: Expr, index: Index, row: Expr, height: int) -> None:
        """Logits of a block of rows, as codes."""
        lanes, steps = self.lanes, self.steps
        rows = Rows(self.q, self.stride)
        for column, used in spans(self.tokens, self.plan.vectors * lanes):
            first = T.floordiv(column, lanes)
            vectors = -(-used // lanes)
            sums = tile(
                rows, head * self.rows + row, height, vectors, steps,
                lambda k, v, first=first: self.k[  # type: ignore[misc]
                    head, T.Ramp(((first + v) * steps + k) * self.panel, 1, self.panel)
                ],
                lambda v, column=column: self.first[head, T.Ramp(column + v * lanes, 1, lanes)],  # type: ignore[misc]
                self.isa, self.product,
            )  # fmt: skip
            for i, acc in enumerate(sums):
                for start, count in pieces(used, WIDEST):

                    def at(lane: Expr, i: int = i, first: Expr = column + start) -> Index:
                        return (*index, row + i, first + lane)

                    lane_at = lane_of(at)
                    codes = Epilogue(
                        self.scope,
                        Region(self.logits, self.logits, (), self.product_node),
                        self.context,
                        lambda where, acc=acc, start=start, f=lane_at: acc[start + f(where)],  # type: ignore[misc]
                    )
                    codes.stage(at, count)
                    with vector(count) as lane:
                        code = codes.reader.at(self.logits, at(lane))
                        T.buffer_store(self.codes, code, [head, i * self.across + column + start + lane])

    def exponentials_of(self, head: Expr, index: Index, row: Expr, i: int) -> Expr:
        """Numerators of a row; the value is their sum, at least 1."""
        least, wide = self.logits.tensor.dtype.min, min(2 * self.lanes, 1 << (self.tokens.bit_length() - 1))
        place, every = i * self.across, T.Ramp(0, 1, WIDEST)

        stored = str(self.logits.tensor.dtype.storage)

        def kept(token: Expr) -> Expr:
            where = (*index, row, token)
            return self.reader.at(self.keep[0], broadcast(where, shape_of(self.keep[0])))

        def code(token: Expr) -> Expr:
            c = self.codes[head, place + token]
            return T.Select(kept(token), c, T.Cast(stored, least)) if self.keep else c

        most = T.alloc_buffer((wide,), stored, scope="global")
        with vector(wide) as lane:
            T.buffer_store(most, code(lane), [lane])
        for start, count in chunks(self.tokens - wide, wide):
            with vector(count) as lane:
                T.buffer_store(most, T.max(most[lane], code(wide + start + lane)), [lane])
        greatest = variable(most.dtype, reduced("max", most, wide))
        sums = T.alloc_buffer((self.lanes,), "int32", scope="global")
        with vector(self.lanes) as lane:
            T.buffer_store(sums, T.int32(0), [lane])
        for start, count in chunks(self.tokens, WIDEST):
            distance, found = (T.alloc_buffer((WIDEST,), "uint8", scope="global") for _ in range(2))
            with vector(count) as lane:
                below = T.cast(greatest[0], "int32") - T.cast(code(start + lane), "int32")
                below = T.min(below, T.int32(EXP_ENTRIES - 1))
                T.buffer_store(distance, T.cast(below, "uint8"), [lane])
            if self.isa.byte_table:
                T.buffer_store(found, self.isa.lookup(self.table, distance[every], WIDEST), [every])
            else:
                with vector(count) as lane:
                    T.buffer_store(found, self.table[T.cast(distance[lane], "int32")], [lane])
            with vector(count) as lane:
                e = T.Select(kept(start + lane), found[lane], T.uint8(0)) if self.keep else found[lane]
                T.buffer_store(self.numerators, T.cast(e, self.product.dtype), [self.numerator(head, i, start + lane)])
        depth = self.mean_steps * self.group
        for token in range(self.tokens, _padded(depth, self.panel)):
            T.buffer_store(self.numerators, T.Cast(self.product.dtype, 0), [self.numerator(head, i, token)])
        for start, _ in chunks(_padded(depth, self.panel), self.panel):
            e = self.numerators[T.Ramp(self.numerator(head, i, start), 1, self.panel)]
            lanes = T.Ramp(0, 1, self.lanes)
            T.buffer_store(sums, self.product.total(sums[lanes], e, self.lanes), [lanes])
        return T.max(reduced("add", sums, self.lanes), 1)

    def numerator(self, head: Expr, i: int, token: Expr) -> Expr:
        return (head * self.plan.height + i) * self.across + token

    def means_of(self, head: Expr, index: Index, row: Expr, height: int, weights: Expr) -> None:
        """Weighted means of a block of rows, as many columns at a time as there are registers for."""
        lanes = self.lanes
        most = max(1, (self.isa.registers - 4) // (height + 1))
        for column in range(0, self.depth, most * lanes):
            used = min(most * lanes, self.depth - column)
            vectors = -(-used // lanes)
            sums = tile(
                Rows(self.numerators, self.across), head * self.plan.height, height, vectors, self.mean_steps,
                lambda k, v, first=column // lanes: self.v[  # type: ignore[misc]
                    head, T.Ramp(((first + v) * self.mean_steps + k) * self.panel, 1, self.panel)
                ],
                lambda v: T.Broadcast(T.int32(0), lanes),
                self.isa, self.product,
            )  # fmt: skip
            for i, acc in enumerate(sums):
                means = T.alloc_buffer((vectors * lanes,), "int32", scope="global")
                reciprocal = variable("int64", T.truncdiv(T.int64(2**32), T.cast(weights[i], "int64")))
                for start, count in pieces(used, lanes):
                    with vector(count) as lane:
                        mean = self.mean(acc[start + lane], weights[i], reciprocal[0])
                        T.buffer_store(means, mean, [start + lane])
                epilogue = Epilogue(
                    self.scope,
                    self.region,
                    self.context,
                    lambda where, means=means, column=column: means[where[-1] - column],  # type: ignore[misc]
                )
                for start, count in pieces(used, WIDEST):

                    def at(lane: Expr, i: int = i, first: int = column + start) -> Index:
                        return (*index, row + i, first + lane)

                    epilogue.write_lanes(at, count)

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
