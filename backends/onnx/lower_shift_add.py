"""Products of real numbers by codes of a codebook: as products by the numbers that they stand for.

A linear layer in evenly spaced codes of 4 bits is one kernel of ONNX Runtime, which leaves the weights as small as they
are; other codebooks have none there, and are made floats as the model is loaded.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering, expanded
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.op import Op, constant
from planish.ir.ops.quantize import quant_of

Operands = list["onnx.Value | None"]
_LARGEST_BLOCK = 256  # rows that share a scale, a power of two from 16 on
_IN_FLOATS = 1  # accuracy level: rows stay f32; by default ONNX Runtime may round them to 8 bits


def _linear(e: Emitter, node: Node, x: Operands) -> Lowered:
    quant, data = quant_of("w", node.inputs[1].tensor), constant(node.operands[1])
    if quant.codebook != "int4" or data is None or not e.dialect.spellings.contrib:
        return e.expand(node)
    codes = data.numpy()
    depth, columns = codes.shape
    block = min(_LARGEST_BLOCK, max(16, 1 << (depth - 1).bit_length()))
    blocks = -(-depth // block)
    numbers = np.full((columns, blocks * block), 8, np.uint8)
    numbers[:, :depth] = (codes.T.astype(np.int16) + 8).astype(np.uint8)
    packed = (numbers[:, 0::2] | (numbers[:, 1::2] << 4)).reshape(columns, blocks, block // 2)
    scales = np.repeat(np.broadcast_to(quant.scales, columns).astype(np.float32), blocks)
    weight, scale = e.constant(packed, "codes"), e.constant(scales.reshape(columns, blocks), "scales")
    bias = x[2] if len(x) > 2 else None
    shape = {"K": depth, "N": columns, "bits": 4, "block_size": block, "accuracy_level": _IN_FLOATS}
    return e.contrib("MatMulNBits", x[0], weight, scale, None, None, bias, **shape)


LOWERINGS: dict[type[Op], Lowering] = {ops.ShiftLinear: _linear, ops.ShiftConv: expanded}
