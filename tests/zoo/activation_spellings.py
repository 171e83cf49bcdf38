"""GELU, Swish and HardSwish as exporters spell them, with look-alikes. x is [2, 5, 8]."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import onnx

from .layer_norm_spellings import Build, Counts
from .spelling_graph import SHAPE, SpellingGraph

TANH_OUTER = math.sqrt(2 / math.pi)
TANH_CUBIC = 0.044715


def erf_gelu(
    half: str = "last", divisor: str = "div", root: float = math.sqrt(2), swapped: bool = False, one: float = 1.0
) -> onnx.ModelProto:
    """0.5 x (1 + erf(x / sqrt 2)).

    ``half``: last, inner (0.5 (1 + erf) before x), other (0.5 x on the other branch). ``divisor``: div, mul, sqrt_node.
    ``swapped`` exchanges operands; ``root`` and ``one`` replace the constants.
    """
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    return g.model(_erf_gelu(g, x, half, divisor, root, swapped, one))


def _erf_gelu(
    g: SpellingGraph, x: str, half: str, divisor: str, root: float, swapped: bool = False, one: float = 1.0
) -> str:
    if divisor == "mul":
        scaled = g.op("Mul", x, g.const(1 / root))
    elif divisor == "sqrt_node":
        scaled = g.op("Div", x, g.op("Sqrt", g.const(root**2)))
    else:
        scaled = g.op("Div", x, g.const(root))
    erf = g.op("Erf", scaled)
    gate = g.op("Add", g.const(one), erf) if swapped else g.op("Add", erf, g.const(one))
    if half == "inner":
        gate = g.op("Mul", g.const(0.5), gate) if swapped else g.op("Mul", gate, g.const(0.5))
        return g.op("Mul", gate, x) if swapped else g.op("Mul", x, gate)
    if half == "other":
        halved = g.op("Mul", g.const(0.5), x) if swapped else g.op("Mul", x, g.const(0.5))
        return g.op("Mul", gate, halved) if swapped else g.op("Mul", halved, gate)
    product = g.op("Mul", gate, x) if swapped else g.op("Mul", x, gate)
    return g.op("Mul", g.const(0.5), product) if swapped else g.op("Mul", product, g.const(0.5))


def half_precision_gelu() -> onnx.ModelProto:
    """float16 model with the GELU computed in float32 between casts (Paddle)."""
    g = SpellingGraph()
    x = g.op("Cast", g.input("x", SHAPE, np.float16), to=onnx.TensorProto.FLOAT)
    y = _erf_gelu(g, x, "last", "div", math.sqrt(2))
    return g.model(g.op("Cast", y, to=onnx.TensorProto.FLOAT16), dtype=np.float16)


def biased_gelu() -> onnx.ModelProto:
    """GELU of a linear layer, whose bias Add feeds both branches."""
    g = SpellingGraph()
    weight = np.linspace(-1, 1, 64).reshape(8, 8)
    linear = g.op("Add", g.const(np.linspace(-0.5, 0.5, 8)), g.op("MatMul", g.input("x", SHAPE), g.const(weight)))
    return g.model(_erf_gelu(g, linear, "last", "div", math.sqrt(2)))


def tanh_gelu(cube: str = "pow", half: str = "first", cubic: float = TANH_CUBIC) -> onnx.ModelProto:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    ``cube``: pow, chain (x * x * x), factored (x (1 + 0.044715 x x) 0.79788456). ``half``: first (0.5 x on the other
    branch), last (0.5 outermost), inner (0.5 (1 + tanh) before x).
    """
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    if cube == "factored":
        inner = g.op("Add", g.const(1.0), g.op("Mul", g.op("Mul", g.const(cubic), x), x))
        argument = g.op("Mul", g.op("Mul", x, g.const(TANH_OUTER)), inner)
    else:
        third = g.op("Pow", x, g.const(3.0)) if cube == "pow" else g.op("Mul", g.op("Mul", x, x), x)
        argument = g.op("Mul", g.op("Add", x, g.op("Mul", third, g.const(cubic))), g.const(TANH_OUTER))
    gate = g.op("Add", g.op("Tanh", argument), g.const(1.0))
    if half == "last":
        return g.model(g.op("Mul", g.op("Mul", x, gate), g.const(0.5)))
    if half == "inner":
        return g.model(g.op("Mul", x, g.op("Mul", gate, g.const(0.5))))
    return g.model(g.op("Mul", g.op("Mul", x, g.const(0.5)), gate))


def swish(alpha: float | None = None, swapped: bool = False, gate_input: bool = False) -> onnx.ModelProto:
    """x sigmoid(alpha x); without ``alpha`` SiLU. ``gate_input`` takes the sigmoid of another tensor: a gate."""
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    argument = g.input("gate", SHAPE) if gate_input else x
    argument = argument if alpha is None else g.op("Mul", argument, g.const(alpha))
    sigmoid = g.op("Sigmoid", argument)
    return g.model(g.op("Mul", sigmoid, x) if swapped else g.op("Mul", x, sigmoid))


def hard_swish(spelling: str) -> onnx.ModelProto:
    """x clip(x + 3, 0, 6) / 6 as hard_sigmoid, clip_div, clip_mul or min_max; or with the wrong slope or bound.

    slope: HardSigmoid with its default alpha 0.2. bound: clipped at 5. gate: HardSigmoid of another tensor.
    """
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    if spelling in ("hard_sigmoid", "slope", "gate"):
        operand = g.input("other", SHAPE) if spelling == "gate" else x
        alpha = 0.2 if spelling == "slope" else 1 / 6
        return g.model(g.op("Mul", x, g.op("HardSigmoid", operand, alpha=alpha, beta=0.5)))
    shifted = g.op("Add", x, g.const(3.0))
    if spelling == "min_max":
        clipped = g.op("Min", g.op("Max", shifted, g.const(0.0)), g.const(6.0))
    else:
        clipped = g.op("Clip", shifted, g.const(0.0), g.const(5.0 if spelling == "bound" else 6.0))
    if spelling == "clip_mul":
        return g.model(g.op("Mul", x, g.op("Mul", clipped, g.const(1 / 6))))
    return g.model(g.op("Div", g.op("Mul", x, clipped), g.const(6.0)))


def mish() -> onnx.ModelProto:
    """x tanh(softplus(x)), which is neither GELU nor Swish."""
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    return g.model(g.op("Mul", x, g.op("Tanh", g.op("Softplus", x))))


GELU: Counts = {"Gelu": 1}
SWISH: Counts = {"Swish": 1}
HARD: Counts = {"HardSwish": 1}
NO_GELU: Counts = {"Gelu": 0}
NO_SWISH: Counts = {"Swish": 0, "HardSwish": 0}

ACTIVATION_SPELLINGS: dict[str, tuple[Build, Counts]] = {
    "G1_canonical": (erf_gelu, GELU),
    "G1_swapped_operands": (partial(erf_gelu, swapped=True), GELU),
    "G2_half_on_other_branch": (partial(erf_gelu, half="other"), GELU),
    "G2_half_on_other_branch_swapped": (partial(erf_gelu, half="other", swapped=True), GELU),
    "G3_mul_by_inverse_root": (partial(erf_gelu, divisor="mul"), GELU),
    "G3_rounded_constant": (partial(erf_gelu, root=1.4142), GELU),
    "G4_half_before_x": (partial(erf_gelu, half="inner"), GELU),
    "G5_root_as_node": (partial(erf_gelu, divisor="sqrt_node", half="other"), GELU),
    "G6_half_precision_casts": (half_precision_gelu, GELU),
    "G7_after_biased_linear": (biased_gelu, GELU),
    "T1_cube_as_pow": (tanh_gelu, GELU),
    "T2_half_last": (partial(tanh_gelu, half="last"), GELU),
    "T2_half_before_x": (partial(tanh_gelu, half="inner"), GELU),
    "T3_factored_cubic": (partial(tanh_gelu, cube="factored"), GELU),
    "T4_cube_as_products": (partial(tanh_gelu, cube="chain"), GELU),
    "Q_quick_gelu": (partial(swish, 1.702), SWISH),
    "Q_quick_gelu_swapped": (partial(swish, 1.702, swapped=True), SWISH),
    "S_silu": (swish, SWISH),
    "S_silu_swapped": (partial(swish, swapped=True), SWISH),
    "S_swish_beta": (partial(swish, 0.75), SWISH),
    "S_hard_swish_hard_sigmoid": (partial(hard_swish, "hard_sigmoid"), HARD),
    "S_hard_swish_clip_div": (partial(hard_swish, "clip_div"), HARD),
    "S_hard_swish_clip_mul": (partial(hard_swish, "clip_mul"), HARD),
    "S_hard_swish_min_max": (partial(hard_swish, "min_max"), HARD),
    "GX_wrong_root": (partial(erf_gelu, root=1.5), NO_GELU),
    "GX_wrong_offset": (partial(erf_gelu, one=2.0), NO_GELU),
    "GX_mish": (mish, {**NO_GELU, **NO_SWISH}),
    "TX_wrong_cubic": (partial(tanh_gelu, cubic=0.05), NO_GELU),
    "SX_sigmoid_gate": (partial(swish, gate_input=True), NO_SWISH),
    "SX_wrong_slope": (partial(hard_swish, "slope"), NO_SWISH),
    "SX_wrong_bound": (partial(hard_swish, "bound"), NO_SWISH),
    "SX_hard_sigmoid_gate": (partial(hard_swish, "gate"), NO_SWISH),
}
"""Name to builder and the operator counts after raising; QuickGELU and beta-Swish are Swish with an alpha."""
