"""Codes as ternary planes, q = sum of 2**p * T_p with T_p of -1, 0 and 1: a product with one adds what it is given."""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast
from planish.backends.onnx.emitter import Emitter
from planish.backends.onnx.lower_integer import shape_of
from planish.ir import dtypes, signed_digits
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops.quantize import quant_of


def ternary_planes(e: Emitter, x: onnx.Value, value: Value) -> list[tuple[onnx.Value, int]]:
    """Planes (int8) of codes less their zero point, with the p of each: canonical signed digits.

    Those of a constant are constants, without the planes that are all 0; those of data are looked up, digit by digit,
    in a table of what each code has there.
    """
    type_ = value.tensor
    zero = quant_of("w", type_).zero
    data = constant(value)
    if data is not None:
        e.spare(x)
        codes = data.numpy().astype(np.int64) - zero
        planes = list(signed_digits.planes(codes)) or [(0, np.zeros(codes.shape, np.int8))]
        return [(e.constant(plane, "plane"), p) for p, plane in planes]
    index = cast(e, x, dtypes.i32)
    if type_.dtype.min:
        index = e.op("Add", index, e.constant(np.asarray(-type_.dtype.min, np.int32), "integer"))
    flat, shape = e.op("Reshape", index, e.ints((-1,))), shape_of(e, index, value)
    every = np.arange(type_.dtype.min, type_.dtype.max + 1, dtype=np.int64) - zero
    return [
        (e.op("Reshape", e.op("GatherElements", e.constant(table, "table"), flat, axis=0), shape), p)
        for p, table in signed_digits.planes(every)
    ]
