"""Sizes that an artifact takes: what symbolic dimensions are in a feed, and which entry fits them. Needs no TVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planish.ir.dims import Dim, substitute, symbols
from planish.ir.errors import CalibrationError
from planish.ir.graph import Graph

Sizes = Mapping[str, int]
"""Extents by symbol."""


@dataclass(frozen=True)
class Variant:
    """A model at a size: its graph of fixed shapes, and what the symbols of the whole model are in it."""

    graph: Graph
    sizes: Sizes = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """An input or output: a tensor; its shape has names where it may vary."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...]

    @property
    def type(self) -> str:
        return f"tensor({self.dtype})"

    def at(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape at some sizes."""
        return tuple(int(substitute(dim, sizes)) for dim in self.shape)


def sizes_of(ports: Sequence[Port], arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What the symbols are in a feed. Raises CalibrationError where an array has another dtype or shape."""
    sizes: dict[str, int] = {}
    for port in ports:
        array = arrays[port.name]
        if array.dtype == port.dtype and array.ndim == len(port.shape):
            for dim, extent in zip(port.shape, array.shape, strict=True):
                if isinstance(dim, str) and symbols(dim) == {dim}:
                    sizes.setdefault(dim, extent)
    for port in ports:
        array = arrays[port.name]
        fits = array.dtype == port.dtype and array.ndim == len(port.shape)
        if not fits or any(substitute(d, sizes) != e for d, e in zip(port.shape, array.shape, strict=True)):
            raise CalibrationError(
                f"input {port.name} is {array.dtype}{list(array.shape)}",
                remedy=f"feed {port.dtype}[{', '.join(map(str, port.shape))}];"
                " other shapes need an artifact of their own (--shape)",
            )
    return sizes


def fitting(entries: Sequence[Sizes], sizes: Sizes, batch: str | None) -> int:
    """The number of the smallest entry that has room for the sizes, or for as many of the batch as any has.

    Raises CalibrationError where none has.
    """
    others = [symbol for symbol in sizes if symbol != batch]
    room = [i for i, entry in enumerate(entries) if all(entry[s] >= sizes[s] for s in others)]
    if not room:
        most = {s: max(entry[s] for entry in entries) for s in others}
        raise CalibrationError(
            "the artifact has no room for " + ", ".join(f"{s} = {sizes[s]}" for s in others if sizes[s] > most[s]),
            remedy="it takes up to " + ", ".join(f"{s} = {n}" for s, n in most.items()) + "; make it with --buckets",
        )

    def cost(i: int) -> tuple[int, int]:
        """Elements of the other dimensions, then rows computed for nothing, or rows left for later."""
        area = int(np.prod([entries[i][s] for s in others], dtype=np.int64))
        return area, abs(entries[i][batch] - sizes[batch]) if batch else 0

    return min(room, key=cost)
