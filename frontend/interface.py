"""Inputs and outputs of a model: which they are, their declared types, and the shapes that the caller fixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir

from planish.frontend.declared import UNKNOWN, Symbols, declared_type, shape_text
from planish.ir import dims
from planish.ir.dims import Dim
from planish.ir.errors import UsageError
from planish.ir.types import TensorType, Type

_FIRST_WITH_DEFAULTS = 4  # IR version; before it every initializer had to be listed as an input, and is a constant


@dataclass(frozen=True, slots=True)
class Interface:
    """Inputs with their types, in order, and what the model declares of inputs and outputs, to write it back."""

    inputs: tuple[tuple[onnx_ir.Value, Type], ...]
    declared: dict[str, onnx_ir.TypeAndShape]


def interface_of(
    model: onnx_ir.Model, symbols: Symbols, shapes: Mapping[str, Sequence[int | str]] | None, where: str
) -> Interface:
    """Read the interface of a model and bind `shapes`. Raises UsageError if the two don't go together."""
    inputs = [
        value for value in model.graph.inputs if value.const_value is None or model.ir_version >= _FIRST_WITH_DEFAULTS
    ]
    texts = (getattr(dim, "value", dim) for value in inputs if value.shape is not None for dim in value.shape)
    symbols.plain.update(text for text in texts if isinstance(text, str) and text.isidentifier())
    types = {value: declared_type(value.type, value.shape, symbols) or UNKNOWN for value in inputs}
    by_name = {value.name or "": value for value in inputs}
    for name, wanted in (shapes or {}).items():
        if (value := by_name.get(name)) is None:
            known = ", ".join(f"{n} {types[v]}" for n, v in by_name.items()) or "none"
            raise UsageError(f"the model has no input {name!r}", where=where, remedy=f"name one of its inputs: {known}")
        types[value] = _bind(name, types[value], tuple(wanted), symbols, where)
    final = tuple((value, symbols.bound(type_)) for value, type_ in types.items())
    _check_bound(shapes or {}, by_name, dict(final), where)
    declared = {value.name or "": _written(value, type_, symbols) for value, type_ in final}
    for value in model.graph.outputs:
        type_ = declared_type(value.type, value.shape, symbols) or UNKNOWN
        declared.setdefault(value.name or "", _written(value, type_, symbols))
    return Interface(final, declared)


def _bind(name: str, type_: Type, wanted: tuple[int | str, ...], symbols: Symbols, where: str) -> Type:
    """Record what `wanted` says about the symbols of an input; returns the type, its rank now known."""
    shown = "x".join(map(str, wanted))
    if not isinstance(type_, TensorType):
        raise UsageError(f"input {name!r} is {type_} and has no shape to set", where=where, remedy="leave it out")
    goal = tuple(_wanted(dim, name, where) for dim in wanted)
    if type_.shape is None:
        return type_.with_shape(goal)
    if len(goal) != len(type_.shape):
        raise UsageError(
            f"shape {shown} for input {name!r} has {len(goal)} dimensions, but the input is {type_}",
            where=where,
            remedy=f"give {len(type_.shape)} dimensions",
        )
    for declared, dim in zip(type_.shape, goal, strict=True):
        if isinstance(declared, int):
            fits = declared == dim
        elif declared.isidentifier():
            fits = symbols.binding.setdefault(declared, dim) == dim
        else:
            fits = True  # an expression: checked when all symbols are bound
        if not fits:
            now = symbols.binding.get(declared, declared) if isinstance(declared, str) else declared
            raise UsageError(
                f"shape {shown} for input {name!r} contradicts its type {type_}: {dim} where {now} is fixed",
                where=where,
                remedy="change only symbolic dimensions, and give equal symbols equal extents",
            )
    return type_


def _wanted(dim: int | str, name: str, where: str) -> Dim:
    goal = dim if isinstance(dim, int) else dims.canonical(dim)
    if isinstance(goal, int) and goal < 1:
        raise UsageError(
            f"dimension {dim} of input {name!r} isn't positive", where=where, remedy="give a positive number or a name"
        )
    return goal


def _check_bound(
    shapes: Mapping[str, Sequence[int | str]],
    by_name: Mapping[str, onnx_ir.Value],
    types: Mapping[onnx_ir.Value, Type],
    where: str,
) -> None:
    for name, wanted in shapes.items():
        type_ = types[by_name[name]]
        goal = tuple(_wanted(dim, name, where) for dim in wanted)
        if isinstance(type_, TensorType) and type_.shape != goal:
            raise UsageError(
                f"shape {'x'.join(map(str, wanted))} for input {name!r} gives {type_}",
                where=where,
                remedy="give the extents of the symbols that the input's dimensions are computed from",
            )


def _written(value: onnx_ir.Value, type_: Type, symbols: Symbols) -> onnx_ir.TypeAndShape:
    """What a writer shall declare: the source's own words, unless a shape was bound."""
    if symbols.binding and isinstance(type_, TensorType) and type_.shape is not None:
        shape = shape_text(type_.shape, symbols.originals)
        if value.shape is not None:
            kept = [old if _unbound(old, new, symbols) else new for old, new in zip(value.shape, shape, strict=True)]
            shape = onnx_ir.Shape(kept)
        return onnx_ir.TypeAndShape(value.type, shape)
    return onnx_ir.TypeAndShape(value.type, value.shape)  # type: ignore[arg-type]


def _unbound(old: object, new: object, symbols: Symbols) -> bool:
    """True for a nameless dimension that is still symbolic: it is written nameless again."""
    return (
        getattr(old, "value", "") is None
        and not isinstance(new, int)
        and symbols.is_fresh(str(getattr(new, "value", "")))
    )
