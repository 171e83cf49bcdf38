"""What a converter sees of one ONNX node: operands, attributes and operator-set version, behind checked accessors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir

from planish.frontend.contents import contents_of
from planish.ir import dtypes
from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.ir.op import Op, constant
from planish.ir.ops import AttrValue
from planish.ir.types import TensorType

Converted: TypeAlias = Value | Sequence[Value]
INT64_MAX = 2**63 - 1


class Refusal(Exception):
    """The node has no exact spelling in the IR; the message says why, and the node is carried as Opaque."""


@dataclass(frozen=True, slots=True)
class Call:
    """One ONNX node with its operands already converted. `source` is the node itself."""

    op_type: str
    version: int
    operands: tuple[Value | None, ...]
    attrs: Mapping[str, AttrValue]
    source: onnx_ir.Node

    @property
    def results(self) -> int:
        """Number of results, left-out ones included."""
        return len(self.source.outputs)

    def used(self, index: int) -> bool:
        """True if somebody reads result number `index`."""
        return index < self.results and is_read(self.source.outputs[index])

    def sole(self, index: int) -> bool:
        """True if only this node reads operand number `index`."""
        value = self.source.inputs[index]
        return value is not None and len(value.uses()) == 1 and not value.is_graph_output()

    def get(self, index: int) -> Value | None:
        """Operand number `index`, None where it is left out. Refuses operands that aren't numeric tensors."""
        value = self.operands[index] if index < len(self.operands) else None
        if value is not None:
            type_ = value.type
            if not isinstance(type_, TensorType):
                raise Refusal(f"operand {index} is {type_}, not a tensor")
            if type_.dtype.kind in ("str", "complex"):
                raise Refusal(f"operand {index} has element type {type_.dtype}")
        return value

    def arg(self, index: int) -> Value:
        """Operand number `index`, which must be there."""
        if (value := self.get(index)) is None:
            raise Refusal(f"operand {index} is missing")
        return value

    def args(self) -> list[Value]:
        """All operands, none left out."""
        return [self.arg(i) for i in range(len(self.operands))]

    def dims(self, index: int) -> tuple[Dim, ...]:
        """Shape of operand number `index`, whose rank must be known."""
        shape = self.arg(index).tensor.shape
        if shape is None:
            raise Refusal(f"the rank of operand {index} is unknown")
        return shape

    def contents(self, index: int) -> tuple[Dim, ...] | None:
        """Elements of an integer operand as far as types know them; None if it is left out. Refuses unknown ones."""
        if (value := self.get(index)) is None:
            return None
        if (found := contents_of(value)) is not None:
            return found
        if (data := constant(value)) is None or not value.tensor.dtype.is_integer:
            raise Refusal(f"operand {index} isn't constant")
        return tuple(int(v) for v in data.numpy().reshape(-1))

    def ints_of(self, index: int) -> tuple[int, ...] | None:
        """Elements of a constant integer operand; None if it is left out."""
        found = self.contents(index)
        return None if found is None else integers(found)

    def number(self, index: int) -> float | int | None:
        """The only element of a constant operand as a Python number; None if it is left out."""
        if (value := self.get(index)) is None:
            return None
        if (data := constant(value)) is None or data.size != 1:
            raise Refusal(f"operand {index} isn't a constant number")
        return python_number(data.numpy())

    def only_first_result(self) -> None:
        """Refuse if anything but the first result is used."""
        if any(self.used(i) for i in range(1, self.results)):
            raise Refusal("a result other than the first is used")

    def int_attr(self, name: str, default: int | None = None) -> int:
        """An integer attribute. The accessors refuse a missing attribute without default, and one of another type."""
        value = self.attrs.get(name, default)
        if not isinstance(value, int):
            raise Refusal(f"attribute {name} is missing or no integer")
        return value

    def flag_attr(self, name: str, default: bool = False) -> bool:
        return bool(self.int_attr(name, int(default)))

    def float_attr(self, name: str, default: float | None = None) -> float:
        value = self.attrs.get(name, default)
        if not isinstance(value, float):
            raise Refusal(f"attribute {name} is missing or no number")
        return value

    def text_attr(self, name: str, default: str) -> str:
        value = self.attrs.get(name, default)
        if not isinstance(value, str):
            raise Refusal(f"attribute {name} is no text")
        return value

    def ints_attr(self, name: str) -> tuple[int, ...] | None:
        """A list attribute, None where it is left out."""
        if (value := self.attrs.get(name)) is None:
            return None
        if not isinstance(value, tuple) or not all(isinstance(v, int) for v in value):
            raise Refusal(f"attribute {name} is no list of integers")
        return value  # type: ignore[return-value]


Converter = Callable[[Call], Converted]


def is_read(value: onnx_ir.Value) -> bool:
    """True if a node or an output of a graph reads the value."""
    return bool(value.uses()) or value.is_graph_output()


def integers(values: Sequence[Dim]) -> tuple[int, ...]:
    """`values`, which must hold no symbol."""
    found = tuple(v for v in values if isinstance(v, int))
    if len(found) != len(values):
        raise Refusal("a bound depends on a symbolic dimension")
    return found


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front. Refuses one out of range."""
    if not -rank <= axis < rank:
        raise Refusal(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, sorted. Refuses repeated ones."""
    found = sorted(axis_of(axis, rank) for axis in axes)
    if len(set(found)) != len(found):
        raise Refusal(f"axes {tuple(axes)} repeat")
    return tuple(found)


def from_end(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the end, sorted."""
    return tuple(axis - rank for axis in axes_of(axes, rank))


def shortest(number: float) -> float:
    """The shortest decimal that gives the same float32: how float attributes are spelled."""
    return float(str(np.float32(number)))


def python_number(array: np.ndarray) -> float | int:
    """The only element of `array`; floats as the shortest decimal that gives the same element."""
    element = array.reshape(-1)[0]
    if np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_:
        return int(element)
    if array.dtype in (np.float16, np.float32):
        return float(str(element))
    if dtypes.of(array).is_integer:
        return int(element)
    return float(element)


def apply(op: Op, *operands: Value | np.ndarray | None) -> Value:
    """A detached node of an op with one result."""
    result: Value = op(*operands)
    return result
