"""Matrix products and convolutions."""

from __future__ import annotations

import numpy as np

from planish.frontend.call import Call, Converted, Converter, Refusal, apply
from planish.ir import ops
from planish.ir.data import Data
from planish.ir.graph import Value
from planish.ir.op import Const, constant
from planish.ir.types import TensorType


def _matmul(call: Call) -> Converted:
    return apply(ops.MatMul(), call.arg(0), call.arg(1))


def _transposed(call: Call, index: int) -> Value:
    """Operand transposed; the contents of a constant that nobody else reads are transposed when they are loaded."""
    value = call.arg(index)
    data = constant(value)
    if data is None or not call.sole(index):
        return apply(ops.Transpose((1, 0)), value)
    rows, columns = data.type.dims
    type_ = TensorType(data.type.dtype, (columns, rows))
    result = apply(Const(Data.lazy(type_, lambda: np.ascontiguousarray(data.numpy().T))))
    result.hint = value.hint
    return result


def _scaled(value: Value, factor: float) -> Value:
    return value if factor == 1.0 else apply(ops.Mul(), value, np.asarray(factor, value.tensor.dtype.storage))


def _gemm(call: Call) -> Converted:
    if not call.arg(0).tensor.dtype.is_float:
        raise Refusal("Gemm of integers")
    if len(call.dims(0)) != 2 or len(call.dims(1)) != 2:
        raise Refusal("Gemm of operands that aren't matrices")
    alpha, beta = call.float_attr("alpha", 1.0), call.float_attr("beta", 1.0)
    a = _transposed(call, 0) if call.flag_attr("transA") else call.arg(0)
    b = _transposed(call, 1) if call.flag_attr("transB") else call.arg(1)
    c = call.get(2)
    if alpha == 1.0 and (c is None or (beta == 1.0 and call.dims(2) == (b.tensor.dims[1],))):
        return apply(ops.Linear(), a, b, c)
    product = _scaled(apply(ops.Linear(), a, b), alpha)
    return product if c is None else apply(ops.Add(), product, _scaled(c, beta))


def _conv(call: Call) -> Converted:
    x, w = call.dims(0), call.dims(1)
    spatial = len(w) - 2
    kernel = w[2:]
    if len(x) != len(w) or spatial < 1 or not all(isinstance(k, int) for k in kernel):
        raise Refusal("convolution of unknown kernel extents")
    sizes = tuple(k for k in kernel if isinstance(k, int))
    if (stated := call.ints_attr("kernel_shape")) not in (None, sizes):
        raise Refusal(f"kernel_shape {stated} contradicts the weight's {sizes}")
    strides = call.ints_attr("strides") or (1,) * spatial
    dilations = call.ints_attr("dilations") or (1,) * spatial
    pads = explicit_pads(call, sizes, strides, dilations)
    op = ops.Conv(strides, pads, dilations, call.int_attr("group", 1))
    return apply(op, call.arg(0), call.arg(1), call.get(2))


def explicit_pads(
    call: Call, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    """Begins, then ends, with auto_pad resolved."""
    mode = call.text_attr("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return call.ints_attr("pads") or (0,) * (2 * len(kernel))
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    begins, ends = [], []
    for extent, k, stride, dilation in zip(call.dims(0)[2:], kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation
        if stride == 1:
            total = reach
        elif isinstance(extent, int):
            total = max(0, (-(-extent // stride) - 1) * stride + reach + 1 - extent)
        else:
            raise Refusal("automatic padding of symbolic extents")
        small = total // 2
        begins.append(small if mode == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    return (*begins, *ends)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
}
