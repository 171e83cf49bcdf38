"""LayerNorm as exporters and converters spell it, with look-alikes that are not LayerNorm.

All act on x of shape [2, 5, 8] over its last axis unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from onnx import helper

from .spelling_graph import SHAPE, SpellingGraph

EPS = 1e-5
GAMMA = np.linspace(0.5, 1.5, 8, dtype=np.float32)
BETA = np.linspace(-1.0, 1.0, 8, dtype=np.float32)

Build = Callable[[], onnx.ModelProto]
Counts = dict[str, int]


def written_out(
    opset: int = 17,
    axes: tuple[int, ...] = (-1,),
    square: str = "pow",
    normalize: str = "div",
    casts: str = "none",
    affine: str = "both",
    twice_centred: bool = False,
    swapped: bool = False,
) -> onnx.ModelProto:
    """Mean, centred square, mean, epsilon, root, quotient, scale, bias; the options vary one step each.

    ``square``: pow, pow_int, pow_cast, mul. ``normalize``: div, reciprocal, one_over, power. ``casts``: none, leading
    (from float16), square, centred, scale (to float16 and back). ``affine``: both, scale, bias, none, reshaped.
    ``swapped`` exchanges the operands of every Add and Mul.
    """
    g = SpellingGraph(opset)
    x = g.input("x", SHAPE, np.float16 if casts == "leading" else np.float32)
    if casts == "leading":
        x = g.op("Cast", x, to=onnx.TensorProto.FLOAT)
    mean = g.reduce_mean(x, axes)
    centred = g.op("Sub", x, mean)
    if casts == "centred":
        centred = g.op("Cast", centred, to=onnx.TensorProto.FLOAT)
    squared = g.op("Sub", x, mean) if twice_centred else centred
    if casts == "square":
        squared = g.op("Cast", squared, to=onnx.TensorProto.FLOAT)
    variance = g.reduce_mean(_squared(g, squared, square), axes)
    guarded = _commutative(g, "Add", variance, g.const(EPS), swapped)
    normal = _normalized(g, centred, guarded, normalize, swapped)
    if casts == "scale":
        normal = g.op("Cast", normal, to=onnx.TensorProto.FLOAT)
    shape = tuple(SHAPE[axis] for axis in axes)
    gamma, beta = np.broadcast_to(GAMMA, shape), np.broadcast_to(BETA, shape)
    return g.model(_affine(g, normal, gamma, beta, affine, swapped))


def _commutative(g: SpellingGraph, op_type: str, left: str, right: str, swapped: bool) -> str:
    return g.op(op_type, right, left) if swapped else g.op(op_type, left, right)


def _squared(g: SpellingGraph, x: str, square: str) -> str:
    if square == "mul":
        return g.op("Mul", x, x)
    exponent = g.const(2, np.float32 if square == "pow" else np.int64)
    if square == "pow_cast":
        exponent = g.op("Cast", exponent, to=onnx.TensorProto.FLOAT)
    return g.op("Pow", x, exponent)


def _normalized(g: SpellingGraph, centred: str, guarded: str, normalize: str, swapped: bool = False) -> str:
    if normalize == "div":
        return g.op("Div", centred, g.op("Sqrt", guarded))
    return _commutative(g, "Mul", centred, inverse_root(g, guarded, normalize), swapped)


def inverse_root(g: SpellingGraph, x: str, spelling: str) -> str:
    """1 / sqrt(x) as ``reciprocal`` (of Sqrt), ``one_over`` (Sqrt) or ``power`` (Pow -0.5)."""
    if spelling == "power":
        return g.op("Pow", x, g.const(-0.5))
    root = g.op("Sqrt", x)
    return g.op("Reciprocal", root) if spelling == "reciprocal" else g.op("Div", g.const(1.0), root)


def _affine(g: SpellingGraph, x: str, gamma: np.ndarray, beta: np.ndarray, affine: str, swapped: bool = False) -> str:
    scale, bias = g.const(gamma), g.const(beta)
    if affine == "reshaped":
        scale = g.op("Reshape", scale, g.const([-1], np.int64))
        bias = g.op("Reshape", bias, g.const([-1], np.int64))
    if affine in ("both", "scale", "reshaped"):
        x = _commutative(g, "Mul", x, scale, swapped)
    if affine in ("both", "bias", "reshaped"):
        x = _commutative(g, "Add", x, bias, swapped)
    return x


def folded_affine(moments: str, shift: str, clamp: bool = False) -> onnx.ModelProto:
    """x * s + (beta - mean * s) with s = gamma / sqrt(var + eps), as TensorFlow and Keras compile it.

    ``moments``: centred, or raw for var = E[x^2] - mean^2 (``clamp`` bounds it by zero). ``shift``: sub, or neg for
    beta + (-mean) * s.
    """
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    mean = g.reduce_mean(x)
    if moments == "raw":
        variance = g.op("Sub", g.reduce_mean(g.op("Mul", x, x)), g.op("Mul", mean, mean))
        variance = g.op("Max", variance, g.const(0.0)) if clamp else variance
    else:
        variance = g.reduce_mean(_squared(g, g.op("Sub", x, mean), "mul"))
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, g.const(EPS))))
    scale = g.op("Mul", inverse, g.const(GAMMA))
    if shift == "neg":
        moved = g.op("Add", g.const(BETA), g.op("Mul", g.op("Neg", mean), scale))
    else:
        moved = g.op("Sub", g.const(BETA), g.op("Mul", mean, scale))
    return g.model(g.op("Add", g.op("Mul", x, scale), moved))


def raw_moments(square: str) -> onnx.ModelProto:
    """(x - mean) / sqrt(E[x^2] - mean^2 + eps) with the affine part behind."""
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    mean = g.reduce_mean(x)
    variance = g.op("Sub", g.reduce_mean(_squared(g, x, square)), _squared(g, mean, square))
    normal = g.op("Div", g.op("Sub", x, mean), g.op("Sqrt", g.op("Add", variance, g.const(EPS))))
    return g.model(_affine(g, normal, GAMMA, BETA, "both"))


def instance_norm() -> onnx.ModelProto:
    """Tokens as channels of InstanceNormalization, ones and zeros made from the shape (tf2onnx)."""
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    bounds = (g.const([1], np.int64), g.const([2], np.int64), g.const([0], np.int64))
    tokens = g.op("Slice", g.op("Shape", x), *bounds)
    ones = g.op("ConstantOfShape", tokens, value=helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0]))
    zeros = g.op("ConstantOfShape", tokens, value=helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0]))
    normal = g.op("InstanceNormalization", x, ones, zeros, epsilon=EPS)
    return g.model(_affine(g, normal, GAMMA, BETA, "both"))


def training_batch_norm() -> onnx.ModelProto:
    """Batch norm with computed statistics on (1, tokens, C, 1), as Keras 2 layer norm converts (tf2onnx)."""
    g = SpellingGraph()
    x = g.op("Reshape", g.input("x", SHAPE), g.const([1, 10, 8, 1], np.int64))
    axes = [0, 2, 3]
    mean = g.op("ReduceMean", x, axes=axes, keepdims=1)
    total = g.op("ReduceSumSquare", g.op("Sub", x, mean), axes=axes, keepdims=1)
    sizes = g.op("Gather", g.op("Shape", x), g.const(axes, np.int64))
    count = g.op("Cast", g.op("ReduceProd", sizes, axes=[0], keepdims=0), to=onnx.TensorProto.FLOAT)
    squeezed = g.const(axes, np.int64)
    mean, variance = g.op("Squeeze", mean, squeezed), g.op("Squeeze", g.op("Div", total, count), squeezed)
    ones, zeros = g.const(np.ones(10)), g.const(np.zeros(10))
    normal = g.op("BatchNormalization", x, ones, zeros, mean, variance, epsilon=EPS)
    normal = g.op("Reshape", normal, g.const(SHAPE, np.int64))
    return g.model(_affine(g, normal, GAMMA, BETA, "both"))


def channel_first() -> onnx.ModelProto:
    """Over axis 1 of [2, 8, 3, 3] with gamma and beta of shape [8, 1, 1]."""
    g = SpellingGraph()
    x = g.input("x", (2, 8, 3, 3))
    centred = g.op("Sub", x, g.reduce_mean(x, [1]))
    variance = g.reduce_mean(_squared(g, centred, "pow"), [1])
    normal = _normalized(g, centred, g.op("Add", variance, g.const(EPS)), "div")
    return g.model(_affine(g, normal, GAMMA.reshape(8, 1, 1), BETA.reshape(8, 1, 1), "both"), shapes=((2, 8, 3, 3),))


def modulated(constant: bool) -> onnx.ModelProto:
    """A plain norm under a second scale and shift: constants, or computed tensors (adaptive norm)."""
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    centred = g.op("Sub", x, g.reduce_mean(x))
    variance = g.reduce_mean(_squared(g, centred, "pow"))
    normal = _normalized(g, centred, g.op("Add", variance, g.const(EPS)), "div")
    if constant:
        normal = _affine(g, normal, GAMMA, BETA, "both")
        return g.model(_affine(g, normal, GAMMA, BETA, "both"))
    scale = g.op("Add", g.input("scale", (2, 1, 8)), g.const(1.0))
    return g.model(g.op("Add", g.op("Mul", normal, scale), g.input("shift", (2, 1, 8))))


def fused(axis: int = -1, statistics: bool = False, addend: str = "none", quantized: bool = False) -> onnx.ModelProto:
    """LayerNormalization itself: odd axis, mean as a second output, an Add behind it, or QDQ around it.

    ``addend``: none, constant (of the normalized shape), token_constant ([5, 8]), residual (the norm's own input).
    """
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    operand = x
    scale, zero = g.const(0.05), g.const(0, np.int8)
    if quantized:
        operand = g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero)
    scales = (g.const(GAMMA), g.const(BETA))
    y = g.op("LayerNormalization", operand, *scales, axis=axis, epsilon=EPS, results=2 if statistics else 1)
    if quantized:
        y = g.op("DequantizeLinear", g.op("QuantizeLinear", y, scale, zero), scale, zero)
    if addend == "constant":
        y = g.op("Add", y, g.const(BETA))
    elif addend == "token_constant":
        y = g.op("Add", y, g.const(np.arange(40).reshape(5, 8) * 0.1))
    elif addend == "residual":
        y = g.op("Add", y, x)
    return g.model(y, f"{y}_1", shapes=(SHAPE, (2, 5, 1))) if statistics else g.model(y)


def skip_contrib() -> onnx.ModelProto:
    """com.microsoft SkipLayerNormalization with a bias and its sum as the fourth output."""
    g = SpellingGraph()
    operands = (g.input("x", SHAPE), g.input("skip", SHAPE), g.const(GAMMA), g.const(BETA), g.const(BETA))
    g.nodes.append(
        helper.make_node("SkipLayerNormalization", operands, ["y", "", "", "sum"], domain="com.microsoft", epsilon=EPS)
    )
    return g.model("y", "sum")


def in_function() -> onnx.ModelProto:
    """The canonical spelling inside a model-local function."""
    body = written_out(affine="none")
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in body.graph.initializer]
    nodes = [*constants, *body.graph.node]
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("zoo", "Norm", ["x"], [body.graph.output[0].name], nodes, imports)
    g = SpellingGraph()
    normal = g.op("Norm", g.input("x", SHAPE), domain="zoo")
    return g.model(_affine(g, normal, GAMMA, BETA, "both"), functions=[function])


def look_alike(fault: str) -> onnx.ModelProto:
    """The canonical spelling with one ``fault`` that makes it something else, or unsafe to raise.

    variance_axis (variance over tokens), foreign_square (d times another tensor), cube (exponent 3),
    eps_input (epsilon is an input), eps_max (max(var, eps)), uncentred (numerator x), centred_output (x - mean is
    a model output), sum (ReduceSum).
    """
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    centred = g.op("Sub", x, g.reduce_mean(x))
    if fault == "foreign_square":
        square = g.op("Mul", centred, g.input("other", SHAPE))  # times x would be the variance again
    else:
        square = g.op("Pow", centred, g.const(3.0 if fault == "cube" else 2.0))
    if fault == "sum":
        variance = g.op("ReduceSum", square, g.const([-1], np.int64), keepdims=1)
    else:
        variance = g.reduce_mean(square, [1] if fault == "variance_axis" else [-1])
    if fault in ("foreign_square", "cube"):
        variance = g.op("Abs", variance)
    eps = g.input("eps", (1,)) if fault == "eps_input" else g.const(EPS)
    guarded = g.op("Max", variance, eps) if fault == "eps_max" else g.op("Add", variance, eps)
    if fault == "eps_input":
        guarded = g.op("Abs", guarded)
    normal = g.op("Div", x if fault == "uncentred" else centred, g.op("Sqrt", guarded))
    y = _affine(g, normal, GAMMA, BETA, "both")
    return g.model(y, centred) if fault == "centred_output" else g.model(y)


ONE: Counts = {"LayerNorm": 1}
NONE: Counts = {"LayerNorm": 0}
FAULTS = ("variance_axis", "foreign_square", "cube", "eps_input", "eps_max", "uncentred", "centred_output", "sum")

LAYER_NORM_SPELLINGS: dict[str, tuple[Build, Counts]] = {
    "L1_canonical": (written_out, ONE),
    "L1_integer_exponent": (partial(written_out, square="pow_int"), ONE),
    "L1_cast_exponent": (partial(written_out, square="pow_cast"), ONE),
    "L1_swapped_operands": (partial(written_out, swapped=True, normalize="reciprocal"), ONE),
    "L2_duplicated_sub": (partial(written_out, twice_centred=True), ONE),
    "L3_square_as_mul": (partial(written_out, square="mul"), ONE),
    "L3_duplicated_sub_square_as_mul": (partial(written_out, square="mul", twice_centred=True), ONE),
    "L4_mul_reciprocal": (partial(written_out, normalize="reciprocal"), ONE),
    "L4_mul_one_over": (partial(written_out, normalize="one_over"), ONE),
    "L4_power_minus_half": (partial(written_out, normalize="power"), ONE),
    "L5_leading_cast": (partial(written_out, casts="leading"), ONE),
    "L5_cast_before_pow": (partial(written_out, casts="square"), ONE),
    "L5_cast_after_sub": (partial(written_out, casts="centred"), ONE),
    "L5_cast_before_scale": (partial(written_out, casts="scale"), ONE),
    "L6_no_affine": (partial(written_out, affine="none"), ONE),
    "L6_scale_only": (partial(written_out, affine="scale"), ONE),
    "L6_bias_only": (partial(written_out, affine="bias"), ONE),
    "L6_reshaped_parameters": (partial(written_out, affine="reshaped"), ONE),
    "L6_fused_positive_axis": (partial(fused, axis=2), ONE),
    "L7_axes_operand": (partial(written_out, opset=18), ONE),
    "L7_positive_axis": (partial(written_out, axes=(2,)), ONE),
    "L7_two_axes": (partial(written_out, axes=(1, 2)), ONE),
    "L7_two_negative_axes_operand": (partial(written_out, opset=18, axes=(-2, -1)), ONE),
    "L8_folded_affine_sub": (partial(folded_affine, "centred", "sub"), ONE),
    "L8_folded_affine_neg": (partial(folded_affine, "centred", "neg"), ONE),
    "L9_raw_moments_pow": (partial(raw_moments, "pow"), ONE),
    "L9_raw_moments_mul": (partial(raw_moments, "mul"), ONE),
    "L9_raw_moments_folded_affine": (partial(folded_affine, "raw", "neg"), ONE),
    "L9_raw_moments_clamped": (partial(folded_affine, "raw", "sub", True), ONE),
    "L10_instance_norm": (instance_norm, ONE),
    "L11_training_batch_norm": (training_batch_norm, {"LayerNorm": 1, "BatchNorm": 0}),
    "L12_channel_first": (channel_first, ONE),
    "L13_two_affine_pairs": (partial(modulated, True), ONE),
    "L13_modulated": (partial(modulated, False), ONE),
    "L14_statistics_used": (partial(fused, statistics=True), NONE),
    "L15_fused_then_constant": (partial(fused, addend="constant"), {"LayerNorm": 1, "Add": 0}),
    "L15_fused_then_token_constant": (partial(fused, addend="token_constant"), {"LayerNorm": 1, "Add": 1}),
    "L15_fused_then_residual": (partial(fused, addend="residual"), {"LayerNorm": 1, "Add": 1}),
    "L16_skip_layer_norm": (skip_contrib, ONE),
    "L16_quantized_around": (partial(fused, quantized=True), ONE),
    "L17_function_body": (in_function, ONE),
    **{f"LX_{fault}": (partial(look_alike, fault), NONE) for fault in FAULTS},
}
"""Name to builder and the operator counts after raising; ``LX_`` names must not be raised."""
