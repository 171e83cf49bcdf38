"""Carrier for ops that the IR doesn't model: kept whole, with the types found at import."""

from __future__ import annotations

from typing import ClassVar, Final

from planish.ir.data import Data
from planish.ir.op import Op, need
from planish.ir.types import Type

AttrScalar = int | float | str | bytes | Data
AttrValue = AttrScalar | tuple[AttrScalar, ...]

_PURE_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_IMPURE: Final = frozenset({"Bernoulli", "Multinomial", "Sampling", "If", "Loop", "Scan", "SequenceMap"})


class Opaque(Op):
    """An op of the source model that nothing here understands.

    operands: what the original reads, None for an omitted one; the last len(captures) of them are values that
    subgraphs of the payload read, under their original names `captures`.
    results: as `types` say; the contents of shape tensors are not carried.
    op_type, domain, version: the operator and its operator-set version. attrs: attributes by name, in source order.
    payload: what a writer needs besides (subgraphs), from the frontend; compared by identity.
    Can't be evaluated here. C1 there are at least as many operands as captures.
    """

    op_type: str
    domain: str
    version: int
    attrs: tuple[tuple[str, AttrValue], ...]
    types: tuple[Type, ...]
    captures: tuple[str, ...] = ()
    payload: object | None = None
    takes_any: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(type_.interface() for type_ in self.types))

    def infer(self, *operands: Type | None) -> tuple[Type, ...]:
        need(len(operands) >= len(self.captures), f"{len(self.captures)} captures, but {len(operands)} operands")
        return self.types

    @property
    def pure(self) -> bool:
        """True if equal operands give equal results and nothing else happens; False where that isn't sure.

        Random ops and dropout, control flow, ops with a payload, and all of foreign domains aren't pure.
        """
        random = self.op_type.startswith("Random") or "Dropout" in self.op_type
        unsure = self.payload is not None or bool(self.captures)
        return self.domain in _PURE_DOMAINS and self.op_type not in _IMPURE and not random and not unsure

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Opaque):
            return NotImplemented
        return self.payload is other.payload and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return (self.op_type, self.domain, self.version, self.attrs, self.types, self.captures)
