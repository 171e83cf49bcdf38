"""Result types that ONNX's own inference leaves open although the operands tell them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from planish.frontend.contents import contents_of
from planish.frontend.declared import Symbols
from planish.ir.graph import Value
from planish.ir.types import TensorType, Type

_LIKE_FIRST = frozenset(
    {
        ("", "GroupNormalization"),
        *(("com.microsoft", name) for name in ("BiasGelu", "FastGelu", "Gelu", "GroupNorm", "QuickGelu")),
        *(("com.microsoft", name) for name in ("RotaryEmbedding", "SkipLayerNormalization")),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"),
    }
)
"""Ops whose first result has the type of the first operand."""
_RESIZE_SIZES = 3


def first_type(node: onnx_ir.Node, operands: Sequence[Value | None], found: Type, symbols: Symbols) -> Type:
    """The type of the first result, given what inference and declaration say; that itself where no more is known."""
    first = operands[0] if operands else None
    if first is None or not isinstance(first.type, TensorType):
        return found
    if isinstance(found, TensorType) and found.is_static:
        return found
    key = (node.domain, node.op_type)
    if key in _LIKE_FIRST:
        return first.type.interface()
    if not isinstance(found, TensorType):
        return found
    if key == ("", "Resize"):
        return _resized(node, operands, first.type, found, symbols)
    if key == ("", "Reshape") and found.shape is None and (rank := _length(operands, 1)) is not None:
        return found.with_shape(tuple(symbols.fresh() for _ in range(rank)))
    return found


def _resized(
    node: onnx_ir.Node, operands: Sequence[Value | None], x: TensorType, found: TensorType, symbols: Symbols
) -> TensorType:
    """To stated sizes, symbolic ones included; else of the same rank."""
    sizes = operands[_RESIZE_SIZES] if len(operands) > _RESIZE_SIZES else None
    odd = {"axes", "keep_aspect_ratio_policy"} & set(node.attributes)
    known = None if sizes is None or odd else contents_of(sizes)
    if known is not None:
        return found.with_shape(known)
    if found.shape is None and x.shape is not None:
        return found.with_shape(tuple(symbols.fresh() for _ in x.shape))
    return found


def _length(operands: Sequence[Value | None], index: int) -> int | None:
    """Static length of an operand that is a list."""
    value = operands[index] if index < len(operands) else None
    shape = value.type.shape if value is not None and isinstance(value.type, TensorType) else None
    return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None
