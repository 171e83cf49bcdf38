"""Instruction sets of CPUs: their vectors, their integer products, their byte tables."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import cpu_flags
from planish.ir.dtypes import DType
from planish.ir.errors import UnsupportedOp

Expr = Any


@dataclass(frozen=True)
class Product:
    """Sums of `group` neighbouring products per 32-bit lane, acc[i] + sum(row[g] * panel[i][g]), exact modulo 2**32.

    dtype: of the rows; panels are int8. intrinsic: of LLVM, "" for plain multiplications. whole: the intrinsic adds to
    the accumulator itself, and takes panels as they are; else they are widened first.
    """

    dtype: str
    group: int
    intrinsic: str = ""
    whole: bool = False

    def __call__(self, acc: Expr, word: Expr, panel: Expr, lanes: int) -> Expr:
        """word: `group` elements of a row in one integer. panel: int8 vector of lanes * group elements."""
        if not self.intrinsic:
            return acc + T.Cast(f"int32x{lanes}", panel) * T.Broadcast(T.Cast("int32", word), lanes)
        row = T.reinterpret(f"{self.dtype}x{lanes * self.group}", T.Broadcast(word, lanes))
        return self.of_vectors(acc, row, panel, lanes)

    def total(self, acc: Expr, row: Expr, lanes: int) -> Expr:
        """Sums of neighbours: acc[i] + sum(row[i * group + g]) for a vector of row elements."""
        if not self.intrinsic:
            return acc + T.Cast(f"int32x{lanes}", row)
        return self.of_vectors(acc, row, T.Broadcast(T.int8(1), lanes * self.group), lanes)

    def narrowed(self, lanes: int) -> Product:
        """The same with an intrinsic for vectors of so many 32-bit lanes, where its name ends in their bits."""
        base, _, bits = self.intrinsic.rpartition(".")
        return replace(self, intrinsic=f"{base}.{32 * lanes}") if bits.isdigit() else self

    def squares(self, row: Expr, lanes: int) -> Expr:
        """Sums of the squares of two neighbours, for vectors of int16; as bits of unsigned integers."""
        return T.call_llvm_pure_intrin(f"int32x{lanes}", T.llvm_lookup_intrinsic_id(self.intrinsic), row, row)

    def of_vectors(self, acc: Expr, row: Expr, panel: Expr, lanes: int) -> Expr:
        """The same for a vector of elements of rows, by an intrinsic."""
        name, count = T.llvm_lookup_intrinsic_id(self.intrinsic), lanes * self.group
        if self.whole:
            return T.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, row, panel)
        return acc + T.call_llvm_pure_intrin(f"int32x{lanes}", name, row, T.Cast(f"int16x{count}", panel))

    def word(self, rows: Expr, offset: Expr) -> Expr:
        """The `group` elements of a flat array from `offset` on."""
        if self.group == 1:
            return rows[offset]
        return T.reinterpret("int32", rows[T.Ramp(offset, 1, self.group)])

    @property
    def depth(self) -> int:
        """What K of packed weights is a multiple of."""
        return self.group

    @property
    def ones(self) -> Expr:
        """A word of ones."""
        return T.int32({1: 1, 2: 0x00010001, 4: 0x01010101}[self.group])

    def shift(self, dtype: DType) -> int:
        """What is added to codes to make rows of them."""
        if self.dtype == "uint8":
            return -dtype.min
        return -(2**15) if dtype.max > 2**15 - 1 else 0


@dataclass(frozen=True)
class TileProduct:
    """Products in AMX's tile registers: 16 rows of 64 bytes by 64 bytes of K in 16 columns, in one instruction.

    dtype: of the rows, uint8 or int8: codes as they are. Panels are those of a `Product` of four bytes.
    """

    dtype: str
    group: int = 4
    depth: int = 64

    def shift(self, dtype: DType) -> int:
        """What is added to codes to make rows of them: nothing."""
        return 0

    @property
    def instruction(self) -> str:
        return "tdpbusd" if self.dtype == "uint8" else "tdpbssd"


@dataclass(frozen=True)
class ShiftProduct(Product):
    """Sums of elements that bits of constant weights choose, for targets without a multiplier.

    planes: bits of the weights' two's complement. Rows are int32, and 32 bits along K are one word.
    """

    planes: int = 8

    @property
    def depth(self) -> int:
        return 32


_FEWEST_ROWS = 5  # that tiles of 16 rows do faster than vectors


@dataclass(frozen=True)
class Isa:
    """Instructions that code may use.

    lanes: 32-bit elements of a vector. registers: vectors that code can hold at a time. cpu, attributes: for LLVM.
    features: what a CPU must say that it has (as in /proc/cpuinfo). byte_table: looks 64 bytes up in 256 at once.
    tiles: has AMX's tile registers. pack: name of the intrinsics that saturate two vectors into one, "" for none.
    shuffles: intrinsics that look bytes up in 16, by the bytes of a vector, the widest first.
    sign_bits: bytes of a vector and the intrinsic that makes an integer of their signs.
    multiplies: False where products by constant weights, and rescaling, are to be shifts and additions.
    """

    name: str
    summary: str
    triple: str
    cpu: str
    attributes: tuple[str, ...]
    features: frozenset[str]
    lanes: int
    registers: int
    bytes_product: Product | None
    words_product: Product
    byte_table: bool = False
    tiles: bool = False
    pack: str = ""
    shuffles: tuple[tuple[int, str], ...] = ()
    sign_bits: tuple[int, str] | None = None
    multiplies: bool = True

    def target(self) -> dict[str, Any]:
        """The target as TVM takes it."""
        found: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        return {**found, "mattr": list(self.attributes)} if self.attributes else found

    def product_of(self, dtype: DType, rows: int) -> Product | TileProduct:
        """The fastest exact product of so many rows of codes, of at most 16 bits, by int8 weights."""
        if self.tiles and dtype.bits <= 8 and rows >= _FEWEST_ROWS:
            return TileProduct(str(dtype.storage))
        return self.product(dtype)

    def product_by(self, weights: np.ndarray, dtype: DType, rows: int) -> Product | TileProduct:
        """The same by weights that are known."""
        if self.multiplies:
            return self.product_of(dtype, rows)
        largest = max(int(weights.max(initial=0)), -int(weights.min(initial=0)) - 1)
        return ShiftProduct("int32", 1, planes=1 + largest.bit_length())

    def product(self, dtype: DType) -> Product:
        """The fastest exact product in vectors."""
        return self.bytes_product if self.bytes_product and dtype.bits <= 8 else self.words_product

    def lookup(self, table: Expr, codes: Expr, lanes: int) -> Expr:
        """table[codes] for a flat array of 64, 128 or 256 bytes and a vector of at most 64 uint8 codes."""
        wide = tirx.Shuffle([codes] * -(-64 // lanes), [tirx.const(i, "int32") for i in range(64)])
        parts = [T.reinterpret("uint8x64", table[T.Ramp(i, 1, 64)]) for i in range(0, int(table.shape[0]), 64)]
        found = self._looked_up(parts, wide)
        if lanes < 64:
            found = tirx.Shuffle([found], [tirx.const(i, "int32") for i in range(lanes)])
        return T.reinterpret(f"{table.dtype}x{lanes}", found)

    def _looked_up(self, parts: Sequence[Expr], codes: Expr) -> Expr:
        """Bytes of one, two or four vectors of 64, by a vector of as many codes."""
        if len(parts) == 1:
            permute = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.permvar.qi.512")
            return T.call_llvm_pure_intrin("uint8x64", permute, *parts, codes)
        if len(parts) == 2:
            permute = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpermi2var.qi.512")
            return T.call_llvm_pure_intrin("uint8x64", permute, parts[0], codes, parts[1])
        low, high = self._looked_up(parts[:2], codes), self._looked_up(parts[2:], codes)
        return T.Select(codes < T.Broadcast(T.uint8(128), 64), low, high)

    def permutes(self, width: int) -> bool:
        """True if one instruction looks `width` bytes up in 64 by the lowest 6 bits of each."""
        return self.byte_table and width == 64

    def permuted(self, table: Expr, codes: Expr, width: int) -> Expr:
        """table[codes % 64] for a flat array of 64 int8 and a vector of uint8."""
        permute = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.permvar.qi.512")
        return T.call_llvm_pure_intrin(f"int8x{width}", permute, table[T.Ramp(0, 1, width)], codes)

    def shuffled(self, table: Expr, place: int, codes: Expr, width: int) -> Expr:
        """table[codes] for codes below 16. table: int8, the 16 entries in each 16 of `width` bytes from `place` on."""
        name = dict(self.shuffles)[width]
        entries = table[T.Ramp(place, 1, width)]
        return T.call_llvm_pure_intrin(f"int8x{width}", T.llvm_lookup_intrinsic_id(name), entries, codes)

    def signs(self, codes: Expr) -> Expr:
        """The signs of 32 int8 in an array of them, as the bits of an int32."""
        if self.sign_bits:
            width, name = self.sign_bits
            gather = T.llvm_lookup_intrinsic_id(name)
            vectors = [codes[T.Ramp(i, 1, width)] for i in range(0, 32, width)]
            return _joined([T.call_llvm_pure_intrin("int32", gather, part) for part in vectors], width)
        every, moving = T.int64(-0x7F7F7F7F7F7F7F80), T.int64(0x0002040810204081)  # bit 8 i + 7 moves to bit 56 + i
        words = [T.reinterpret("int64", codes[T.Ramp(i, 1, 8)]) for i in range(0, 32, 8)]
        return _joined([T.cast(((word & every) * moving >> T.int64(56)) & T.int64(255), "int32") for word in words], 8)


def _joined(parts: Sequence[Expr], bits: int) -> Expr:
    """Integers of so many bits as one, the first one lowest."""
    found = parts[0]
    for i, part in enumerate(parts[1:], 1):
        found = found | part << T.int32(i * bits)
    return found


def reduced(how: str, array: Expr, lanes: int) -> Expr:
    """The sum ("add") or the greatest ("max") of the first lanes of an array of integers, a power of two of them."""
    if lanes == 1:
        return array[0]
    dtype = str(array.dtype)
    name = how if how == "add" else ("umax" if dtype.startswith("u") else "smax")
    intrinsic = T.llvm_lookup_intrinsic_id(f"llvm.vector.reduce.{name}")
    return T.call_llvm_pure_intrin(dtype, intrinsic, array[T.Ramp(0, 1, lanes)])


_V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_LINUX = "x86_64-unknown-linux-gnu"
_VNNI512 = Product("uint8", 4, "llvm.x86.avx512.vpdpbusd.512", whole=True)
_WORDS512 = Product("int16", 2, "llvm.x86.avx512.pmaddw.d.512")
_VNNI256 = Product("uint8", 4, "llvm.x86.avx512.vpdpbusd.256", whole=True)
_WORDS256 = Product("int16", 2, "llvm.x86.avx2.pmadd.wd")
_PACK512, _PACK256 = "llvm.x86.avx512.{}.512", "llvm.x86.avx2.{}"
_WIDE = "-prefer-256-bit"
_SIGNS128, _SIGNS256 = (16, "llvm.x86.sse2.pmovmskb.128"), (32, "llvm.x86.avx2.pmovmskb")
_SHUFFLES256 = ((32, "llvm.x86.avx2.pshuf.b"), (16, "llvm.x86.ssse3.pshuf.b.128"))
_SHUFFLES512 = ((64, "llvm.x86.avx512.pshuf.b.512"), *_SHUFFLES256)
_SHUFFLES_ARM = ((16, "llvm.aarch64.neon.tbl1.v16i8"),)

ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa(
            "amx-int8", "AVX-512 and AMX: Sapphire Rapids and later", _LINUX, "x86-64-v4",
            ("+avx512vnni", "+avx512vbmi", "+avx512vpopcntdq", "+avx512bitalg", "+amx-tile", "+amx-int8", _WIDE),
            _V4 | {"avx512_vnni", "avx512vbmi", "avx512_vpopcntdq", "avx512_bitalg", "amx_tile", "amx_int8"},
            16, 32, _VNNI512, _WORDS512, byte_table=True, tiles=True, pack=_PACK512,
            shuffles=_SHUFFLES512, sign_bits=_SIGNS256,
        ),
        Isa(
            "avx512-vbmi", "AVX-512 with VNNI and VBMI: Ice Lake, Zen 4 and later", _LINUX, "x86-64-v4",
            ("+avx512vnni", "+avx512vbmi", "+avx512vpopcntdq", "+avx512bitalg", _WIDE),
            _V4 | {"avx512_vnni", "avx512vbmi", "avx512_vpopcntdq", "avx512_bitalg"},
            16, 32, _VNNI512, _WORDS512, byte_table=True, pack=_PACK512, shuffles=_SHUFFLES512,
            sign_bits=_SIGNS256,
        ),
        Isa(
            "avx512-vnni", "AVX-512 with VNNI: Cascade Lake and later", _LINUX, "x86-64-v4",
            ("+avx512vnni", _WIDE), _V4 | {"avx512_vnni"}, 16, 32, _VNNI512, _WORDS512,
            pack=_PACK512, shuffles=_SHUFFLES512, sign_bits=_SIGNS256,
        ),
        Isa(
            "avx-vnni", "AVX2 with VNNI: Alder Lake and later", _LINUX, "x86-64-v3",
            ("+avxvnni",), _V3 | {"avx_vnni"}, 8, 16, _VNNI256, _WORDS256, pack=_PACK256,
            shuffles=_SHUFFLES256, sign_bits=_SIGNS256,
        ),
        Isa(
            "avx2", "AVX2: Haswell, Zen and later", _LINUX, "x86-64-v3", (), _V3,
            8, 16, None, _WORDS256, pack=_PACK256, shuffles=_SHUFFLES256,
            sign_bits=_SIGNS256,
        ),
        Isa(
            "x86-64", "any 64-bit x86", _LINUX, "x86-64", (), frozenset(),
            4, 16, None, Product("int16", 2, "llvm.x86.sse2.pmadd.wd"), pack="llvm.x86.sse2.{}.128",
            sign_bits=_SIGNS128,
        ),
        Isa(
            "arm-i8mm", "64-bit ARM with i8mm: Neoverse V1, Apple M2 and later", "aarch64-unknown-linux-gnu",
            "generic", ("+v8.2a", "+i8mm", "+dotprod"), frozenset({"asimddp", "i8mm"}), 4, 32,
            Product("uint8", 4, "llvm.aarch64.neon.usdot.v4i32.v16i8", whole=True), Product("int16", 1),
            shuffles=_SHUFFLES_ARM,
        ),
        Isa(
            "arm64", "any 64-bit ARM", "aarch64-unknown-linux-gnu", "generic", (), frozenset(),
            4, 32, None, Product("int16", 1), shuffles=_SHUFFLES_ARM,
        ),
    )
}  # fmt: skip
"""By name, the best of each architecture first."""

WITHOUT_MULTIPLIER = "-shift"


def host_isa(flags: Sequence[str] | None = None) -> Isa:
    """The best instruction set that this CPU has. flags: of another CPU, as in /proc/cpuinfo."""
    found = frozenset(cpu_flags() if flags is None else flags)
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    return next(isa for isa in ISAS.values() if isa.triple.startswith(machine) and isa.features <= found)


def isa_named(name: str) -> Isa:
    """The instruction set of that name, or the host's for "".

    With `WITHOUT_MULTIPLIER` behind the name, layers of constant weights use shifts and additions alone.
    Raises UnsupportedOp listing the known ones.
    """
    if not name:
        return host_isa()
    base = name.removesuffix(WITHOUT_MULTIPLIER)
    if base not in ISAS:
        known = ", ".join(ISAS)
        raise UnsupportedOp(
            f"there is no instruction set {name!r}", remedy=f"known: {known}; each also with {WITHOUT_MULTIPLIER}"
        )
    return ISAS[name] if name == base else replace(ISAS[base], name=name, multiplies=False)
