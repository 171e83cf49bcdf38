"""Norms that ONNX Runtime's optimizer writes: simplified layer norm, and norms that add a skip connection first."""

from __future__ import annotations

from planish.frontend.call import Call, Converted, Converter, Refusal, apply, from_end
from planish.ir import ops
from planish.ir.graph import Value

SUM = 3  # place of the sum among the results of the skip forms


def _simplified(call: Call) -> Converted:
    call.only_first_result()
    if call.int_attr("stash_type", 1) != 1:
        raise Refusal("statistics in another type than float32")
    (axis,) = from_end([call.int_attr("axis", -1)], len(call.dims(0)))
    return apply(ops.RMSNorm(axis, call.float_attr("epsilon", 1e-5)), call.arg(0), call.arg(1))


def _skip_layer_norm(call: Call) -> Converted:
    """x, skip, gamma, beta, bias."""
    total = _sum(call, bias=4)
    norm = ops.LayerNorm(-1, call.float_attr("epsilon", 1e-5))
    return _results(call, apply(norm, total, call.arg(2), call.get(3)), total)


def _skip_simplified(call: Call) -> Converted:
    """x, skip, gamma, bias."""
    total = _sum(call, bias=3)
    norm = ops.RMSNorm(-1, call.float_attr("epsilon", 1e-5))
    return _results(call, apply(norm, total, call.arg(2)), total)


def _sum(call: Call, bias: int) -> Value:
    x, skip = call.dims(0), call.dims(1)
    if len(skip) > len(x) or any(extent not in (1, x[-i]) for i, extent in enumerate(reversed(skip), 1)):
        raise Refusal("the skip connection doesn't broadcast to what it is added to")
    total = apply(ops.Add(), call.arg(0), call.arg(1))
    addend = call.get(bias)
    return total if addend is None else apply(ops.Add(), total, addend)


def _results(call: Call, norm: Value, total: Value) -> Converted:
    if any(call.used(place) for place in range(1, min(SUM, call.results))):
        raise Refusal("the statistics of the norm are used")
    return (norm, total, total, total)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "SimplifiedLayerNormalization"): _simplified,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_simplified,
}
