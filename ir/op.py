"""What an op is: a frozen value that knows its operands, its types, its meaning and its bounds.

An op class states everything about an op once. `infer` is the signature: its parameter names are the operand names,
`= None` makes one optional, `*parts` is variadic, a tuple result means several results. Calling an op on values makes
a detached node; calling it on patterns makes a pattern. The dataclass fields of a class are the attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NoReturn, dataclass_transform

import numpy as np

from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Node, Value
from planish.ir.types import TensorType, Type

OPS: dict[str, type[Op]] = {}
"""Every op class by mnemonic, filled as classes are defined; the text parser reads it."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Operand names of an op, from the parameters of `infer`."""

    names: tuple[str, ...]
    required: int
    variadic: bool

    @staticmethod
    def of(function: object) -> Signature:
        parameters = list(inspect.signature(function).parameters.values())[1:]  # type: ignore[arg-type]
        plain = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
        required = sum(1 for p in plain if p.default is p.empty)
        return Signature(tuple(p.name for p in plain), required, len(plain) < len(parameters))

    def accepts(self, count: int) -> bool:
        return self.required <= count and (self.variadic or count <= len(self.names))


@dataclass_transform(frozen_default=True)
class Op:
    """Base of all ops. A subclass becomes a frozen dataclass and is known to the parser by its class name.

    A class whose name starts with "_" is the base of a family and no op itself.

    commutative: the first two operands may be exchanged.
    pointwise: each result element depends only on the operand elements at the same (broadcast) place.
    takes_any: operands may be absent or of a type that is no tensor's.
    typed: `evaluate` also takes the operand types, as keyword `types`, because scales and zero points stand there.
    """

    commutative: ClassVar[bool] = False
    pointwise: ClassVar[bool] = False
    is_return: ClassVar[bool] = False
    takes_any: ClassVar[bool] = False
    typed: ClassVar[bool] = False
    signature: ClassVar[Signature]

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, repr=False)(cls)
        cls.signature = Signature.of(cls.infer)
        if not cls.__name__.startswith("_"):
            OPS[cls.__name__] = cls

    @property
    def name(self) -> str:
        """The mnemonic."""
        return type(self).__name__

    def infer(self, *operands: Any, **_: Any) -> Type | tuple[Type, ...]:
        """Result types from operand types. Raises VerifyError if the operands don't fit.

        Subclasses name their operands: `def infer(self, x: TensorType, y: TensorType) -> TensorType`.
        """
        raise VerifyError(f"{self.name} doesn't say what it returns")

    def evaluate(self, *operands: Any, **_: Any) -> Any:
        """Result array (or tuple of arrays) from operand arrays: the law that every backend is tested against."""
        raise VerifyError(f"{self.name} can't be evaluated with numpy")

    def compute(self, operands: Sequence[np.ndarray | None], types: Sequence[Type | None]) -> Any:
        """`evaluate` on arrays of the given types."""
        return self.evaluate(*operands, types=types) if self.typed else self.evaluate(*operands)

    def decompose(self, *operands: Any, **_: Any) -> Value | tuple[Value, ...] | None:
        """The same as an expression of more basic ops, for targets that lack this one; None if there is none."""
        return None

    def infer_types(self, operands: Sequence[Value | None]) -> tuple[Type, ...]:
        """Result types of a node. Raises VerifyError with the operand types if they don't fit."""
        if not self.signature.accepts(len(operands)):
            raise VerifyError(f"{self.name} takes {self._arity()} operands, not {len(operands)}")
        types = [None if v is None else v.type for v in operands]
        try:
            if not self.takes_any:
                self._check_operands(types)
            result = self.infer(*types)
        except VerifyError as error:
            shown = ", ".join("None" if t is None else str(t) for t in types)
            raise VerifyError(f"{self.name}({shown}): {error.what}", where=error.where, remedy=error.remedy) from None
        return result if isinstance(result, tuple) else (result,)

    def __call__(self, *operands: Any) -> Any:
        """A detached node on values and arrays (returned: its result or results), or a pattern on patterns.

        Optional operands that are left out at the end are not stored, so that there is one spelling.
        """
        for operand in operands:
            if hasattr(operand, "pattern_of"):
                return operand.pattern_of(self, operands)
        while len(operands) > self.signature.required and operands[-1] is None and not self.signature.variadic:
            operands = operands[:-1]
        node = Node(self, [as_value(operand) for operand in operands])
        return node.results[0] if len(node.results) == 1 else node.results

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={_show(getattr(self, f.name))}" for f in fields(self))  # type: ignore[arg-type]
        return f"{self.name}({shown})"

    def _check_operands(self, types: Sequence[Type | None]) -> None:
        """Raises VerifyError unless all are tensors and only optional ones are absent."""
        names, required = self.signature.names, self.signature.required
        for i, type_ in enumerate(types):
            if type_ is None:
                if i < required or i >= len(names):
                    raise VerifyError(f"operand {names[i] if i < len(names) else i} is absent")
            elif not isinstance(type_, TensorType):
                raise VerifyError(f"operand {names[i] if i < len(names) else i} isn't a tensor")

    def _arity(self) -> str:
        low, high = self.signature.required, len(self.signature.names)
        if self.signature.variadic:
            return f"{low} or more"
        return str(low) if low == high else f"{low} to {high}"


class Const(Op):
    """A constant tensor.

    Exact. C1 the array fits the dtype.
    """

    data: Data

    def infer(self) -> TensorType:
        return self.data.type

    def evaluate(self) -> np.ndarray:
        return self.data.numpy()

    def __repr__(self) -> str:
        if self.data.size <= 16 and self.data.type.dtype.kind != "str":
            return f"Const({self.data.type.dtype}, {self.data.numpy().tolist()!r})"
        return f"Const({self.data.digest!r})"


class Return(Op):
    """End of a graph: its operands are the outputs, called `names`."""

    names: tuple[str, ...]
    is_return: ClassVar[bool] = True
    takes_any: ClassVar[bool] = True

    def infer(self, *outputs: Type) -> tuple[Type, ...]:
        need(len(outputs) == len(self.names), f"{len(self.names)} output names for {len(outputs)} outputs")
        return ()


def as_value(operand: Value | np.ndarray | Data | None) -> Value | None:
    """A value for an operand: arrays become constants."""
    if operand is None or isinstance(operand, Value):
        return operand
    if isinstance(operand, np.ndarray | np.generic):
        operand = Data(np.asarray(operand))
    if isinstance(operand, Data):
        return Node(Const(operand), ()).result
    raise VerifyError(f"{type(operand).__name__} {operand!r} can't be an operand; pass a Value or a numpy array")


def constant(value: Value | None) -> Data | None:
    """The contents of a constant value, None for any other."""
    op = value.op if value is not None else None
    return op.data if isinstance(op, Const) else None


def need(condition: bool, message: str) -> None:
    """State a constraint of an op: raises VerifyError with `message` unless it holds."""
    if not condition:
        raise VerifyError(message)


def fail(message: str) -> NoReturn:
    """Raise VerifyError from an expression."""
    raise VerifyError(message)


def _show(value: object) -> str:
    return repr(value)
