"""IntLinear and IntConv by weights with many zeros: only groups of inputs that blocks of outputs use are multiplied.

Neighbouring outputs, four or sixteen, share the inputs that any of them uses (structure OB4 of `planish.ir.sparsity`,
"4x1" in arXiv 2306.16601, whose index loop this is). Codes are transposed in blocks of tokens once, so that a vector
holds many tokens of one input, four of which are interleaved as they are met. Sums are transposed back a block at a
time and go the way of dense ones from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx, sparse_blocks
from planish.backends.tvm.by_column import ByColumn
from planish.backends.tvm.column_codes import Sums
from planish.backends.tvm.interleaving import blocked, transpose_codes
from planish.backends.tvm.isa import Isa, Product, TileProduct
from planish.backends.tvm.scope import Expr, Scope
from planish.backends.tvm.sparse_weights import GROUP, ROW_GROUPS, Compact
from planish.backends.tvm.sparse_work import WIDTH, Work
from planish.backends.tvm.tiles import Rows, either
from planish.backends.tvm.token_blocks import TokenBlocks

_PIECES, _TILE_PIECES = 24, 12  # of a kernel's work, for all threads; fewer where each sets up tiles

Finish = Callable[[Expr, Expr, int, Callable[[Expr], Expr]], None]
"""Takes a row, the first column of a block, the count of columns, and sums as a function of the column in the block."""


def multiply(
    rows: Rows | None,
    made: TokenBlocks | None,
    count: int,
    depth: int,
    columns: int,
    weights: Compact,
    start: Expr,
    isa: Isa,
    product: Product | TileProduct,
    scope: Scope,
    finish: Finish,
    by_column: ByColumn | None,
) -> None:
    """Products of `count` rows by sparse weights [depth, columns], handed to `finish` row by row, WIDTH columns each.

    One row of codes stays as it is, and four sums are a vector; weights and places are streamed.
    made: where blocks of tokens are kept that several kernels read; rows: None if they are there already.
    start: what sums of columns start from, int32, at least whole blocks of columns.
    by_column: finishes whole blocks instead, or all of them where it hands codes on in blocks.
    """
    one = count == 1 and isinstance(product, Product)
    codes, padded = _in_blocks(rows, made, count, depth, isa, product, scope, one)
    constants = (
        scope.constant("starts", weights.starts),
        scope.constant("places", weights.places),
        scope.constant("values", weights.values),
        scope.constant("sizes", weights.sizes),
    )
    gathers = not one and weights.outputs == amx.ROWS
    work = Work(isa, product, count, padded, codes, *constants, start)
    blocks, across = -(-count // work.wide), -(-columns // WIDTH)
    rest, last = count - (blocks - 1) * work.wide, columns - (across - 1) * WIDTH

    def task(block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr, spare: Expr | None) -> None:
        body = _of_one_row if one else _in_vectors
        if gathers:
            body = sparse_blocks.in_tiles if isinstance(product, TileProduct) else sparse_blocks.in_vectors
        whole = by_column is not None and (tokens == work.wide or by_column.target is not None) and not one
        body(work, weights.outputs, block, column, tokens, used, room, place, not whole)
        if whole:
            assert by_column is not None
            added = gathers and isinstance(product, TileProduct)
            sums = Sums(room, place, work.wide, start if added else None, column * WIDTH)
            by_column.finish(block, tokens, column * WIDTH, used, sums, spare)
            return
        with T.serial(0, tokens) as token:
            row, first = (room, place) if one else (work.row(token, used, room, place), 0)
            finish(block * work.wide + token, column * WIDTH, used, lambda c: row[first + c])

    aside = by_column.room if by_column is not None and not one else None
    with _shared_out(weights, blocks, rest, across, scope, work, gathers, aside) as (number, room, place, spare):
        block, column = T.floordiv(number, across), T.floormod(number, across)

        def of_columns(tokens: int) -> None:
            either(last < WIDTH and across > 1, column < across - 1,
                    lambda: task(block, column, tokens, WIDTH if across > 1 else last, room, place, spare),
                    lambda: task(block, column, tokens, last, room, place, spare))  # fmt: skip

        either(rest < work.wide and blocks > 1, block < blocks - 1,
                lambda: of_columns(work.wide if blocks > 1 else rest),
                lambda: of_columns(rest))  # fmt: skip


def _in_blocks(
    rows: Rows | None,
    made: TokenBlocks | None,
    count: int,
    depth: int,
    isa: Isa,
    product: Product | TileProduct,
    scope: Scope,
    one: bool,
) -> tuple[Expr, int]:
    """Codes in blocks of tokens, and K as they have it; a single row as it is."""
    if one:
        assert rows is not None
        return rows.array, depth
    shape = blocked(count, depth, isa) if made is None else made.shape
    codes = scope.scratch((math.prod(shape),), product.dtype) if made is None else made.array(scope)
    if rows is not None:
        transpose_codes(rows, count, shape, codes, scope)
    return codes, shape[1]


def _in_vectors(
    work: Work, outputs: int, block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr, settled: bool
) -> None:
    """Sums of a block of tokens by `used` columns, a few outputs at a time, as `Work.settle` leaves them in `room`."""
    isa, product = work.isa, work.product
    assert isinstance(product, Product)
    lanes, every = isa.lanes, T.Ramp(0, 1, isa.lanes)
    base = block * (work.depth * work.wide)
    with T.serial(0, -(-used // outputs)) as part:
        first = column * WIDTH + part * outputs
        bundle = column * (WIDTH // outputs) + part
        most = isa.registers // 2 // outputs  # vectors whose sums stay in registers
        for left in range(0, -(-tokens // lanes), most):
            count = min(most, -(-tokens // lanes) - left)
            sums = [[T.alloc_buffer((lanes,), "int32", scope="global") for _ in range(count)] for _ in range(outputs)]
            for output, across in enumerate(sums):
                for acc in across:
                    T.buffer_store(acc, T.Broadcast(work.start[first + output], lanes), [every])
            with T.serial(0, work.starts[bundle + 1] - work.starts[bundle]) as step:
                group = work.starts[bundle] + step
                found = work.gathered(base, group, left + count)[left:]
                for output, across in enumerate(sums):
                    word = T.Broadcast(work.values[group * outputs + output], lanes)
                    panel = T.reinterpret(f"int8x{lanes * GROUP}", word)
                    for acc, inputs in zip(across, found, strict=True):
                        T.buffer_store(acc, product.of_vectors(acc[every], inputs, panel, lanes), [every])
            for i in range(count):
                for output in range(0, outputs, GROUP):
                    found = [across[i][every] for across in sums[output : output + GROUP]]
                    above = place + (part * outputs + output) * work.wide
                    if settled:
                        work.settle(found, left + i, room, above)
                        continue
                    for j, acc in enumerate(found):
                        T.buffer_store(room, acc, [T.Ramp(above + j * work.wide + (left + i) * lanes, 1, lanes)])


def _of_one_row(
    work: Work, outputs: int, block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr, settled: bool
) -> None:
    """The same for a single row: the four codes of a group become one word; in `room`: [used]."""
    assert isinstance(work.product, Product)
    product, every = work.product.narrowed(outputs), T.Ramp(0, 1, outputs)
    with T.serial(0, -(-used // outputs)) as part:
        bundle = column * (WIDTH // outputs) + part
        sums = [T.alloc_buffer((outputs,), "int32", scope="global") for _ in range(ROW_GROUPS)]
        for i, acc in enumerate(sums):
            start = work.start[T.Ramp(column * WIDTH + part * outputs, 1, outputs)]
            T.buffer_store(acc, T.Broadcast(T.int32(0), outputs) if i else start, [every])
        first = work.starts[bundle]
        with T.serial(0, work.starts[bundle + 1] - first) as step:
            for i, acc in enumerate(sums):
                group = (first + step) * ROW_GROUPS + i
                word: Expr = T.uint32(0)
                for j, k in enumerate(work.inputs(group)):
                    word = word | T.cast(work.codes[k], "uint32") << T.uint32(8 * j)
                codes = T.reinterpret(f"{product.dtype}x{outputs * GROUP}", T.Broadcast(word, outputs))
                weights = work.values[T.Ramp(group * outputs, 1, outputs)]
                panel = T.reinterpret(f"int8x{outputs * GROUP}", weights)
                T.buffer_store(acc, product.of_vectors(acc[every], codes, panel, outputs), [every])
        total = sum((acc[every] for acc in sums[1:]), sums[0][every])
        T.buffer_store(room, total, [T.Ramp(place + part * outputs, 1, outputs)])


@contextmanager
def _shared_out(
    weights: Compact,
    blocks: int,
    rest: int,
    across: int,
    scope: Scope,
    work: Work,
    gathers: bool,
    aside: Callable[[], Expr | None] | None,
) -> Iterator[tuple[Expr, Expr, Expr, Expr | None]]:
    """A loop over blocks of tokens by blocks of columns on all threads, in pieces of almost equal work.

    Yields the number of the task, room for its sums, int32 elements of a flat array from a place on, and what else
    `aside` allocates.
    """
    bundles = WIDTH // weights.outputs
    edges = np.minimum(np.arange(across + 1) * bundles, weights.starts.size - 1)
    each = np.diff(weights.starts[edges]).astype(np.float64) * weights.unit * weights.outputs + WIDTH * _FINISHING
    whole = np.concatenate([np.tile(each, blocks - 1), each * rest / work.wide])
    pieces = min(whole.size, _TILE_PIECES if isinstance(work.product, TileProduct) else _PIECES)
    done = np.concatenate([[0.0], np.cumsum(whole)])
    bounds = np.searchsorted(done, done[-1] * np.arange(pieces + 1) / pieces - 1e-9 * done[-1])
    bounds[-1] = whole.size
    limits = scope.constant("bounds", bounds.astype(np.int32))
    size = work.wide * WIDTH + max(work.isa.lanes, sparse_blocks.room_of(work) if gathers else 0)
    with T.parallel(0, pieces) as piece:  # loops start from 0: TVM loses where one starts that is read from memory
        room = T.alloc_buffer((size,), "int32", scope="global")
        spare = None if aside is None else aside()
        tiles = amx.configured(scope, piece, pieces) if isinstance(work.product, TileProduct) else nullcontext()
        with tiles, T.serial(0, limits[piece + 1] - limits[piece]) as step:
            yield limits[piece] + step, room, T.int64(0), spare


_FINISHING = 8  # groups of four inputs whose products take as long as all that follows a sum
