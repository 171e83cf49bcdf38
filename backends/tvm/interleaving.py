"""Codes of many tokens at a time: transposed in blocks, and four inputs of each token brought next to each other.

All moves but one stay within 128-bit parts of a vector, which is what instructions do at once.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import Isa
from planish.backends.tvm.scope import Expr, Scope
from planish.backends.tvm.tiles import Rows

PART = 16  # bytes that moves stay within


def mixed(a: Expr, b: Expr, bits: int, high: bool, size: int) -> Expr:
    """Elements of two vectors of `size` bytes in turns, from the lower or the upper half of each part."""
    kind, count = f"int{bits}x{8 * size // bits}", 8 * size // bits
    each = 8 * PART // bits
    places: list[int] = []
    for part in range(0, count, each):
        for i in range(each // 2):
            place = part + i + (each // 2 if high else 0)
            places += [place, count + place]
    return tirx.Shuffle([T.reinterpret(kind, a), T.reinterpret(kind, b)], [tirx.const(i, "int32") for i in places])


def quads(inputs: list[Expr], count: int, dtype: str, size: int) -> list[Expr]:
    """Of four vectors of bytes, one per input, `count` vectors with the four inputs of each token side by side.

    In block order as `transpose_codes` has it, element t of vector j is token j * lanes + t.
    """
    a, b, c, d = inputs
    found: list[Expr] = []
    for high in (False, True):
        if len(found) >= count:
            break
        left, right = mixed(a, b, 8, high, size), mixed(c, d, 8, high, size)
        found += [mixed(left, right, 16, upper, size) for upper in (False, True)]
    return [T.reinterpret(f"{dtype}x{size}", vector) for vector in found[:count]]


def four(rows: list[Expr], lanes: int) -> list[Expr]:
    """Squares of 4 x 4 int32, one in each part of four vectors, transposed."""
    a, b, c, d = rows
    size = 4 * lanes
    pairs = [[mixed(x, y, 32, high, size) for high in (False, True)] for x, y in ((a, b), (c, d))]
    found = [mixed(x, y, 64, high, size) for x, y in zip(*pairs, strict=True) for high in (False, True)]
    return [T.reinterpret(f"int32x{lanes}", vector) for vector in found]


def token_at(place: int, lanes: int) -> int:
    """The token whose code is byte `place` of a column in block order: four of each vector of sums in turns."""
    part, number = divmod(place, PART)
    return number // 4 * lanes + 4 * part + number % 4


def blocked(count: int, depth: int, isa: Isa) -> tuple[int, int, int]:
    """The shape of `count` rows in blocks: [blocks][K][tokens of a block], K rounded up to vectors."""
    wide = 4 * isa.lanes
    return -(-count // wide), -(-depth // wide) * wide, wide


def transpose_codes(rows: Rows, count: int, shape: tuple[int, int, int], target: Expr, scope: Scope) -> None:
    """Write codes of rows as `blocked` has them to a flat array; the last row is repeated.

    A block is a vector of bytes, in the order that `quads` undoes: byte 16 l + 4 j + b of a column is token
    (4 j + l) * 4 + b for 512 bits. Sixteen inputs of four tokens are loaded as one vector, a token to each of its
    parts, so that all else is done within parts.
    """
    blocks, depth, wide = shape
    parts, chunks, kind = wide // PART, depth // wide, f"{target.dtype}x{wide}"
    scope.reaching(wide)
    with T.parallel(0, blocks * chunks) as number:
        block, chunk = T.floordiv(number, chunks), T.floormod(number, chunks)
        with T.serial(0, parts) as across:
            place = chunk * wide + across * PART
            vectors = []
            for i in range(PART):
                tokens = [block * wide + i // 4 * (wide // 4) + 4 * part + i % 4 for part in range(parts)]
                found = [rows.array[T.Ramp(T.min(token, count - 1) * rows.stride + place, 1, PART)] for token in tokens]
                vectors.append(kept_vector(joined(found), "int8", wide))
            for k, vector in enumerate(interleaved(vectors, wide)):
                column = T.reinterpret(kind, vector)
                if rows.shift:
                    column = column + T.Broadcast(T.Cast(str(target.dtype), rows.shift), wide)
                T.buffer_store(target, column, [T.Ramp((block * depth + place + k) * wide, 1, wide)])


def interleaved(vectors: list[Expr], size: int) -> list[Expr]:
    """Squares of 16 x 16 bytes, one in each part of sixteen vectors, transposed: each round doubles places, modulo."""
    for _ in range(4):
        half = zip(vectors[: PART // 2], vectors[PART // 2 :], strict=True)
        pairs = [mixed(a, b, 8, high, size) for a, b in half for high in (False, True)]
        vectors = [kept_vector(vector, "int8", size) for vector in pairs]
    return vectors


def joined(parts: list[Expr]) -> Expr:
    """Vectors as one."""
    if len(parts) == 1:
        return parts[0]
    size = sum(int(part.ty.dtype.lanes) for part in parts)
    return tirx.Shuffle(parts, [tirx.const(i, "int32") for i in range(size)])


def kept_vector(value: Expr, dtype: str, size: int) -> Expr:
    """A vector of so many elements that is computed once."""
    array, every = T.alloc_buffer((size,), dtype, scope="global"), T.Ramp(0, 1, size)
    T.buffer_store(array, T.reinterpret(f"{dtype}x{size}", value), [every])
    return array[every]
