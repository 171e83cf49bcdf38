"""Casts and constants that lowerings of integer ops share."""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter
from planish.backends.onnx.types import onnx_dtype
from planish.ir.dtypes import DType


def cast(e: Emitter, x: onnx.Value | None, to: DType) -> onnx.Value:
    """The value with another element type; integers wrap."""
    return e.op("Cast", x, to=int(onnx_dtype(to)))


def i64(e: Emitter, numbers: object) -> onnx.Value:
    """A constant of dtype int64."""
    return e.constant(np.asarray(numbers, np.int64), "integer")
