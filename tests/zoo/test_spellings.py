"""The hand-written spellings compute what they claim, so that a raised count of one is right."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest

from .attention_spellings import ATTENTION_SPELLINGS, DEPTH, HEADS, SCALE, TOKENS, WEIGHTS, WIDTH
from .inputs import seeded_inputs
from .layer_norm_spellings import BETA, EPS, GAMMA, LAYER_NORM_SPELLINGS
from .spellings import SPELLINGS

HALF_TOLERANCE = 4e-3
"""Four float16 steps at one: a float16 scale behind the norm rounds twice."""
TOLERANCE = 2e-5
"""Raw moments lose a few bits against the centred variance; everything else is within 1e-6."""

OTHER_AFFINE = {
    "L6_no_affine": (np.float32(1), np.float32(0)),
    "L6_scale_only": (GAMMA, np.float32(0)),
    "L6_bias_only": (np.float32(1), BETA),
    "L13_two_affine_pairs": (GAMMA * GAMMA, BETA * GAMMA + BETA),
    "L15_fused_then_constant": (GAMMA, 2 * BETA),
    "L15_fused_then_token_constant": (GAMMA, BETA + np.arange(40).reshape(5, 8) * 0.1),
}
NORM_AXES = {"L7_two_axes": (1, 2), "L7_two_negative_axes_operand": (1, 2)}
NOT_COMPARED = {"L12_channel_first", "L13_modulated", "L15_fused_then_residual", "L16_quantized_around"}
HALF = {"L5_leading_cast", "R5_cast_head", "R5_cast_back_before_gamma", "R5_cast_back_after_gamma"}


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    """First output in ONNX Runtime, without graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def layer_norm(x: np.ndarray, axes: tuple[int, ...] = (-1,)) -> np.ndarray:
    """(x - mean) / sqrt(var + eps) in float64."""
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPS)


def rms_norm(x: np.ndarray) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) in float64."""
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def activation(name: str, x: np.ndarray) -> np.ndarray:
    """The function a positive activation spelling stands for, in float64."""
    x = x.astype(np.float64)
    if name.startswith("T"):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name.startswith("G"):
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if "hard_swish" in name:
        return x * np.clip(x + 3, 0, 6) / 6
    alpha = 1.702 if name.startswith("Q") else 0.75 if name == "S_swish_beta" else 1.0
    return x / (1 + np.exp(-alpha * x))


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_is_valid_and_the_same_twice_and_runs(name: str) -> None:
    build, _ = SPELLINGS[name]
    model = build()
    assert build().SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    if "implified" not in name:  # ONNX Runtime puts its simplified norm in the default domain, where onnx lacks it
        onnx.checker.check_model(model)
    result = run(model, seeded_inputs(model))
    assert np.isfinite(result).all()


LAYER_NORMS = [n for n, (_, counts) in LAYER_NORM_SPELLINGS.items() if counts["LayerNorm"] and n not in NOT_COMPARED]


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norm_spelling_computes_layer_norm(name: str) -> None:
    model = SPELLINGS[name][0]()
    feed = seeded_inputs(model)
    gamma, beta = OTHER_AFFINE.get(name, (GAMMA, BETA))
    x = feed["x"] + feed.get("skip", 0) + (BETA if "skip" in feed else 0)
    wanted = layer_norm(x, NORM_AXES.get(name, (-1,))) * gamma + beta
    np.testing.assert_allclose(run(model, feed), wanted, atol=TOLERANCE)


def test_channel_first_spelling_computes_layer_norm_over_axis_one() -> None:
    model = SPELLINGS["L12_channel_first"][0]()
    feed = seeded_inputs(model)
    wanted = layer_norm(feed["x"], (1,)) * GAMMA.reshape(8, 1, 1) + BETA.reshape(8, 1, 1)
    np.testing.assert_allclose(run(model, feed), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("name", [n for n, (_, counts) in SPELLINGS.items() if counts.get("RMSNorm")])
def test_rms_norm_spelling_computes_rms_norm(name: str) -> None:
    model = SPELLINGS[name][0]()
    feed = seeded_inputs(model)
    x = feed["x"] + feed.get("skip", 0) + (GAMMA if "bias" in name else 0)
    wanted = rms_norm(x) * (1 if name == "R4_no_gamma" else GAMMA)
    np.testing.assert_allclose(run(model, feed), wanted, atol=HALF_TOLERANCE if name in HALF else TOLERANCE)


ACTIVATIONS = [n for n in SPELLINGS if n[0] in "GTQS" and n[1] != "X" and n not in ("G6_half_precision_casts",)]


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n != "G7_after_biased_linear"])
def test_activation_spelling_computes_its_function(name: str) -> None:
    model = SPELLINGS[name][0]()
    feed = seeded_inputs(model)
    np.testing.assert_allclose(run(model, feed), activation(name, feed["x"]), atol=1e-4)


def attention(x: np.ndarray, scale: float, bias: np.ndarray) -> np.ndarray:
    """softmax(scale q k^T + bias) v per head in float64; bias broadcasts to [B, H, N, N]."""
    projected = [x.astype(np.float64) @ weight for weight in WEIGHTS]
    query, key, value = (part.reshape(-1, TOKENS, HEADS, DEPTH).swapaxes(1, 2) for part in projected)
    logits = scale * query @ key.swapaxes(2, 3) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ value
    return mixed.swapaxes(1, 2).reshape(-1, TOKENS, WIDTH)


@pytest.mark.parametrize("name", ATTENTION_SPELLINGS)
def test_attention_spelling_computes_attention_and_its_look_alikes_do_not(name: str) -> None:
    build, counts = ATTENTION_SPELLINGS[name]
    model = build()
    feed = seeded_inputs(model)
    bias = np.zeros((1, 1, 1, TOKENS))
    if "attention_mask" in feed:
        feed["attention_mask"] = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.float32)
        bias = -1e4 * (1 - feed["attention_mask"])[:, None, None, :]
    elif "causal" in name:
        bias = np.triu(np.full((1, 1, TOKENS, TOKENS), -1e4), 1)
    wanted = attention(feed["x"], 1.0 if name == "A4_no_scale" else SCALE, bias)
    assert (np.abs(run(model, feed) - wanted).max() < TOLERANCE) == (counts["Attention"] == 1)


LOOK_ALIKES = [n for n in SPELLINGS if n.startswith(("LX", "RX", "GX", "TX", "SX", "R8")) or n.endswith("_not_rms")]
EQUAL_BUT_UNSAFE = {"LX_centred_output", "R6_clamped_norm_is_not_rms", "R6_eps_outside_is_not_rms", "LX_eps_max"}


@pytest.mark.parametrize("name", [n for n in LOOK_ALIKES if n not in EQUAL_BUT_UNSAFE])
def test_look_alike_computes_something_else(name: str) -> None:
    model = SPELLINGS[name][0]()
    feed = seeded_inputs(model)
    result, x = run(model, feed), feed["x"]
    if name.startswith("L"):
        others = [layer_norm(x) * GAMMA + BETA]
    elif name.startswith("R"):
        others = [rms_norm(x) * GAMMA]
    else:
        others = [activation(kind, x) for kind in ("G", "T", "S", "Q", "S_hard_swish")]
    assert all(np.abs(result - other).max() > 1e-4 for other in others)


@pytest.mark.parametrize("name", ["R6_clamped_norm_is_not_rms", "R6_eps_outside_is_not_rms", "LX_eps_max"])
def test_look_alike_differs_where_the_input_is_small(name: str) -> None:
    model = SPELLINGS[name][0]()
    x = seeded_inputs(model)["x"] * np.float32(1e-3)
    other = rms_norm(x) * GAMMA if name.startswith("R") else layer_norm(x) * GAMMA + BETA
    assert np.abs(run(model, {"x": x}) - other).max() > 1e-2
