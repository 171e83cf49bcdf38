"""Normalisations and softmax."""

from __future__ import annotations

from collections.abc import Callable

from planish.frontend.call import Call, Converted, Converter, Refusal, apply, axis_of, from_end
from planish.ir import dims, ops
from planish.ir.op import Op


def softmax(make: Callable[[int], Op]) -> Converter:
    """Converter of Softmax or LogSoftmax.

    Before operator set 13 the operand was read as a matrix, split before `axis`: everything from `axis` on is one
    softmax. That is the last axis after flattening.
    """

    def convert(call: Call) -> Converted:
        x, shape = call.arg(0), call.dims(0)
        rank = len(shape)
        if call.version >= 13:
            return apply(make(*from_end([call.int_attr("axis", -1)], rank)), x)
        axis = call.int_attr("axis", 1)
        axis = rank if axis == rank else axis_of(axis, rank)
        if axis == rank - 1:
            return apply(make(-1), x)
        flat = ops.Reshape.to(x.tensor, (*shape[:axis], dims.product(shape[axis:])))
        if flat is None:
            raise Refusal("softmax over several axes of symbolic extent")
        rows = apply(flat, x)
        back = ops.Reshape.to(rows.tensor, shape)
        if back is None:
            raise Refusal("softmax over several axes of symbolic extent")
        return apply(back, apply(make(-1), rows))

    return convert


def _needs_float32_stash(call: Call) -> None:
    if call.int_attr("stash_type", 1) != 1:
        raise Refusal("statistics in another type than float32")


def _layer_norm(call: Call) -> Converted:
    call.only_first_result()
    _needs_float32_stash(call)
    (axis,) = from_end([call.int_attr("axis", -1)], len(call.dims(0)))
    return apply(ops.LayerNorm(axis, call.float_attr("epsilon", 1e-5)), call.arg(0), call.arg(1), call.get(2))


def _rms_norm(call: Call) -> Converted:
    _needs_float32_stash(call)
    (axis,) = from_end([call.int_attr("axis", -1)], len(call.dims(0)))
    return apply(ops.RMSNorm(axis, call.float_attr("epsilon", 1e-5)), call.arg(0), call.arg(1))


def _batch_norm(call: Call) -> Converted:
    if call.version >= 14 and call.flag_attr("training_mode"):
        raise Refusal("batch normalization in training mode")
    if call.version < 9 and not call.flag_attr("spatial", True):
        raise Refusal("batch normalization of every place by itself")
    if call.version < 14 and call.results > 1:
        raise Refusal("batch normalization in training mode")
    return apply(ops.BatchNorm(call.float_attr("epsilon", 1e-5)), *(call.arg(i) for i in range(5)))


def _instance_norm(call: Call) -> Converted:
    return apply(ops.InstanceNorm(call.float_attr("epsilon", 1e-5)), *(call.arg(i) for i in range(3)))


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Softmax"): softmax(ops.Softmax),
    ("", "LogSoftmax"): softmax(ops.LogSoftmax),
    ("", "LayerNormalization"): _layer_norm,
    ("", "RMSNormalization"): _rms_norm,
    ("", "BatchNormalization"): _batch_norm,
    ("", "InstanceNormalization"): _instance_norm,
}
