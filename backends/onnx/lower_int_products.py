"""Products of codes to ONNX: MatMulInteger and ConvInteger, whose sums are exact in 32 bits.

MatMulInteger multiplies bytes, and on x86 only an unsigned left operand is fast: a signed one is lifted by 128, and its
zero point with it. 16-bit operands are two products of bytes, x = 256 * high + low.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast
from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_integer import centred
from planish.backends.onnx.shift_arithmetic import added
from planish.backends.onnx.ternary_planes import ternary_planes
from planish.ir import dtypes, ops
from planish.ir.graph import Node, Value
from planish.ir.op import Op
from planish.ir.ops.quantize import quant_of
from planish.ir.types import TensorType

Operands = list["onnx.Value | None"]
Bytes = tuple[onnx.Value, int, int]
"""A tensor of bytes, its zero point, and the exponent of the power of two that it counts for."""


def product(e: Emitter, node: Node, x: Operands) -> onnx.Value:
    """(a - zero of a) @ (b - zero of b) as int32, for codes of 8 or 16 bits; sums wrap around in between."""
    (left, right), (a, b) = (value.tensor for value in node.inputs[:2]), x[:2]
    assert a is not None
    assert b is not None
    parts = []
    factors = _factors(e, b, node.inputs[1])
    for codes, zero, exponent in _bytes(e, a, left, lift=True):
        for y, y_zero, y_exponent in factors:
            operands = [codes, y, e.constant(np.asarray(zero, np.uint8), "zero_point")]
            if y_zero:
                operands.append(e.constant(np.asarray(y_zero, _storage(right)), "zero_point"))
            parts.append((e.op("MatMulInteger", *operands), exponent + y_exponent))
    return _total(e, parts)


def _factors(e: Emitter, x: onnx.Value, value: Value) -> list[Bytes]:
    """What the left operand is multiplied with: bytes, or ternary planes where nothing may be multiplied."""
    if e.dialect.spellings.multiply:
        return _bytes(e, x, value.tensor, lift=False)
    return [(plane, 0, p) for plane, p in ternary_planes(e, x, value)]


def _total(e: Emitter, parts: list[tuple[onnx.Value, int]]) -> onnx.Value:
    """Sum of int32 parts, each times 2 to its exponent."""
    if not e.dialect.spellings.multiply:
        return added(e, parts)
    total: onnx.Value | None = None
    for part, exponent in parts:
        if exponent:
            part = e.op("Mul", part, e.constant(np.asarray(1 << exponent, np.int32), "integer"))
        total = part if total is None else e.op("Add", total, part)
    assert total is not None
    return total


def _storage(right: TensorType) -> np.dtype[np.generic]:
    return np.dtype(np.int8) if right.dtype == dtypes.i8 else np.dtype(np.uint8)


def _bytes(e: Emitter, x: onnx.Value, type_: TensorType, lift: bool) -> list[Bytes]:
    """The bytes that a tensor of codes consists of; `lift` makes signed bytes unsigned."""
    zero, dtype = quant_of("x", type_).zero, type_.dtype
    if dtype == dtypes.u8 or (dtype == dtypes.i8 and not lift):
        return [(x, zero, 0)]
    if dtype == dtypes.i8:
        return [(e.op("Add", cast(e, x, dtypes.u8), e.constant(np.asarray(128, np.uint8), "integer")), zero + 128, 0)]
    word = x
    if dtype == dtypes.i16:
        word = e.op("Add", cast(e, x, dtypes.u16), e.constant(np.asarray(1 << 15, np.uint16), "integer"))
        zero += 1 << 15
    high = e.op("BitShift", word, e.constant(np.asarray(8, np.uint16), "shift"), direction="RIGHT")
    return [(cast(e, high, dtypes.u8), zero >> 8, 8), (cast(e, word, dtypes.u8), zero & 255, 0)]


def _linear(e: Emitter, node: Node, x: Operands) -> Lowered:
    total = product(e, node, x)
    return total if len(x) < 3 or x[2] is None else e.op("Add", total, x[2])


def _linear_dequantize(e: Emitter, node: Node, x: Operands) -> Lowered:
    """One kernel of ONNX Runtime; in standard ops, the product, its cast and its scale."""
    left, right = node.inputs[0].tensor, node.inputs[1].tensor
    assert x[0] is not None
    assert x[1] is not None
    (codes, zero, _), bias = _bytes(e, x[0], left, lift=True)[0], x[2] if len(x) > 2 else None
    weights = quant_of("w", right).scales
    if e.dialect.spellings.contrib:
        scales = [np.asarray(quant_of("x", left).scale[0], np.float32), weights.astype(np.float32)]
        made = [e.constant(scale if scale.size > 1 else scale.reshape(()), "scale") for scale in scales]
        point = e.constant(np.asarray(zero, np.uint8), "zero_point")
        return e.contrib("MatMulIntegerToFloat", codes, x[1], *made, point, None, bias)
    scale = (quant_of("x", left).scale[0] * weights).astype(np.float32)
    real = cast(e, product(e, node, x), dtypes.f32)
    scaled = e.op("Mul", real, e.constant(scale, "scale"))
    return scaled if bias is None else e.op("Add", scaled, bias)


def _weighted_mean(e: Emitter, node: Node, x: Operands) -> Lowered:
    """floor((2**bits * total + weight / 2) / weight): the divisor is positive, and the dividend is made so.

    |total| <= 128 * weight, so 128 * weight on top of it, 128 off the quotient. In 32 bits where that has room.
    """
    op, (weights, rows) = node.op, (node.inputs[0].tensor, node.inputs[1].tensor)
    assert isinstance(op, ops.IntWeightedMean)
    assert x[0] is not None
    assert x[1] is not None
    total = product(e, node, x)
    weight = e.op("ReduceSum", cast(e, x[0], dtypes.i32), e.ints((-1,)), keepdims=1)
    weight = e.op("Max", weight, e.constant(np.asarray(1, np.int32), "integer"))
    lift = 1 << (rows.dtype.bits - 1)
    length = weights.dims[-1]
    heaviest = length * weights.dtype.max * 2 * lift + 1 << op.bits if isinstance(length, int) else 1 << 62
    wide = dtypes.i32 if heaviest < 2**31 else dtypes.i64
    if wide == dtypes.i64:
        total, weight = cast(e, total, wide), cast(e, weight, wide)

    def number(n: int) -> onnx.Value:
        return e.constant(np.asarray(n, wide.storage), "integer")

    lifted = e.op("Add", total, e.op("Mul", weight, number(lift)))
    dividend = e.op("Add", e.op("Mul", lifted, number(1 << op.bits)), e.op("Div", weight, number(2)))
    mean = e.op("Sub", e.op("Div", dividend, weight), number(lift << op.bits))
    return mean if wide == dtypes.i32 else cast(e, mean, dtypes.i32)


def _signed_sums(e: Emitter, node: Node, x: Operands) -> Lowered:
    """As a matrix product; without multiplications, by signs that are seen to be no other numbers."""
    if e.dialect.spellings.multiply:
        return _matmul(e, node, x)
    value = node.inputs[1]
    assert x[1] is not None
    signs, none = e.op("Sign", x[0]), e.constant(np.asarray(0, np.int8), "zero_point")
    parts = []
    for codes, zero, exponent in _bytes(e, x[1], value.tensor, lift=True):
        point = e.constant(np.asarray(zero, np.uint8), "zero_point")
        parts.append((e.op("MatMulInteger", signs, codes, none, point), exponent))
    return _total(e, parts)


def _matmul(e: Emitter, node: Node, x: Operands) -> Lowered:
    return product(e, node, x)


def _conv(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, image, kernel = node.op, node.inputs[0].tensor, node.inputs[1].tensor
    assert isinstance(op, ops.IntConv)
    codes, zero = x[0], quant_of("x", image).zero
    assert codes is not None
    if image.dtype == dtypes.i8:
        codes = e.op("Add", cast(e, codes, dtypes.u8), e.constant(np.asarray(128, np.uint8), "integer"))
        zero += 128
    assert x[1] is not None
    parts, cut = [], _patches(e, node, codes)
    if cut is None and any(op.pads):  # by hand: the op's own padding is 0, not the zero point
        rank = len(image.dims)
        amounts = [0, 0, *op.pads[: rank - 2], 0, 0, *op.pads[rank - 2 :]]
        codes = e.op("Pad", codes, e.ints(amounts), e.constant(np.asarray(zero, np.uint8), "zero_point"))
    point = e.constant(np.asarray(zero, np.uint8), "zero_point")
    for weight, _, exponent in _factors(e, x[1], node.inputs[1]):
        if cut is not None:
            matrix = e.op("Transpose", e.op("Reshape", weight, e.ints((int(kernel.dims[0]), -1))), perm=(1, 0))
            parts.append((e.op("MatMulInteger", cut, matrix, point), exponent))
            continue
        steps = {"strides": op.strides, "dilations": op.dilations, "kernel_shape": [int(d) for d in kernel.dims[2:]]}
        parts.append((e.op("ConvInteger", codes, weight, point, group=op.group, **steps), exponent))
    total = _total(e, parts)
    if cut is not None:
        grid = (int(dim) for dim in node.result.tensor.dims[1:])
        total = e.op("Reshape", e.op("Transpose", total, perm=(0, 2, 1)), e.ints((-1, *grid)))
    if len(x) < 3 or x[2] is None:
        return total
    spread = e.ints((-1, *(1,) * (len(image.dims) - 2)))
    return e.op("Add", total, e.op("Reshape", x[2], spread))


def _patches(e: Emitter, node: Node, codes: onnx.Value) -> onnx.Value | None:
    """Patches side by side as rows [N, Y, C * K], whose convolution is one matrix product, 18 times as fast.

    None if it isn't one.
    """
    op, image, kernel = node.op, node.inputs[0].tensor, node.inputs[1].tensor
    assert isinstance(op, ops.IntConv)
    taps = kernel.dims[2:]
    plain = op.strides == taps and not any(op.pads) and op.group == 1 and set(op.dilations) == {1}
    if not plain or len(taps) != 2 or not all(isinstance(dim, int) for dim in (*image.dims[1:], *kernel.dims)):
        return None
    channels, height, width = (int(dim) for dim in image.dims[1:])
    kh, kw = int(taps[0]), int(taps[1])
    if height % kh or width % kw:
        return None
    rows, columns = height // kh, width // kw
    cut = e.op("Reshape", codes, e.ints((-1, channels, rows, kh, columns, kw)))
    patches = e.op("Transpose", cut, perm=(0, 2, 4, 1, 3, 5))
    return e.op("Reshape", patches, e.ints((-1, rows * columns, channels * kh * kw)))


def _mul(e: Emitter, node: Node, x: Operands) -> Lowered:
    a, b = (centred(e, v, operand.tensor, dtypes.i32) for v, operand in zip(x, node.inputs, strict=True))
    return e.op("Mul", a, b)


def _reduce_sum(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.IntReduceSum)
    wide = centred(e, x[0], node.inputs[0].tensor, dtypes.i32)
    return e.op("ReduceSum", wide, e.ints(op.axes), keepdims=op.keepdims)


LOWERINGS: dict[type[Op], Lowering] = {
    ops.IntLinear: _linear,
    ops.IntLinearDequantize: _linear_dequantize,
    ops.IntMatMul: _matmul,
    **dict.fromkeys((ops.IntAddMatMul, ops.IntBinaryMatMul), _signed_sums),
    ops.IntConv: _conv,
    ops.IntMul: _mul,
    ops.IntReduceSum: _reduce_sum,
    ops.IntWeightedMean: _weighted_mean,
}
