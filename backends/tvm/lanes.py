"""Loops over the lanes of a vector, and values that are kept for each of them."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.scope import Expr


class vector:  # noqa: N801 - used like the builder's frames
    """A loop over the lanes of a vector, or over the only one."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        self.lane: Expr = 0
        self.arrays: list[Any] = []

    def __enter__(self) -> Expr:
        if self.lanes > 1:
            self.builder, self.frame = IRBuilder(), T.vectorized(0, self.lanes)
            self.builder.__enter__()
            self.lane = self.frame.__enter__()
            _open.append(self)
        return self.lane

    def __exit__(self, *error: object) -> None:
        if self.lanes > 1:
            _open.pop()
            self.frame.__exit__(*error)
            self.builder.__exit__(*error)
            if error[0] is None:
                for array in self.arrays:
                    T.add_to_parent(tirx.AllocBuffer(array))
                T.add_to_parent(self.builder.get())


_open: list[vector] = []


def kept(value: Expr) -> Expr:
    """The value, computed once, to be mentioned often.

    It is kept in a local array with an element per lane, which becomes registers. A bound name won't do: TVM's
    simplifiers put its value back in its place, so that their time grows with the power of the depth. The array is
    made before the loop: one made inside is taken to need a single element.
    """
    if not _open:
        array = T.alloc_buffer((1,), str(value.ty), scope="global")
        T.buffer_store(array, value, [0])
        return array[0]
    loop = _open[-1]
    array = tirx.decl_buffer((loop.lanes,), str(value.ty), scope="global")
    loop.arrays.append(array)
    T.buffer_store(array, value, [loop.lane])
    return array[loop.lane]
