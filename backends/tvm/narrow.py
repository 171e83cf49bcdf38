"""Vectors of 32-bit integers as codes of 8 or 16 bits, by instructions that saturate and pack at once."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import Isa
from planish.backends.tvm.scope import Expr
from planish.ir import dtypes
from planish.ir.dtypes import DType

_PACKS = {dtypes.i8: ("packssdw", "packsswb"), dtypes.u8: ("packssdw", "packuswb"), dtypes.i16: ("packssdw",)}


def narrows(isa: Isa, dtype: DType, lanes: int) -> bool:
    """True if so many 32-bit integers can be packed as codes of that dtype."""
    return bool(isa.pack) and dtype in _PACKS and lanes % (isa.lanes << len(_PACKS[dtype])) == 0


def narrowed(isa: Isa, dtype: DType, wide: Expr, lanes: int) -> Expr:
    """An array of codes of the first `lanes` elements of an int32 array, saturated."""
    codes = T.alloc_buffer((lanes,), str(dtype.storage), scope="global")
    count = 1 << len(_PACKS[dtype])  # vectors that become one
    for start in range(0, lanes, isa.lanes * count):
        vectors = [wide[T.Ramp(start + i * isa.lanes, 1, isa.lanes)] for i in range(count)]
        ordered = _in_order(packed(isa, dtype, vectors), isa, count)
        T.buffer_store(codes, ordered, [T.Ramp(start, 1, isa.lanes * count)])
    return codes


def packed(isa: Isa, dtype: DType, vectors: list[Expr]) -> Expr:
    """Vectors of int32 as one of codes, saturated, as instructions leave them: in turns by 128-bit parts."""
    for level, name in enumerate(_PACKS[dtype], 1):
        bits = 32 >> level
        kind = f"{'u' if name.endswith('uswb') else ''}int{bits}x{isa.lanes << level}"
        intrinsic = T.llvm_lookup_intrinsic_id(isa.pack.format(name))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [T.call_llvm_pure_intrin(kind, intrinsic, a, b) for a, b in pairs]
    return vectors[0]


def _in_order(packed: Expr, isa: Isa, count: int) -> Expr:
    """Packed codes in the order of the vectors they come from: packing goes by 128-bit parts of them."""
    parts = isa.lanes // 4
    if parts == 1:
        return packed
    unit = f"int{128 // count}x{parts * count}"  # four codes of one part of one vector
    places = [part * count + vector for vector in range(count) for part in range(parts)]
    shuffled = tirx.Shuffle([T.reinterpret(unit, packed)], [tirx.const(place, "int32") for place in places])
    return T.reinterpret(str(packed.ty.dtype) if hasattr(packed, "ty") else packed.dtype, shuffled)
