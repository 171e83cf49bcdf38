"""What a kernel being written reads and writes: arrays that become its parameters as they are first used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder

from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.types import TensorType

SPARE = 64  # bytes behind every stored value, for vectors that reach beyond its end
_DEVICE = {"device_type": 1, "device_id": 0}

Expr = Any  # tvm.ir.Expr; TVM isn't typed
Index = tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Scratch:
    """Memory that a kernel writes and reads while it runs."""

    bytes: int


Argument = Value | np.ndarray | Scratch
"""What a parameter of a kernel stands for: a stored value, an array known at compile time, or working memory."""

NUMBERS = 128  # at most, of one kernel


@dataclass(frozen=True)
class Kernel:
    """A private function on pointers, and what to call it with.

    reach: bytes that it may read beyond the end of an array.
    """

    function: tirx.PrimFunc
    arguments: tuple[Argument, ...]
    result: Value
    reach: int = SPARE

    @property
    def title(self) -> str:
        node = self.result.node
        return "" if node is None else f"{node.op.name} {self.result.type}"


def extents(type_: TensorType, where: str = "") -> tuple[int, ...]:
    """The shape as integers. Raises UnsupportedOp for symbolic extents."""
    if not type_.is_static:
        raise UnsupportedOp(
            f"{type_} isn't of fixed shape", where=where, remedy="bind symbolic dimensions with --shape"
        )
    return tuple(int(d) for d in type_.dims)


@dataclass
class Scope:
    """Parameters of one kernel, in the order in which they were first asked for."""

    _arguments: list[Argument] = field(default_factory=list)
    _pointers: list[Any] = field(default_factory=list)
    _arrays: list[Any] = field(default_factory=list)
    _values: dict[Value, Any] = field(default_factory=dict)
    _constants: dict[Any, Any] = field(default_factory=dict)
    _flat: dict[Value, Any] = field(default_factory=dict)
    _numbers: dict[Any, int] = field(default_factory=dict)
    _reach: int = SPARE

    def reaching(self, size: int) -> None:
        """Note that the kernel reads up to so many bytes beyond the end of an array in the arena."""
        self._reach = max(self._reach, size)

    def value(self, value: Value) -> Any:
        """The array of a stored value, a constant or a graph input; a scalar has one axis of extent 1."""
        if value not in self._values:
            data = constant(value)
            argument: Argument = value if data is None else data.numpy()
            shape = extents(value.tensor, value.hint)
            self._values[value] = self._declare(argument, shape or (1,), str(value.tensor.dtype.storage))
        return self._values[value]

    def flat(self, value: Value) -> Any:
        """The array of a stored value with one axis; vectors may touch the spare bytes behind it."""
        if value not in self._flat:
            array = self.value(value)
            size = math.prod(int(extent) for extent in array.shape) + SPARE // value.tensor.dtype.storage.itemsize
            pointer = self._pointer(array)
            flat = tirx.decl_buffer((size,), array.dtype, f"{array.name}_flat", data=pointer)
            self._flat[value] = flat
        return self._flat[value]

    def number(self, key: object, number: int) -> Expr:
        """An integer as int64 that is handed over at run time, so that kernels that differ by it alone are one.

        `key` tells numbers of one kernel apart.
        """
        place = list(self._numbers).index(key) if key in self._numbers else len(self._numbers)
        self._numbers[key] = int(number)
        return self.constant(Scope, np.zeros(NUMBERS, np.int64))[place]

    def scratch(self, shape: Sequence[int], dtype: str) -> Any:
        """Working memory of this kernel."""
        return self._declare(Scratch(math.prod(shape) * np.dtype(dtype).itemsize), shape, dtype)

    def shared(self, room: Scratch, shape: Sequence[int], dtype: str) -> Any:
        """Working memory that several kernels use, one after the other."""
        if room not in self._constants:
            self._constants[room] = self._declare(room, shape, dtype)
        return self._constants[room]

    def constant(self, key: object, array: np.ndarray) -> Any:
        """An array made by the compiler; `key` tells those of one kernel apart."""
        if key not in self._constants:
            self._constants[key] = self._declare(np.ascontiguousarray(array), array.shape, str(array.dtype))
        return self._constants[key]

    def finish(self, builder: IRBuilder, result: Value) -> Kernel:
        """The kernel whose body was built, once nothing more is declared."""
        declared = [
            tirx.DeclBuffer(array, data=pointer) for array, pointer in zip(self._arrays, self._pointers, strict=True)
        ]
        declared += [tirx.DeclBuffer(flat, data=self._pointer(self._values[v])) for v, flat in self._flat.items()]
        if Scope in self._constants:
            numbers = np.zeros(NUMBERS, np.int64)
            numbers[: len(self._numbers)] = list(self._numbers.values())
            self._arguments[self._place(self._constants[Scope])] = numbers
        done = tirx.Return(tirx.const(0, "int32"))
        built = builder.get()
        if isinstance(built, tirx.AttrStmt):  # what the builder wraps a sequence in means nothing to code generation
            built = built.body
        body = tirx.SeqStmt([*declared, built, done])
        for key in ("device_type", "device_id"):  # of the CPU: lets local arrays be allocated
            body = tirx.AttrStmt(tvm.runtime.convert("default"), key, _DEVICE[key], body)
        function = tirx.PrimFunc(self._pointers, body, ret_type=tvm.ir.PrimType("int32"))
        marked = function.with_attr("s_tir", True).with_attr("tirx.noalias", True)
        return Kernel(marked, tuple(self._arguments), result, self._reach)

    def _pointer(self, array: Any) -> Any:
        return self._pointers[self._place(array)]

    def _place(self, array: Any) -> int:
        return next(i for i, known in enumerate(self._arrays) if known.same_as(array))

    def _declare(self, argument: Argument, shape: Sequence[int], dtype: str) -> Any:
        name = f"p{len(self._arguments)}"
        pointer = tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype), "global"))
        array = tirx.decl_buffer(tuple(shape), dtype, f"a{len(self._arguments)}", data=pointer)
        self._arguments.append(argument)
        self._pointers.append(pointer)
        self._arrays.append(array)
        return array
