"""Memory of stored values, planned beforehand: one arena, in which values that don't live together share room."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from planish.backends.tvm.scope import SPARE, Kernel, Scratch, extents
from planish.ir.graph import Value

ALIGNMENT = 64  # bytes: a cache line and the widest vector


@dataclass(frozen=True)
class Arena:
    """size: in bytes. offsets: where each value starts."""

    size: int
    offsets: Mapping[Value | Scratch, int]


def plan(kernels: Sequence[Kernel], elsewhere: Collection[Value], keep: bool = False) -> Arena:
    """Offsets for all values that kernels read or write, except those that live elsewhere (the interface).

    The largest values are placed first, each at the lowest offset that is free while it lives. Every value is followed
    by `SPARE` bytes, which vector loads may touch; behind the last there is room for the farthest reach of a kernel.
    keep: values live to the end.
    """
    first: dict[Value | Scratch, int] = {}
    last: dict[Value | Scratch, int] = {}
    for step, kernel in enumerate(kernels):
        for value in kernel.arguments:
            if isinstance(value, Value | Scratch) and value not in elsewhere:
                first.setdefault(value, step)
                last[value] = len(kernels) if keep and isinstance(value, Value) else step
    sizes = {value: _bytes(value) for value in first}
    offsets: dict[Value | Scratch, int] = {}
    for value in sorted(first, key=lambda v: (-sizes[v], first[v])):
        busy = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if first[other] <= last[value] and first[value] <= last[other]
        )
        offset = 0
        for start, end in busy:
            if offset + sizes[value] <= start:
                break
            offset = max(offset, end)
        offsets[value] = offset
    reach = max((kernel.reach for kernel in kernels), default=0)
    return Arena(max((offsets[v] + sizes[v] for v in offsets), default=0) + reach, offsets)


def _bytes(value: Value | Scratch) -> int:
    if isinstance(value, Scratch):
        return -(-value.bytes // ALIGNMENT) * ALIGNMENT
    size = math.prod(extents(value.tensor, value.hint)) * value.tensor.dtype.storage.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT + SPARE
