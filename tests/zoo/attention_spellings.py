"""Self-attention as exporters and converters spell it, with look-alikes.

x is [2, 5, 8], two heads of width 4; weights come from the fixed ``WEIGHTS``. Unless an option says otherwise each
spelling computes softmax(q k^T / 2) v per head, without an output projection.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx

from .layer_norm_spellings import Build, Counts
from .spelling_graph import SHAPE, SpellingGraph

BATCH, TOKENS, WIDTH = SHAPE
HEADS, DEPTH = 2, 4
SCALE = DEPTH**-0.5
WEIGHTS = np.random.default_rng(5).standard_normal((3, WIDTH, WIDTH)).astype(np.float32) * np.float32(0.4)
"""Query, key and value weights, each [in, out]."""
LARGE = 1e4


def attention(
    projection: str = "separate",
    key: str = "two_transposes",
    scale: str = "after",
    mask: str = "none",
    softmax: str = "last",
) -> onnx.ModelProto:
    """Projections, head split, logits, mask, softmax, mix, head merge; the options vary one step each.

    ``projection``: separate, flat (rows [B * N, C] around each MatMul), packed_gather, packed_split, packed_slice,
    einsum. ``key``: two_transposes, one_transpose, einsum. ``scale``: after, div, query, both (square root on each),
    none. ``mask`` (input [B, N], one keeps): none, additive, where. ``softmax``: last, positive_axis, cast, guarded
    (NaN to zero), wrong_axis, sigmoid.
    """
    g = SpellingGraph()
    query, keys, value = _heads(g, g.input("x", SHAPE), projection, key)
    if scale in ("query", "both"):
        query = g.op("Mul", query, g.const(SCALE if scale == "query" else SCALE**0.5))
    logits = _logits(g, query, keys, key, scale)
    if mask != "none":
        logits = _masked(g, logits, mask)
    mixed = g.op("MatMul", _probabilities(g, logits, softmax), value)
    y = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.const([0, 0, WIDTH], np.int64))
    return g.model(y)


def _heads(g: SpellingGraph, x: str, projection: str, key: str = "two_transposes") -> tuple[str, ...]:
    """Query, key and value, each [B, H, N, d]; ``key`` one_transpose gives the key as [B, H, d, N]."""
    if projection.startswith("packed"):
        return _packed_heads(g, x, projection)
    if projection == "flat":
        x = g.op("Reshape", x, g.const([-1, WIDTH], np.int64))
    split = g.const([BATCH, TOKENS, HEADS, DEPTH], np.int64)
    heads = []
    for index, weight in enumerate(WEIGHTS):
        if projection == "einsum":
            tensor = g.op("Einsum", x, g.const(weight.reshape(WIDTH, HEADS, DEPTH)), equation="bsd,dnh->bsnh")
        else:
            tensor = g.op("MatMul", x, g.const(weight))
            if projection == "flat":
                tensor = g.op("Reshape", tensor, g.const(SHAPE, np.int64))
            tensor = g.op("Reshape", tensor, split)
        transposed = index == 1 and key == "one_transpose"
        heads.append(g.op("Transpose", tensor, perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3]))
    return tuple(heads)


def _packed_heads(g: SpellingGraph, x: str, projection: str) -> tuple[str, ...]:
    packed = g.op("MatMul", x, g.const(np.concatenate(list(WEIGHTS), axis=1)))
    if projection == "packed_gather":
        split = g.op("Reshape", packed, g.const([0, 0, 3, HEADS, DEPTH], np.int64))
        stacked = g.op("Transpose", split, perm=[2, 0, 3, 1, 4])
        return tuple(g.op("Gather", stacked, g.const(index, np.int64), axis=0) for index in range(3))
    if projection == "packed_split":
        first = g.op("Split", packed, g.const([WIDTH] * 3, np.int64), axis=-1, results=3)
        parts = [first, f"{first}_1", f"{first}_2"]
    else:
        axis = g.const([2], np.int64)
        bounds = [g.const([WIDTH * index], np.int64) for index in range(4)]
        parts = [g.op("Slice", packed, bounds[index], bounds[index + 1], axis) for index in range(3)]
    shape = g.const([0, 0, HEADS, DEPTH], np.int64)
    return tuple(g.op("Transpose", g.op("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts)


def _logits(g: SpellingGraph, query: str, keys: str, key: str, scale: str) -> str:
    """[B, H, N, N]; the key arrives as [B, H, N, d], with ``one_transpose`` as [B, H, d, N]."""
    if scale == "both":
        keys = g.op("Mul", keys, g.const(SCALE**0.5))
    if key == "einsum":
        logits = g.op("Einsum", query, keys, equation="bhid,bhjd->bhij")
    elif key == "one_transpose":
        logits = g.op("MatMul", query, keys)
    else:
        logits = g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    if scale == "after":
        return g.op("Mul", logits, g.const(SCALE))
    return g.op("Div", logits, g.const(1 / SCALE)) if scale == "div" else logits


def _masked(g: SpellingGraph, logits: str, mask: str) -> str:
    kept = g.op("Unsqueeze", g.input("attention_mask", (BATCH, TOKENS)), g.const([1, 2], np.int64))
    if mask == "additive":
        return g.op("Add", logits, g.op("Mul", g.op("Sub", g.const(1.0), kept), g.const(-LARGE)))
    dropped = g.op("Expand", g.op("Equal", kept, g.const(0.0)), g.op("Shape", logits))
    return g.op("Where", dropped, g.const(-LARGE), logits)


def _probabilities(g: SpellingGraph, logits: str, softmax: str) -> str:
    if softmax == "sigmoid":
        return g.op("Sigmoid", logits)
    if softmax == "cast":
        logits = g.op("Cast", logits, to=onnx.TensorProto.FLOAT)
    result = g.op("Softmax", logits, axis={"positive_axis": 3, "wrong_axis": 2}.get(softmax, -1))
    if softmax == "cast":
        result = g.op("Cast", result, to=onnx.TensorProto.FLOAT)
    if softmax == "guarded":
        result = g.op("Where", g.op("IsNaN", result), g.const(0.0), result)
    return result


def merged_heads() -> onnx.ModelProto:
    """Heads merged into the batch, [B * H, N, d], the query scaled, a causal mask added between reshapes (CLIP)."""
    g = SpellingGraph()
    x = g.input("x", SHAPE)
    query, keys, value = (
        g.op("Reshape", head, g.const([-1, TOKENS, DEPTH], np.int64)) for head in _heads(g, x, "separate")
    )
    query = g.op("Mul", query, g.const(SCALE))
    logits = g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 2, 1]))
    causal = np.triu(np.full((1, 1, TOKENS, TOKENS), -LARGE, np.float32), 1)
    logits = g.op("Add", g.op("Reshape", logits, g.const([BATCH, HEADS, TOKENS, TOKENS], np.int64)), g.const(causal))
    logits = g.op("Reshape", logits, g.const([BATCH * HEADS, TOKENS, TOKENS], np.int64))
    mixed = g.op("MatMul", g.op("Softmax", logits, axis=-1), value)
    mixed = g.op("Reshape", mixed, g.const([BATCH, HEADS, TOKENS, DEPTH], np.int64))
    y = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.const(SHAPE, np.int64))
    return g.model(y)


ONE: Counts = {"Attention": 1}
NONE: Counts = {"Attention": 0}

ATTENTION_SPELLINGS: dict[str, tuple[Build, Counts]] = {
    "A1_separate_projections": (attention, ONE),
    "A1_flattened_rows": (partial(attention, projection="flat"), ONE),
    "A1_einsum_projections": (partial(attention, projection="einsum", key="einsum"), ONE),
    "A2_packed_gather": (partial(attention, projection="packed_gather"), ONE),
    "A2_packed_split": (partial(attention, projection="packed_split"), ONE),
    "A2_packed_slice": (partial(attention, projection="packed_slice"), ONE),
    "A3_key_in_one_transpose": (partial(attention, key="one_transpose"), ONE),
    "A4_scale_as_division": (partial(attention, scale="div"), ONE),
    "A4_scale_on_query": (partial(attention, scale="query"), ONE),
    "A4_scale_on_query_and_key": (partial(attention, scale="both"), ONE),
    "A4_no_scale": (partial(attention, scale="none"), ONE),
    "A5_additive_mask": (partial(attention, mask="additive"), ONE),
    "A5_where_mask": (partial(attention, mask="where", scale="query"), ONE),
    "A6_softmax_positive_axis": (partial(attention, softmax="positive_axis"), ONE),
    "A6_casts_around_softmax": (partial(attention, softmax="cast"), ONE),
    "A6_nan_guard": (partial(attention, softmax="guarded", mask="additive"), ONE),
    "A7_merged_heads_causal": (merged_heads, ONE),
    "AX_softmax_over_queries": (partial(attention, softmax="wrong_axis"), NONE),
    "AX_sigmoid_for_softmax": (partial(attention, softmax="sigmoid"), NONE),
}
"""Name to builder and the operator counts after raising."""
