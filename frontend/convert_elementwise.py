"""Elementwise ops. ONNX broadcasts as numpy does since operator set 7, so most are one to one."""

from __future__ import annotations

from functools import reduce

import numpy as np

from planish.frontend.call import Call, Converted, Converter, Refusal, apply
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.dtypes import DType
from planish.ir.graph import Value
from planish.ir.op import Const, Op, constant

# ONNX TensorProto.DataType numbers of the element types that Cast converts between exactly as numpy does
_CAST_TARGETS: dict[int, DType] = {
    1: dtypes.f32,
    10: dtypes.f16,
    11: dtypes.f64,
    16: dtypes.bf16,
    9: dtypes.boolean,
    3: dtypes.i8,
    5: dtypes.i16,
    6: dtypes.i32,
    7: dtypes.i64,
    2: dtypes.u8,
    4: dtypes.u16,
    12: dtypes.u32,
    13: dtypes.u64,
}
_FLOAT32_LOWEST = float(np.finfo(np.float32).min)
_FLOAT32_HIGHEST = float(np.finfo(np.float32).max)


def plain(op: Op, arity: int) -> Converter:
    """Converter of an op without attributes and with a fixed number of operands."""

    def convert(call: Call) -> Converted:
        return apply(op, *(call.arg(i) for i in range(arity)))

    return convert


def chained(op: Op) -> Converter:
    """Converter of an op that takes one or more operands, evaluated left to right."""

    def convert(call: Call) -> Converted:
        first, *others = call.args()
        return reduce(lambda a, b: apply(op, a, b), others, first) if others else apply(ops.Identity(), first)

    return convert


def _mean(call: Call) -> Converted:
    parts = call.args()
    if len(parts) == 1:
        return apply(ops.Identity(), parts[0])
    total = reduce(lambda a, b: apply(ops.Add(), a, b), parts)
    return apply(ops.Div(), total, np.asarray(len(parts), parts[0].tensor.dtype.storage))


def _clip(call: Call) -> Converted:
    x = call.arg(0)
    if call.version < 11:
        low, high = call.float_attr("min", _FLOAT32_LOWEST), call.float_attr("max", _FLOAT32_HIGHEST)
        return apply(
            ops.Clip(
                None if np.float32(low) == np.float32(_FLOAT32_LOWEST) else low,
                None if np.float32(high) == np.float32(_FLOAT32_HIGHEST) else high,
            ),
            x,
        )
    bounds = call.get(1), call.get(2)
    if all(bound is None or constant(bound) is not None for bound in bounds):
        return apply(ops.Clip(call.number(1), call.number(2)), x)
    for op, bound in zip((ops.Max(), ops.Min()), bounds, strict=True):
        x = x if bound is None else apply(op, x, bound)
    return x


def _cast_to(x: Value, target: DType | None) -> Converted:
    source = x.tensor.dtype
    if target is None or source not in _CAST_TARGETS.values():
        raise Refusal("casts of strings and of types below 16 bits follow rules of their own")
    return apply(ops.Cast(target), x)


def _cast(call: Call) -> Converted:
    return _cast_to(call.arg(0), _CAST_TARGETS.get(call.int_attr("to")))


def _cast_like(call: Call) -> Converted:
    target = call.arg(1).tensor.dtype
    return _cast_to(call.arg(0), target if target in _CAST_TARGETS.values() else None)


def _dropout(call: Call) -> Converted:
    call.only_first_result()
    if call.version >= 12 and call.get(2) is not None and call.number(2) != 0:
        raise Refusal("dropout in training mode")
    return apply(ops.Identity(), call.arg(0))


def _gelu(call: Call) -> Converted:
    approximate = call.text_attr("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise Refusal(f"unknown approximation {approximate}")
    return apply(ops.Gelu(approximate), call.arg(0))  # type: ignore[arg-type]


def _fast_gelu(call: Call) -> Converted:
    x, bias = call.arg(0), call.get(1)
    return apply(ops.Gelu("tanh"), x if bias is None else apply(ops.Add(), x, bias))


def _mod(call: Call) -> Converted:
    x, fmod = call.arg(0), call.flag_attr("fmod")
    if x.tensor.dtype.is_float and not fmod:
        raise Refusal("modulus of floats must be fmod")
    return apply(ops.Mod(fmod), x, call.arg(1))


_CONSTANT_LISTS: dict[str, type] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": np.object_,
    "value_strings": np.object_,
}


def _constant(call: Call) -> Converted:
    if isinstance(value := call.attrs.get("value"), Data):
        return apply(Const(value))
    for name, dtype in _CONSTANT_LISTS.items():
        if name in call.attrs:
            return apply(Const(Data(np.array(call.attrs[name], dtype))))
    raise Refusal("a sparse constant")


_UNARY: dict[str, Op] = {
    "Abs": ops.Abs(),
    "Neg": ops.Neg(),
    "Sign": ops.Sign(),
    "Sqrt": ops.Sqrt(),
    "Reciprocal": ops.Reciprocal(),
    "Exp": ops.Exp(),
    "Log": ops.Log(),
    "Erf": ops.Erf(),
    "Sin": ops.Sin(),
    "Cos": ops.Cos(),
    "Tanh": ops.Tanh(),
    "Sigmoid": ops.Sigmoid(),
    "Relu": ops.Relu(),
    "Floor": ops.Floor(),
    "Ceil": ops.Ceil(),
    "Round": ops.Round(),
    "Softplus": ops.Softplus(),
    "Not": ops.Not(),
    "IsNaN": ops.IsNaN(),
    "HardSwish": ops.HardSwish(),
    "Identity": ops.Identity(),
}
_BINARY: dict[str, Op] = {
    "Add": ops.Add(),
    "Sub": ops.Sub(),
    "Mul": ops.Mul(),
    "Div": ops.Div(),
    "Pow": ops.Pow(),
    "Equal": ops.Equal(),
    "Less": ops.Less(),
    "LessOrEqual": ops.LessOrEqual(),
    "Greater": ops.Greater(),
    "GreaterOrEqual": ops.GreaterOrEqual(),
    "And": ops.And(),
    "Or": ops.Or(),
    "Xor": ops.Xor(),
}

CONVERTERS: dict[tuple[str, str], Converter] = {
    **{("", name): plain(op, 1) for name, op in _UNARY.items()},
    **{("", name): plain(op, 2) for name, op in _BINARY.items()},
    ("", "Where"): plain(ops.Where(), 3),
    ("", "Max"): chained(ops.Max()),
    ("", "Min"): chained(ops.Min()),
    ("", "Sum"): chained(ops.Add()),
    ("", "Mean"): _mean,
    ("", "Mod"): _mod,
    ("", "Clip"): _clip,
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast_like,
    ("", "Dropout"): _dropout,
    ("", "Gelu"): _gelu,
    ("", "Swish"): lambda call: apply(ops.Swish(call.float_attr("alpha", 1.0)), call.arg(0)),
    ("", "HardSigmoid"): lambda call: apply(
        ops.HardSigmoid(call.float_attr("alpha", 0.2), call.float_attr("beta", 0.5)), call.arg(0)
    ),
    ("", "LeakyRelu"): lambda call: apply(ops.LeakyRelu(call.float_attr("alpha", 0.01)), call.arg(0)),
    ("", "Elu"): lambda call: apply(ops.Elu(call.float_attr("alpha", 1.0)), call.arg(0)),
    ("", "Constant"): _constant,
    ("com.microsoft", "Gelu"): plain(ops.Gelu("none"), 1),
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "QuickGelu"): lambda call: apply(ops.Swish(call.float_attr("alpha", 1.702)), call.arg(0)),
}
