"""Weights that are codes of a codebook, in the file in as few bits as the codebook needs, unpacked by standard ops.

ONNX Runtime folds these as it loads a model, so that they cost nothing when it runs. Codes of 3, 5 and 6 bits are
stored as planes of 4, 2 and 1 bits, each packed into bytes, the first code in the lowest bits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter
from planish.ir.codebooks import CODEBOOKS, GROUP, Codebook
from planish.ir.data import Data

_WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
"""Widths of the planes that codes are cut into, the lowest bits first."""


def unpacked(e: Emitter, data: Data, name: str) -> onnx.Value | None:
    """Codes as int8, from packed initializers; None for what isn't in a codebook of less than 8 bits."""
    quant = data.type.quant
    book = None if quant is None else CODEBOOKS.get(quant.codebook)
    if quant is None or book is None or book.bits not in _WIDTHS:
        return None
    codes = data.numpy()
    if not book.is_binary_coded:
        values = np.asarray(book.values)
        numbers = np.searchsorted(values, codes).astype(np.uint8)
        number = e.op("Cast", _numbers(e, numbers.reshape(-1), book.bits, name), to=int(onnx.DataType.INT32))
        found = e.op("Gather", e.constant(values.astype(np.int8), "codebook"), number)
        return e.op("Reshape", found, e.ints(codes.shape))
    axis = 0 if quant.axis is None else quant.axis
    rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
    whole = _binary_coded(e, rows, book, name)
    if axis == 0:
        return e.op("Reshape", whole, e.ints(codes.shape))
    others = [extent for i, extent in enumerate(codes.shape) if i != axis]
    back = list(range(1, codes.ndim))
    back.insert(axis, 0)
    return e.op("Transpose", e.op("Reshape", whole, e.ints((codes.shape[axis], *others))), perm=back)


def _binary_coded(e: Emitter, rows: np.ndarray, book: Codebook, name: str) -> onnx.Value:
    """Codes [channels, K] by the magnitudes of their groups: a code is a sign and the place of its magnitude."""
    channels, depth = rows.shape
    count = -(-depth // GROUP)
    padded = np.concatenate([rows, np.repeat(rows[:, -1:], count * GROUP - depth, axis=1)], axis=1)
    groups = padded.reshape(channels, count, GROUP)
    magnitudes = np.zeros((channels, count, book.levels), np.int8)
    numbers = np.zeros(groups.shape, np.uint8)
    for channel, group in np.ndindex(channels, count):
        levels = np.unique(np.abs(groups[channel, group]))
        magnitudes[channel, group, : len(levels)] = levels
        numbers[channel, group] = np.searchsorted(levels, np.abs(groups[channel, group]))
    numbers += np.where(groups < 0, np.uint8(book.levels), np.uint8(0))
    positive = e.constant(magnitudes, f"{name}.levels")
    table = e.op("Reshape", e.op("Concat", positive, e.op("Neg", positive), axis=-1), e.ints((-1,)))
    number = e.op("Cast", _numbers(e, numbers.reshape(-1), book.bits, name), to=int(onnx.DataType.INT32))
    shaped = e.op("Reshape", number, e.ints(groups.shape))
    bounds = (
        e.constant(np.asarray(n, np.int32), "integer") for n in (0, channels * count << book.bits, 1 << book.bits)
    )
    first = e.op("Reshape", e.op("Range", *bounds), e.ints((channels, count, 1)))
    found = e.op("Gather", table, e.op("Add", shaped, first))
    flat = e.op("Reshape", found, e.ints((channels, count * GROUP)))
    return flat if depth == count * GROUP else e.op("Slice", flat, e.ints((0,)), e.ints((depth,)), e.ints((1,)))


def _numbers(e: Emitter, numbers: np.ndarray, bits: int, name: str) -> onnx.Value:
    """uint8[n] below 2**bits, from planes of packed bits."""
    total, low = None, 0
    for width in _WIDTHS[bits]:
        part = plane(e, (numbers >> low) & ((1 << width) - 1), width, name)
        if low:
            part = e.op("BitShift", part, e.constant(np.asarray(low, np.uint8), "shift"), direction="LEFT")
        total, low = part if total is None else e.op("Add", total, part), low + width
    assert total is not None
    return total


def plane(e: Emitter, numbers: np.ndarray, width: int, name: str) -> onnx.Value:
    """uint8[n] below 2**width, from bytes that hold several of them each."""
    each = 8 // width
    count = -(-len(numbers) // each)
    padded = np.concatenate([numbers, np.zeros(count * each - len(numbers), np.uint8)]).reshape(count, each)
    packed = np.bitwise_or.reduce(padded << (width * np.arange(each)).astype(np.uint8), axis=1)
    bytes_ = e.constant(packed.astype(np.uint8)[:, None], f"{name}.codes")
    above = (8 - width * (1 + np.arange(each))).astype(np.uint8)[None]
    lifted = e.op("BitShift", bytes_, e.constant(above, "shift"), direction="LEFT")
    lowered = e.op("BitShift", lifted, e.constant(np.asarray(8 - width, np.uint8), "shift"), direction="RIGHT")
    flat = e.op("Reshape", lowered, e.ints((-1,)))
    whole = count * each == len(numbers)
    return flat if whole else e.op("Slice", flat, e.ints((0,)), e.ints((len(numbers),)), e.ints((0,)))
