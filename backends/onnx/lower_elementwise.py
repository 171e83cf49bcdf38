"""Elementwise ops to ONNX, operator sets 7 to the newest."""

from __future__ import annotations

import math

import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.types import onnx_dtype
from planish.ir import dtypes, ops
from planish.ir.graph import Node
from planish.ir.op import Op

Operands = list["onnx.Value | None"]


def plain(e: Emitter, node: Node, x: Operands) -> Lowered:
    """An op whose ONNX name is the class name, without attributes."""
    return e.op(node.op.name, *x)


def _gelu(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Gelu)
    tanh = op.approximate == "tanh"
    choice = e.dialect.spellings.gelu_tanh if tanh else e.dialect.spellings.gelu
    if choice == "standard" and e.opset >= 20:
        return e.op("Gelu", *x, approximate=op.approximate)
    if tanh and e.dialect.spellings.contrib and node.result.tensor.dtype == dtypes.f32:
        return e.contrib("FastGelu", *x)
    if tanh:
        return e.expand(node)
    like = node.result
    # The operand order that ONNX Runtime knows, so that it can fuse it with a bias: x * (erf(x / sqrt 2) + 1) / 2
    erf = e.op("Erf", e.op("Div", x[0], e.scalar(math.sqrt(2.0), like)))
    return e.op("Mul", e.op("Mul", x[0], e.op("Add", erf, e.scalar(1.0, like))), e.scalar(0.5, like))


def _swish(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Swish)
    if e.dialect.spellings.swish == "standard" and e.opset >= 24:
        return e.op("Swish", *x, alpha=op.alpha)
    scaled = x[0] if op.alpha == 1.0 else e.op("Mul", x[0], e.scalar(op.alpha, node.result))
    return e.op("Mul", x[0], e.op("Sigmoid", scaled))


def _hard_swish(e: Emitter, node: Node, x: Operands) -> Lowered:
    if e.opset >= 14:
        return e.op("HardSwish", *x)
    return e.op("Mul", x[0], e.op("HardSigmoid", x[0], alpha=1.0 / 6.0, beta=0.5))


def _hard_sigmoid(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.HardSigmoid)
    return e.op("HardSigmoid", *x, alpha=op.alpha, beta=op.beta)


def _leaky(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.LeakyRelu | ops.Elu)
    return e.op(op.name, *x, alpha=op.alpha)


def _clip(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Clip)
    bounds = (op.lo, op.hi)
    if e.opset >= 11:
        return e.op("Clip", x[0], *(None if bound is None else e.scalar(bound, node.result) for bound in bounds))
    if not node.result.tensor.dtype.is_float:
        e.unsupported("Clip of integers")
    named = zip(("min", "max"), bounds, strict=True)
    return e.op("Clip", x[0], **{name: float(bound) for name, bound in named if bound is not None})


def _cast(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Cast)
    return e.op("Cast", *x, to=int(onnx_dtype(op.to)))


def _pow(e: Emitter, node: Node, x: Operands) -> Lowered:
    base, exponent = (v.tensor.dtype for v in node.inputs)
    if e.opset >= 12 or base == exponent:
        return e.op("Pow", *x)
    return e.op("Pow", x[0], e.op("Cast", x[1], to=int(onnx_dtype(base))))


def _mod(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Mod)
    return e.op("Mod", *x, fmod=op.fmod)


def _or_equal(strict: str) -> Lowering:
    def lower(e: Emitter, node: Node, x: Operands) -> Lowered:
        if e.opset >= 12:
            return e.op(node.op.name, *x)
        return e.op("Or", e.op(strict, *x), e.op("Equal", *x))

    return lower


def _add(e: Emitter, node: Node, x: Operands) -> Lowered:
    alone = e.dialect.spellings.unskipped and e.opset >= 8 and node.result.tensor.dtype == dtypes.f32
    readers = node.result.users
    return e.op("Sum" if alone and len(readers) == 1 and isinstance(readers[0].op, ops.LayerNorm) else "Add", *x)


_PLAIN: tuple[type[Op], ...] = (
    *(ops.Abs, ops.Neg, ops.Sign, ops.Sqrt, ops.Reciprocal, ops.Exp, ops.Log, ops.Erf, ops.Sin, ops.Cos, ops.Tanh),
    *(ops.Sigmoid, ops.Relu, ops.Floor, ops.Ceil, ops.Round, ops.Softplus, ops.Not, ops.IsNaN, ops.Identity),
    *(ops.Sub, ops.Mul, ops.Div, ops.Max, ops.Min, ops.Equal, ops.Less, ops.Greater, ops.And, ops.Or),
    *(ops.Xor, ops.Where),
)

LOWERINGS: dict[type[Op], Lowering] = {
    **dict.fromkeys(_PLAIN, plain),
    ops.Add: _add,
    ops.Gelu: _gelu,
    ops.Swish: _swish,
    ops.HardSwish: _hard_swish,
    ops.HardSigmoid: _hard_sigmoid,
    ops.LeakyRelu: _leaky,
    ops.Elu: _leaky,
    ops.Clip: _clip,
    ops.Cast: _cast,
    ops.Pow: _pow,
    ops.Mod: _mod,
    ops.LessOrEqual: _or_equal("Less"),
    ops.GreaterOrEqual: _or_equal("Greater"),
}
