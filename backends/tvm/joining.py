"""Which normalisations go into the kernel whose rows they read: they find them in the nearest cache.

Products don't take norms in, though they could where a task computes whole rows. Measured for IntLinear, a sum and a
norm of codes, against the two kernels, one thread; blocks of rows of one tile, or of four:

    rows x depth x columns    tiles (AMX)     vectors (VNNI)
    197 x 384 x 96            1.06, 1.11      1.05, 1.05
    197 x 384 x 384           1.06, 1.05
    197 x 1536 x 384          1.05, 1.02      0.91, 1.02
    128 x 3072 x 768          0.78, 0.99      0.60, 0.92

Weights go through the nearest cache once per block of rows rather than once, and 197 rows are seven tasks of tiles
instead of 42, which starves more than a few threads. What a norm takes is arithmetic, and hardly its loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

from planish.backends.tvm.expressions import POINTWISE, RENAMING
from planish.backends.tvm.region import Region
from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import constant


def is_norm(node: Node | None) -> TypeGuard[Node]:
    """True for a normalisation of each row along the last axis."""
    if node is None:
        return False
    own = isinstance(node.op, ops.IntLayerNorm | ops.IntRMSNorm)
    return own or (isinstance(node.op, ops.LayerNorm | ops.RMSNorm) and node.op.axis == -1)


def joined(found: Sequence[Region]) -> list[Region]:
    """Regions in order of computation, with norms put to a pointwise result or a norm that has the same rows.

    A norm moves to its sum's place in the order, so all else that it reads must be there by then; of what its own
    kernel stores it may read the elements of its own row only, since other rows belong to other threads.
    """
    kernels: list[list[Region]] = []
    home: dict[Value, int] = {}  # a stored value to the number of its kernel
    readers: dict[Value, int] = {}  # a value of rows to the first kernel of norms of it
    for region in found:
        number = _kernel_for(region, kernels, home, readers)
        if number is None:
            number = len(kernels)
            kernels.append([])
        kernels[number].append(region)
        home.update(dict.fromkeys(region.results, number))
        if is_norm(region.anchor):
            readers.setdefault(region.anchor.inputs[0], number)
    return [replace(first, norms=tuple(norms)) for first, *norms in kernels]


def _kernel_for(
    region: Region, kernels: Sequence[Sequence[Region]], home: Mapping[Value, int], readers: Mapping[Value, int]
) -> int | None:
    """The number of the kernel that can take a norm in."""
    if not is_norm(region.anchor):
        return None
    x = region.anchor.inputs[0]
    for number in (home.get(x), readers.get(x)):
        if number is None or not _by_rows(kernels[number][0]):
            continue
        inside = next((part for part in kernels[number] if part.result is x), None)
        if inside is not None and (inside.moves or inside.run):
            continue
        found = list(_reads(region.value, home, region.anchor))
        if all(value not in home or home[value] < number or (home[value] == number and own) for value, own in found):
            return number
    return None


def _by_rows(region: Region) -> bool:
    """True if a kernel of whole rows can compute a region."""
    return is_norm(region.anchor) or (region.anchor is None and not region.moves and bool(region.value.tensor.dims))


def _reads(value: Value, stored: Mapping[Value, int], anchor: Node, own: bool = True) -> Iterator[tuple[Value, bool]]:
    """Stored values that an expression reads, and whether each element of the result reads its own row only."""
    node = value.node
    if node is None or value in stored or constant(value) is not None:
        yield value, own
        return
    for place, operand in enumerate(node.inputs):
        straight = place == 0 if node is anchor else type(node.op) in (*POINTWISE, *RENAMING)
        same = straight and operand.tensor.dims == node.result.tensor.dims
        yield from _reads(operand, stored, anchor, own and same)
