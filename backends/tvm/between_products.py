"""Which codes are kept in blocks of tokens between sparse products: the layout of values, decided in one place.

A product hands its codes on by column where sparse products alone read them, and nothing is transposed. Where several
sparse products read codes that are stored in rows, the first one's transposed codes serve the others.

Measured for 768 x 3072, a table, and 3072 x 768 with 128 tokens, one thread: times faster than with rows between them
and requantization as for dense products, by blocks of outputs that are zero together:

    zeros    avx512-vbmi, 4    16      amx-int8, 4    16
    50 %     1.05              1.08    dense          1.27
    80 %     1.10              1.14    dense          1.25
    90 %     1.19              1.27    1.11           1.33
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from planish.backends.tvm.by_column import is_by_column
from planish.backends.tvm.epilogue import Context
from planish.backends.tvm.expressions import RENAMING, shape_of
from planish.backends.tvm.gemm import is_packable, weights_of
from planish.backends.tvm.interleaving import blocked
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Scratch
from planish.backends.tvm.sparse_weights import Form
from planish.backends.tvm.token_blocks import Layouts, TokenBlocks
from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import Op

_VIEWS: tuple[type[Op], ...] = (ops.Reshape, ops.Squeeze, ops.Unsqueeze, *RENAMING)


def layouts(found: Sequence[Region], context: Context) -> Layouts:
    """Layouts of the values that regions store, `found` being in order of computation."""
    every = [part for region in found for part in (region, *region.norms)]
    order = {region.anchor: number for number, region in enumerate(every) if region.anchor is not None}
    forms: dict[Node, Form | None] = {}
    read: dict[Node, TokenBlocks] = {}
    written: dict[Node, TokenBlocks] = {}

    def dtype(node: Node) -> str:
        """Of the codes that a sparse product takes in blocks of tokens; "" for all else."""
        if node not in forms:
            forms[node] = weights_of(node, context).form
        form = forms[node]
        return "" if form is None else form.product.dtype

    for region in every:
        readers = sorted(set(_readers(region.result, context)), key=lambda node: order.get(node, -1))
        able = [node for node in readers if node in order and _is_able(node) and _reads_rows(node, region.result)]
        anchor = region.anchor if _hands_on(region) and able == readers else None
        if not able or (anchor is None and len(able) == 1):
            continue
        kinds = [dtype(node) for node in able]
        if anchor is not None and len(set(kinds)) == 1 and kinds[0] and dtype(anchor):
            written[anchor] = _blocks(region.result, kinds[0], anchor, context, whole=False)
            read.update(dict.fromkeys(able, written[anchor]))
            continue
        for kind in sorted({kind for kind in kinds if kinds.count(kind) > 1} - {""}):
            alike = [node for node, own in zip(able, kinds, strict=True) if own == kind]
            read.update(dict.fromkeys(alike, _blocks(region.result, kind, alike[0], context, whole=True)))
    return Layouts(read, written, forms)


def _is_able(node: Node) -> bool:
    """True for a product that may go by blocks of tokens."""
    rows = math.prod(shape_of(node.inputs[0])[:-1])
    return isinstance(node.op, ops.IntLinear) and is_packable(node) and rows > 1


def _hands_on(region: Region) -> bool:
    """True if a product can store the value in blocks of tokens."""
    anchor = region.anchor
    able = anchor is not None and isinstance(anchor.op, ops.IntLinear) and _is_able(anchor)
    return able and not region.moves and not region.run and is_by_column(region)


def _readers(value: Value, context: Context) -> Iterator[Node]:
    """Nodes that read a stored value, by way of views that aren't stored."""
    for user in value.users:
        if isinstance(user.op, _VIEWS) and user.result not in context.stored:
            yield from _readers(user.result, context)
        else:
            yield user


def _reads_rows(node: Node, value: Value) -> bool:
    """True if the node's first operand, and no other, is the value with its codes and rows as they are."""
    first, *others = node.inputs
    same = first.tensor.dims[-1:] == value.tensor.dims[-1:] and first.tensor.dtype == value.tensor.dtype
    return same and not any(_rests_on(other, value) for other in others)


def _rests_on(other: Value, value: Value) -> bool:
    while other is not value:
        if other.node is None or not isinstance(other.op, _VIEWS):
            return False
        other = other.node.inputs[0]
    return True


def _blocks(value: Value, dtype: str, maker: Node, context: Context, *, whole: bool) -> TokenBlocks:
    """whole: the depth is rounded up to vectors, as transposing does."""
    *outer, depth = shape_of(value)
    blocks, rounded, wide = blocked(math.prod(outer), depth, context.isa)
    shape = (blocks, rounded if whole else depth, wide)
    return TokenBlocks(shape, dtype, maker, Scratch(math.prod(shape)))
