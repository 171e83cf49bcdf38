"""Types that an ONNX model declares, in the IR's terms: symbolic dimensions get canonical, collision-free names."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping

import onnx_ir

from planish.ir import dims, dtypes, types
from planish.ir.dims import Dim
from planish.ir.dtypes import DType
from planish.ir.types import OtherType, TensorType, Type

DTYPES: dict[int, DType] = {
    1: dtypes.f32,
    2: dtypes.u8,
    3: dtypes.i8,
    4: dtypes.u16,
    5: dtypes.i16,
    6: dtypes.i32,
    7: dtypes.i64,
    8: dtypes.string,
    9: dtypes.boolean,
    10: dtypes.f16,
    11: dtypes.f64,
    12: dtypes.u32,
    13: dtypes.u64,
    14: dtypes.c64,
    15: dtypes.c128,
    16: dtypes.bf16,
    17: dtypes.f8e4m3fn,
    18: dtypes.f8e4m3fnuz,
    19: dtypes.f8e5m2,
    20: dtypes.f8e5m2fnuz,
    21: dtypes.u4,
    22: dtypes.i4,
    23: dtypes.f4e2m1,
    24: dtypes.f8e8m0,
    25: dtypes.u2,
    26: dtypes.i2,
}
"""Element types by their ONNX number."""
ONNX_NUMBERS: dict[DType, int] = {dtype: number for number, dtype in DTYPES.items()}
UNKNOWN = OtherType("unknown")


class Symbols:
    """Names of symbolic dimensions of one model.

    originals: symbol to the text that the source declares. binding: symbols that the caller fixed or renamed.
    plain: names that stand alone as a dimension of an input; expressions of other names are names themselves.
    """

    def __init__(self) -> None:
        self.originals: dict[str, str] = {}
        self.binding: dict[str, Dim] = {}
        self.plain: set[str] = set()
        self._by_text: dict[str, Dim] = {}
        self._fresh: set[str] = set()
        self._next = 0

    def fresh(self) -> str:
        """A symbol for a dimension that has no name: u0, u1 and so on, without those that the model declares."""
        name = f"u{self._next}"
        while name in self.originals:
            self._next += 1
            name = f"u{self._next}"
        self._next += 1
        self._fresh.add(name)
        return name

    def is_fresh(self, dim: Dim) -> bool:
        """True for a symbol that `fresh` made."""
        return dim in self._fresh

    def named(self, text: str) -> Dim:
        """The dimension that the source calls `text`; different texts give different dimensions."""
        if (found := self._by_text.get(text)) is None:
            found = self._by_text[text] = self._new(text)
        return found

    def bound(self, type_: Type) -> Type:
        """`type_` with the caller's bindings."""
        return types.substitute(type_, self.binding) if self.binding else type_

    def _new(self, text: str) -> Dim:
        if text.isidentifier() and not keyword.iskeyword(text):
            return self._unique(text, text)
        found = dims.canonical(text)
        # "batch-size" is a name unless the model has dimensions "batch" and "size"
        if not isinstance(found, int) and (atoms := dims.symbols(found)) != {found} and atoms <= self.plain:
            return found
        return self._unique("d_" + (re.sub(r"\W+", "_", text).strip("_") or "unnamed"), text)

    def _unique(self, wish: str, text: str) -> str:
        name, number = wish, 1
        while name in self._fresh or self.originals.get(name, text) != text:
            number += 1
            name = f"{wish}_{number}"
        self.originals[name] = text
        return name


def declared_type(
    type_: onnx_ir.TypeProtocol | None, shape: onnx_ir.ShapeProtocol | None, symbols: Symbols
) -> Type | None:
    """A declared type; None if nothing is declared. Dimensions without name get fresh symbols. Bindings apply."""
    found = _type(type_, shape, lambda text: symbols.named(text) if text.strip() else symbols.fresh(), symbols)
    return None if found is None else symbols.bound(found)


def inferred_type(
    type_: onnx_ir.TypeProtocol | None, shape: onnx_ir.ShapeProtocol | None, symbols: Symbols
) -> Type | None:
    """A type that ONNX inferred from types of the IR: its symbols are those of the IR."""
    return _type(type_, shape, dims.canonical, symbols)


def _type(
    type_: onnx_ir.TypeProtocol | None,
    shape: onnx_ir.ShapeProtocol | None,
    named: Callable[[str], Dim],
    symbols: Symbols,
) -> Type | None:
    if type_ is None:
        return None
    if not isinstance(type_, onnx_ir.TensorType):
        return OtherType(str(type_))
    dtype = DTYPES.get(int(type_.dtype))
    if dtype is None:
        return OtherType(f"tensor of {type_.dtype}")

    def dim(found: object) -> Dim:
        if isinstance(found, int):
            return found if found >= 0 else symbols.fresh()
        text = getattr(found, "value", None)
        return named(text) if isinstance(text, str) else symbols.fresh()

    return TensorType(dtype, None if shape is None else tuple(dim(d) for d in shape))


def merged(inferred: Type | None, declared: Type | None, symbols: Symbols) -> Type:
    """What is known from inference and declaration together; inference wins where they contradict each other."""
    if inferred is None or inferred == UNKNOWN:
        return UNKNOWN if declared is None else declared
    if not isinstance(inferred, TensorType) or not isinstance(declared, TensorType) or not declared.accepts(inferred):
        return inferred
    if inferred.shape is None or declared.shape is None:
        return declared if inferred.shape is None else inferred
    pairs = zip(inferred.shape, declared.shape, strict=True)
    return inferred.with_shape(tuple(b if _vaguer(a, b, symbols) else a for a, b in pairs))


def _vaguer(inferred: Dim, declared: Dim, symbols: Symbols) -> bool:
    if isinstance(inferred, int):
        return False
    return isinstance(declared, int) or symbols.is_fresh(inferred)


def shape_text(shape: tuple[Dim, ...], originals: Mapping[str, str]) -> onnx_ir.Shape:
    """The ONNX shape; symbols as the source spells them."""
    return onnx_ir.Shape([dim if isinstance(dim, int) else originals.get(dim, dim) for dim in shape])
