"""RMSNorm as exporters spell it, with look-alikes that divide by something else. x is [2, 5, 8]."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
from onnx import helper

from .layer_norm_spellings import EPS, GAMMA, Build, Counts, inverse_root
from .spelling_graph import SHAPE, SpellingGraph


def written_out(
    square: str = "mul",
    normalize: str = "div",
    casts: str = "none",
    gamma: str = "last",
    opset: int = 17,
) -> onnx.ModelProto:
    """x / sqrt(mean(x^2) + eps) * gamma; the options vary one step each.

    ``square``: mul, pow, sum (ReduceSum times 1/D), sum_square (ReduceSumSquare times 1/D). ``normalize``: div,
    one_over, reciprocal, power. ``casts`` from float16: none, head (result float32), before_gamma, after_gamma (result
    float16). ``gamma``: last, first, offset (1 + w), none.
    """
    g = SpellingGraph(opset)
    half = casts != "none"
    x = g.input("x", SHAPE, np.float16 if half else np.float32)
    x = g.op("Cast", x, to=onnx.TensorProto.FLOAT) if half else x
    guarded = g.op("Add", _mean_square(g, x, square), g.const(EPS))
    if normalize == "div":
        y = g.op("Div", x, g.op("Sqrt", guarded))
    else:
        y = g.op("Mul", x, inverse_root(g, guarded, normalize))
    if casts == "before_gamma":
        y = g.op("Cast", y, to=onnx.TensorProto.FLOAT16)
    y = _scaled(g, y, gamma, np.float16 if casts == "before_gamma" else np.float32)
    if casts == "after_gamma":
        y = g.op("Cast", y, to=onnx.TensorProto.FLOAT16)
    return g.model(y, dtype=np.float16 if casts in ("before_gamma", "after_gamma") else np.float32)


def _mean_square(g: SpellingGraph, x: str, square: str) -> str:
    if square == "sum_square":
        return g.op("Mul", g.op("ReduceSumSquare", x, axes=[-1], keepdims=1), g.const(1 / SHAPE[-1]))
    squared = g.op("Pow", x, g.const(2.0)) if square == "pow" else g.op("Mul", x, x)
    if square == "sum":
        total = g.op("ReduceSum", squared, g.const([-1], np.int64), keepdims=1)
        return g.op("Mul", total, g.const(1 / SHAPE[-1]))
    return g.reduce_mean(squared)


def _scaled(g: SpellingGraph, y: str, gamma: str, dtype: type[np.generic]) -> str:
    if gamma == "none":
        return y
    if gamma == "offset":
        return g.op("Mul", y, g.op("Add", g.const(GAMMA - 1, dtype), g.const(1.0, dtype)))
    scale = g.const(GAMMA, dtype)
    return g.op("Mul", scale, y) if gamma == "first" else g.op("Mul", y, scale)


def skip(bias: str) -> onnx.ModelProto:
    """RMSNorm of x + skip, a bias added ``before`` or ``after`` the skip; the sum is a second output."""
    g = SpellingGraph()
    x, residual = g.input("x", SHAPE), g.input("skip", SHAPE)
    offset = g.const(GAMMA)
    if bias == "before":
        total = g.op("Add", g.op("Add", x, offset), residual)
    else:
        total = g.op("Add", g.op("Add", x, residual), offset)
    guarded = g.op("Add", _mean_square(g, total, "pow"), g.const(EPS))
    y = g.op("Mul", g.op("Mul", total, inverse_root(g, guarded, "reciprocal")), g.const(GAMMA))
    return g.model(y, total)


def simplified(skipped: bool) -> onnx.ModelProto:
    """ONNX Runtime's own operators: SimplifiedLayerNormalization and its com.microsoft form with a skip operand."""
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    if not skipped:
        return g.model(g.op("SimplifiedLayerNormalization", x, g.const(GAMMA), axis=-1, epsilon=EPS))
    operands = [x, g.input("skip", SHAPE), g.const(GAMMA)]
    domain = "com.microsoft"
    g.nodes.append(helper.make_node("SkipSimplifiedLayerNormalization", operands, ["y"], domain=domain, epsilon=EPS))
    return g.model("y")


def look_alike(fault: str) -> onnx.ModelProto:
    """A division of x that is not by its root mean square.

    variance (centred variance, Keras ``rms_scaling``), clamped_norm (max(L2, eps) / sqrt(D)), eps_outside
    (L2 / sqrt(D) + eps), tokens (mean over tokens), other_numerator (another tensor is divided).
    """
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    if fault in ("clamped_norm", "eps_outside"):
        norm = g.op("ReduceL2", x, axes=[-1], keepdims=1)
        if fault == "clamped_norm":
            root = g.op("Div", g.op("Max", norm, g.const(EPS)), g.const(SHAPE[-1] ** 0.5))
        else:
            root = g.op("Add", g.op("Div", norm, g.const(SHAPE[-1] ** 0.5)), g.const(EPS))
    else:
        operand = g.op("Sub", x, g.reduce_mean(x)) if fault == "variance" else x
        mean_square = g.reduce_mean(g.op("Mul", operand, operand), [1] if fault == "tokens" else [-1])
        root = g.op("Sqrt", g.op("Add", mean_square, g.const(EPS)))
    numerator = g.input("other", SHAPE) if fault == "other_numerator" else x
    return g.model(g.op("Mul", g.op("Div", numerator, root), g.const(GAMMA)))


ONE: Counts = {"RMSNorm": 1, "LayerNorm": 0}
NONE: Counts = {"RMSNorm": 0, "LayerNorm": 0}

RMS_NORM_SPELLINGS: dict[str, tuple[Build, Counts]] = {
    "R1_div_square_as_mul": (written_out, ONE),
    "R1_div_square_as_pow": (partial(written_out, square="pow"), ONE),
    "R2_one_over": (partial(written_out, square="pow", normalize="one_over"), ONE),
    "R3_reciprocal": (partial(written_out, square="pow", normalize="reciprocal"), ONE),
    "R3_power_minus_half": (partial(written_out, normalize="power"), ONE),
    "R3_axes_operand": (partial(written_out, normalize="reciprocal", opset=18), ONE),
    "R4_gamma_first": (partial(written_out, gamma="first"), ONE),
    "R4_gamma_offset": (partial(written_out, gamma="offset"), ONE),
    "R4_no_gamma": (partial(written_out, gamma="none"), ONE),
    "R5_cast_head": (partial(written_out, casts="head"), ONE),
    "R5_cast_back_before_gamma": (partial(written_out, casts="before_gamma"), ONE),
    "R5_cast_back_after_gamma": (partial(written_out, casts="after_gamma"), ONE),
    "R6_reduce_sum": (partial(written_out, square="sum"), ONE),
    "R6_reduce_sum_square": (partial(written_out, square="sum_square"), ONE),
    "R7_skip_bias_before": (partial(skip, "before"), ONE),
    "R7_skip_bias_after": (partial(skip, "after"), ONE),
    "R7_simplified": (partial(simplified, False), ONE),
    "R7_skip_simplified": (partial(simplified, True), ONE),
    "R6_clamped_norm_is_not_rms": (partial(look_alike, "clamped_norm"), NONE),
    "R6_eps_outside_is_not_rms": (partial(look_alike, "eps_outside"), NONE),
    "R8_variance_is_not_rms": (partial(look_alike, "variance"), NONE),
    "RX_mean_over_tokens": (partial(look_alike, "tokens"), NONE),
    "RX_other_numerator": (partial(look_alike, "other_numerator"), NONE),
}
"""Name to builder and the operator counts after raising."""
