"""Weights of a codebook, packed in as few bits as it has, and their way back to bytes in vector registers.

A code is cut into planes of bits, 6 into 4 and 2, 5 into 4 and 1; a plane of p bits holds 8 / p groups of K in the
bytes of one. So groups that are packed together lie one after the other along K, and bytes never change lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import Isa, Product, TileProduct
from planish.backends.tvm.scope import Expr, Scope
from planish.ir.codebooks import CODEBOOKS
from planish.ir.graph import Value
from planish.ir.ops.quantize import quant_of

_NIBBLE = 4  # bits that a shuffle of bytes looks up


@dataclass(frozen=True)
class Codes:
    """Codes of few bits that stand for int8 values, ascending, 0 among them."""

    bits: int
    values: tuple[int, ...]

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of each plane, the lowest bits of a code first; each divides 8."""
        return tuple(p for p in (min(self.bits, _NIBBLE), self.bits - _NIBBLE) if p > 0)

    @property
    def unit(self) -> int:
        """Groups of K that are packed together."""
        return max(8 // plane for plane in self.planes)

    @property
    def parts(self) -> int:
        """Packed vectors that hold `unit` vectors of bytes."""
        return sum(self.unit * plane // 8 for plane in self.planes)

    def places(self, group: int) -> list[tuple[int, int]]:
        """Where each plane of a group of a unit lies: the number of the part, and the lowest bit in its bytes."""
        found, first = [], 0
        for plane in self.planes:
            share = 8 // plane
            found.append((first + group // share, group % share * plane))
            first += self.unit // share
        return found

    @property
    def tables(self) -> int:
        """Tables of 16 entries that hold all codes."""
        return 1 << max(0, self.bits - _NIBBLE)

    def packed(self, panels: np.ndarray, block: int, stride: int) -> np.ndarray:
        """Panels, as `tiles.pack` makes them of K that is a multiple of `unit` groups, in `bits` bits an element.

        panels: flat int8 of blocks of `block` elements, groups of K `stride` elements apart.
        uint8, flat: [blocks][units of K][parts][stride].
        """
        codes = np.searchsorted(np.asarray(self.values), panels).astype(np.uint8)
        units = codes.reshape(-1, block // (self.unit * stride), self.unit, stride)
        parts, low = [], 0
        for plane in self.planes:
            share = 8 // plane
            bits = (units >> low & ((1 << plane) - 1)).reshape(*units.shape[:2], -1, share, stride)
            shifts = np.arange(0, 8, plane, dtype=np.uint8).reshape(-1, 1)
            parts.append(np.bitwise_or.reduce(bits << shifts, axis=3))
            low += plane
        return np.ascontiguousarray(np.concatenate(parts, axis=2)).reshape(-1)

    def table(self, entries: int) -> np.ndarray:
        """int8 values of all codes; repeated to that many entries, so that higher bits of an index don't matter."""
        every = np.zeros(1 << max(self.bits, _NIBBLE), np.int8)
        period = 1 << self.bits
        every[: len(self.values)] = self.values
        every[:period] = np.resize(every[:period], period)
        return np.resize(every[:period], max(entries, every.size))


def codes_of(weights: Value) -> Codes | None:
    """The codes that a constant of weights is packed in; None for plain bytes."""
    book = CODEBOOKS.get(quant_of("w", weights.tensor).codebook)
    if book is None or book.values is None or book.bits >= 7 or 0 not in book.values:
        return None
    return Codes(book.bits, book.values)


@dataclass(frozen=True)
class Decoder:
    """Makes int8 vectors of packed codes, `width` bytes at a time; table: of the values of all codes."""

    codes: Codes
    isa: Isa
    width: int
    table: Expr

    @staticmethod
    def of(codes: Codes, isa: Isa, width: int, scope: Scope) -> Decoder:
        """width: that of vectors of the instruction set that have tables."""
        array = (
            codes.table(64)
            if isa.permutes(width)
            else np.concatenate([np.tile(part, 4) for part in codes.table(16).reshape(-1, 16)])
        )
        return Decoder(codes, isa, width, scope.constant("codebook", array))

    def vectors(self, part: Callable[[int], Expr]) -> list[Expr]:
        """The `unit` vectors of int8 that are packed in the parts of a unit, which `part` gives as uint8."""
        return [self._vector(part, group) for group in range(self.codes.unit)]

    def _vector(self, part: Callable[[int], Expr], group: int) -> Expr:
        (low, place), *rest = ((part(where), place) for where, place in self.codes.places(group))
        index = self._moved(low, -place)
        if self.isa.permutes(self.width):
            for high, place in rest:  # bits above those of a code don't matter
                index = index & self._every(15) | self._moved(high, _NIBBLE - place) & self._every(240)
            return self.isa.permuted(self.table, index, self.width)
        index = index & self._every(15)
        choices = [self.isa.shuffled(self.table, 64 * i, index, self.width) for i in range(self.codes.tables)]
        for high, place in rest:
            for bit in range(self.codes.bits - _NIBBLE):
                chosen = tirx.NE(high & self._every(1 << (place + bit)), self._every(0))
                choices = [T.Select(chosen, b, a) for a, b in zip(choices[::2], choices[1::2], strict=True)]
        return choices[0]

    def _moved(self, vector: Expr, left: int) -> Expr:
        """Bits of every byte moved; others come in from bytes beside it."""
        if left == 0:
            return vector
        words = T.reinterpret(f"uint16x{self.width // 2}", vector)
        amount = T.Broadcast(T.uint16(abs(left)), self.width // 2)
        return T.reinterpret(f"uint8x{self.width}", words << amount if left > 0 else words >> amount)

    def _every(self, byte: int) -> Expr:
        return T.Broadcast(T.uint8(byte), self.width)


def in_registers(codes: Codes, isa: Isa, product: Product | TileProduct, scope: Scope) -> Decoder | None:
    """What decodes vectors as a product takes them; None for tiles, which load from memory, and where no table fits."""
    width = isa.lanes * product.group
    if isinstance(product, TileProduct) or width not in dict(isa.shuffles):
        return None
    return Decoder.of(codes, isa, width, scope)


def unpack(
    codes: Codes, isa: Isa, scope: Scope, packed: Expr, place: Expr, target: Expr, stride: int, groups: int
) -> None:
    """Write the bytes of a panel that is packed from `place` on: `groups` of K, each of `stride` columns' elements."""
    width = next((width for width, _ in isa.shuffles if stride % width == 0), 0)
    size = codes.parts * stride
    with T.serial(0, groups // codes.unit) as unit:
        above, below = place + unit * size, unit * (codes.unit * stride)
        if width:
            decoder = Decoder.of(codes, isa, width, scope)
            with T.serial(0, stride // width) as chunk:
                first = chunk * width
                vectors = decoder.vectors(lambda part: packed[T.Ramp(above + part * stride + first, 1, width)])
                for group, vector in enumerate(vectors):
                    T.buffer_store(target, vector, [T.Ramp(below + group * stride + first, 1, width)])
        else:
            table = scope.constant("codebook", codes.table(1 << codes.bits))
            with T.serial(0, stride) as i:
                for group in range(codes.unit):
                    code = _code(codes, group, lambda part: T.cast(packed[above + part * stride + i], "int32"))
                    T.buffer_store(target, table[code], [below + group * stride + i])


def _code(codes: Codes, group: int, part: Callable[[int], Expr]) -> Expr:
    """The code of one element of a group of a unit, whose parts are given as int32."""
    code, low = T.int32(0), 0
    for plane, (where, place) in zip(codes.planes, codes.places(group), strict=True):
        code = code | ((part(where) >> T.int32(place)) & T.int32((1 << plane) - 1)) << T.int32(low)
        low += plane
    return code
