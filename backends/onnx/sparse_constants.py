"""Weights with zeros, in the file as the blocks that aren't zero and a bit for each block, spread out by standard ops.

ONNX Runtime folds these as it loads a model: the file is smaller, and nothing is faster or slower when it runs. 2:4
weights stay dense, as TensorRT looks for the pattern in the initializer itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter
from planish.backends.onnx.packed_codes import plane
from planish.ir.data import Data
from planish.ir.sparsity import blocks

_WORTH = 0.9  # of the bytes: weights that don't get smaller than this stay dense
_NODES = 2048  # bytes that the ops take


def spread(e: Emitter, data: Data, name: str) -> onnx.Value | None:
    """The weight from its blocks; None where its type says of no blocks, or where the file would hardly be smaller."""
    zeros = data.type.sparsity
    if zeros is None or zeros.kind not in ("unstructured", "block"):
        return None
    length, axis = (zeros.block[0], zeros.axis) if zeros.kind == "block" else (1, data.type.rank)
    assert axis is not None
    array = data.numpy()
    axis = min(axis, array.ndim - 1)
    cut = blocks(array, length, axis)  # [.., runs, length]
    flat = cut.reshape(-1, length)
    kept = np.any((flat != 0) | np.signbit(flat), axis=1)  # a zero with a sign isn't what is filled in
    stored = -(-len(kept) // 8) + int(np.count_nonzero(kept)) * length * array.itemsize
    if stored + _NODES > _WORTH * array.nbytes:
        return None
    bits = e.op("Cast", plane(e, kept.astype(np.uint8), 1, f"{name}.kept"), to=int(onnx.DataType.INT32))
    counted = e.op("CumSum", bits, e.constant(np.asarray(0, np.int64), "axis"))
    numbers = e.op("Mul", bits, counted)  # of the blocks that are there, from 1 on; 0 is a block of zeros
    table = np.concatenate([np.zeros((1, length), array.dtype), flat[kept]])
    whole = e.op("Gather", e.constant(table, f"{name}.blocks"), numbers)
    rows = e.op("Reshape", whole, e.ints((*cut.shape[:-2], cut.shape[-2] * length)))
    if cut.shape[-2] * length != array.shape[axis]:
        rows = e.op("Slice", rows, e.ints((0,)), e.ints((array.shape[axis],)), e.ints((array.ndim - 1,)))
    if axis == array.ndim - 1:
        return rows
    back = list(range(array.ndim - 1))
    back.insert(axis, array.ndim - 1)
    return e.op("Transpose", rows, perm=back)
