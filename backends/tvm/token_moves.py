"""Rows of tokens taken by index, and where tokens are after a choice."""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks
from planish.backends.tvm.expressions import Reader, shape_of
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope


def taken(region: Region, context: Context) -> Kernel:
    """TakeTokens, row by row: readers such as products go over rows often, so the rows are put side by side."""
    node, scope = region.anchor, Scope()
    assert node is not None
    x, index = node.inputs
    shape, reader, row = shape_of(node.result), Reader(scope, context.stored, {}), list[Expr]()

    def element(where: Index) -> Expr:
        place = row[0][0] if row else T.cast(reader.at(index, where[:2]), "int32")
        return reader.at(x, (where[0], place, *where[2:]))

    epilogue = Epilogue(scope, region, context, element)
    with IRBuilder() as builder, T.seq_scope(), loops(shape[:-1]) as outer:
        if len(shape) > 2:
            row.append(variable("int32", T.cast(reader.at(index, outer[:2]), "int32")))
        for start, lanes in chunks(shape[-1], WIDEST if len(shape) > 2 else context.isa.lanes):
            epilogue.write_lanes(lambda lane, start=start: (*outer, start + lane), lanes)  # type: ignore[misc]
    return scope.finish(builder, region.result)


def placed(region: Region, context: Context) -> Kernel:
    """PlaceTokens: the places of those that stay, then of those that they have taken in."""
    node, scope = region.anchor, Scope()
    assert node is not None
    keep, source, into = node.inputs
    reader, place = Reader(scope, context.stored, {}), list[Expr]()
    epilogue = Epilogue(scope, region, context, lambda _: place[0])
    with IRBuilder() as builder, T.seq_scope(), loops(shape_of(node.result)[:1]) as (sample,):
        with T.serial(0, shape_of(keep)[1]) as i:
            place[:] = [T.cast(i, "int64")]
            epilogue.write((sample, T.cast(reader.at(keep, (sample, i)), "int32")))
        with T.serial(0, shape_of(source)[1]) as j:
            place[:] = [reader.at(into, (sample, j))]
            epilogue.write((sample, T.cast(reader.at(source, (sample, j)), "int32")))
    return scope.finish(builder, region.result)
