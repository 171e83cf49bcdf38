"""A model whose norm is a function of its own, written in onnxscript."""

from __future__ import annotations

import onnx
from onnxscript import FLOAT, opset18, script, values

ZOO = values.Opset("zoo", 1)


@script(ZOO)
def written_norm(x, weight, bias):
    mean = opset18.ReduceMean(x, opset18.Constant(value_ints=[-1]))
    centred = x - mean
    variance = opset18.ReduceMean(centred * centred, opset18.Constant(value_ints=[-1]))
    return centred / opset18.Sqrt(variance + 1e-5) * weight + bias


@script()
def two_norms(x: FLOAT["batch", 6, 4]) -> FLOAT["batch", 6, 4]:  # noqa: F821, UP037
    weight = opset18.Constant(value_floats=[0.5, 1.0, 2.0, -1.0])
    bias = opset18.Constant(value_floats=[1.0, 0.0, 2.0, 3.0])
    return written_norm(written_norm(x, weight, bias), bias, weight)


def model() -> onnx.ModelProto:
    """x through the function twice."""
    result: onnx.ModelProto = two_norms.to_model_proto()
    return result
