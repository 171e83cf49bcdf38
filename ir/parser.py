"""Parser of the text form of graphs (see `planish.ir.text`): Python's `ast` with a whitelist; nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

import planish.ir.ops  # noqa: F401  (fills OPS)
from planish.ir import dims, dtypes
from planish.ir.data import Data
from planish.ir.dims import Dim
from planish.ir.dtypes import DType
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import OPS, Const, Op, Return
from planish.ir.ops.opaque import Opaque
from planish.ir.types import OtherType, Quant, Sparsity, TensorType, Type


def parse_graph(
    text: str, constants: Mapping[str, Data] | None = None, payloads: Mapping[str, object] | None = None
) -> Graph:
    """The graph that `text` describes. Each node gets its result's name as its source.

    constants: by digest, those that the text names so (`constants_of`). payloads: by name (`payloads_of`).
    Raises VerifyError with line number and source line if the text is malformed, an op, constant or payload is unknown,
    or an annotation (which results may do without) differs from what the op infers.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", None) or str(error)
        raise VerifyError(f"line {line}: {reason}", context=_source(text, line)) from None
    return _Parser(text, constants or {}, payloads or {}).graph(module)


def array_of(dtype: DType, shape: Sequence[int], flat: Sequence[int | float | str | bytes | bool]) -> np.ndarray:
    """The array with the given elements, row-major. Raises ValueError, TypeError or OverflowError if they don't fit."""
    if dtype.kind == "str":
        result = np.empty(len(flat), object)
        result[:] = flat
        return result.reshape(shape)
    if dtype.is_integer:
        if any(isinstance(v, bool) or not isinstance(v, int) or not dtype.min <= v <= dtype.max for v in flat):
            raise ValueError(f"elements don't fit {dtype}")
        return np.array(flat, np.uint64 if dtype.kind == "uint" else np.int64).astype(dtype.storage).reshape(shape)
    if dtype.kind == "bool":
        if not all(isinstance(v, bool) for v in flat):
            raise ValueError("elements aren't True or False")
        return np.array(flat, np.bool_).reshape(shape)
    if any(isinstance(v, bool | str | bytes) for v in flat):
        raise ValueError(f"elements don't fit {dtype}")
    with np.errstate(all="ignore"):
        return np.array(flat, np.float64).astype(dtype.storage).reshape(shape)


class _Parser:
    """State of one parse: the graph so far and its values by name."""

    def __init__(self, text: str, constants: Mapping[str, Data], payloads: Mapping[str, object]):
        self._text, self._constants, self._payloads = text, constants, payloads
        self._values: dict[str, Value] = {}
        self._graph = Graph()

    def graph(self, module: ast.Module) -> Graph:
        match module.body:
            case [ast.FunctionDef() as function]:
                pass
            case _:
                raise VerifyError("line 1: a graph is one function definition", context=_source(self._text, 1))
        self._graph.name = function.name
        self._inputs(function)
        for i, statement in enumerate(function.body):
            self._statement(statement, first=i == 0)
        if self._graph.tail is None or not self._graph.tail.op.is_return:
            self._fail(function.body[-1], "the graph doesn't end in a return")
        return self._graph

    # statements

    def _inputs(self, function: ast.FunctionDef) -> None:
        a = function.args
        if a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or function.decorator_list or function.returns:
            self._fail(function, "a graph has plain parameters with annotations only")
        defaults: list[ast.expr | None] = [*[None] * (len(a.args) - len(a.defaults)), *a.defaults]
        for parameter, default in zip(a.args, defaults, strict=True):
            name = parameter.arg if default is None else self._string(default)
            if parameter.annotation is None:
                self._fail(parameter, f"input {parameter.arg} has no type")
            self._define(parameter, parameter.arg, self._graph.add_input(name, self._type(parameter.annotation)))

    def _statement(self, statement: ast.stmt, first: bool) -> None:
        if self._graph.tail is not None and self._graph.tail.op.is_return:
            self._fail(statement, "the graph goes on after its return")
        match statement:
            case ast.Expr(value=ast.Constant(value=str(name))) if first:
                self._graph.name = name
            case ast.Assign(targets=[ast.Name(id="opsets")], value=ast.Dict() as versions):
                self._opsets(versions)
            case ast.AnnAssign(target=ast.Name() as target, annotation=annotation, value=ast.Call() as call):
                self._node(call, [target], annotation)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Call() as call):
                self._node(call, targets, None)
            case ast.Assign(targets=[ast.Name() as target], value=ast.Call() as call):
                self._node(call, [target], None)
            case ast.Expr(value=ast.Call() as call):
                self._node(call, [], None)
            case ast.Return(value=value):
                self._return(statement, value)
            case _:
                self._fail(statement, "this is no statement of the text form")

    def _opsets(self, versions: ast.Dict) -> None:
        for key, value in zip(versions.keys, versions.values, strict=True):
            version = self._value(value)
            if key is None or not isinstance(version, int):
                self._fail(versions, "opsets are versions by domain")
            self._graph.opsets[self._string(key)] = version

    def _node(self, call: ast.Call, targets: Sequence[ast.expr], annotation: ast.expr | None) -> None:
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if len(names) != len(targets):
            self._fail(call, "results are assigned to names")
        op, operands = self._applied(call)
        try:
            node = Node(op, operands, Loc((names[0] if names else op.name,)))
        except VerifyError as error:
            self._fail(call, error.what)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            self._fail(call, f"{op!r} doesn't fit its operands: {error}")
        if len(node.results) != len(names):
            self._fail(call, f"{op.name} has {len(node.results)} results, not {len(names)}")
        if annotation is not None and not self._agrees(annotation, node.result.type):
            self._fail(call, f"the annotation says {ast.unparse(annotation)}, but {op.name} gives {node.result.type}")
        self._graph.insert(node)
        for target, name, value in zip(targets, names, node.results, strict=True):
            value.hint = name
            self._define(target, name, value)

    def _agrees(self, annotation: ast.expr, inferred: Type) -> bool:
        """True if the annotation is that type. Scales that it names by digest are compared by digest."""
        if any(isinstance(part, ast.Name) and part.id == "scales" for part in ast.walk(annotation)):
            return ast.unparse(annotation) == ast.unparse(ast.parse(str(inferred), mode="eval").body)
        return self._type(annotation) == inferred.interface()

    def _applied(self, call: ast.Call) -> tuple[Op, list[Value | None]]:
        """The op and the operands of `Op(attributes)(operands)`, or of `Const(...)`."""
        match call:
            case ast.Call(func=ast.Name(id="Const"), args=arguments, keywords=[]):
                return Const(self._data(call, arguments)), []
            case ast.Call(func=ast.Call(func=ast.Name(id=name), args=[]) as head, args=operands, keywords=[]):
                return self._op(name, head), [self._operand(operand) for operand in operands]
        self._fail(call, "an op is written Op(name=attribute, ...)(operand, ...)")

    def _op(self, name: str, head: ast.Call) -> Op:
        kind = OPS.get(name)
        if kind is None or kind.is_return or kind is Const:
            self._fail(head, f"there is no op {name}")
        attributes: dict[str, object] = {}
        for keyword in head.keywords:
            if keyword.arg is None:
                self._fail(head, "attributes are given by name")
            attributes[keyword.arg] = self._value(keyword.value)
        if kind is Opaque and (payload := attributes.get("payload")) is not None:
            if payload not in self._payloads:
                self._fail(head, f"the payload {payload!r} isn't part of the text and wasn't given")
            attributes["payload"] = self._payloads[str(payload)]
        try:
            return kind(**attributes)
        except (TypeError, AttributeError) as error:
            self._fail(head, f"{name} doesn't have these attributes: {error}")

    def _operand(self, node: ast.expr) -> Value | None:
        match node:
            case ast.Constant(value=None):
                return None
            case ast.Name(id=name):
                if name not in self._values:
                    self._fail(node, f"{name} isn't defined above")
                return self._values[name]
        self._fail(node, "operands are names or None")

    def _return(self, statement: ast.Return, value: ast.expr | None) -> None:
        operands: list[ast.expr]
        match value:
            case None:
                names, operands = [], []
            case ast.Dict(keys=keys, values=operands):
                names = [self._string(key) for key in keys if key is not None]
            case ast.Tuple(elts=operands):
                names = [ast.unparse(operand) for operand in operands]
            case _:
                names, operands = [ast.unparse(value)], [value]
        values = [self._operand(operand) for operand in operands]
        try:
            self._graph.add(Return(tuple(names)), *values)
        except VerifyError as error:
            self._fail(statement, error.what)

    def _define(self, node: ast.AST, name: str, value: Value) -> None:
        if name in self._values:
            self._fail(node, f"{name} is defined twice")
        self._values[name] = value

    # expressions

    def _value(self, node: ast.expr) -> object:
        """An attribute."""
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() | bytes() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                number = self._value(operand)
                if isinstance(number, int | float) and not isinstance(number, bool):
                    return -number
            case ast.Name(id="inf" | "nan" as name):
                return float(name)
            case ast.Name(id=name) if name in dtypes.BY_NAME:
                return dtypes.BY_NAME[name]
            case ast.Tuple(elts=items):
                return tuple(self._value(item) for item in items)
            case ast.Call(func=ast.Name(id="Data"), args=arguments, keywords=[]):
                return self._data(node, arguments)
            case ast.Subscript() | ast.Call():
                return self._type(node)
        self._fail(node, f"{ast.unparse(node)} is no attribute")

    def _data(self, node: ast.expr, arguments: Sequence[ast.expr]) -> Data:
        """A constant: its digest, or its dtype (its type, if it is empty) and elements."""
        match arguments:
            case [ast.Constant(value=str(digest))]:
                if digest not in self._constants:
                    self._fail(node, f"the constant {digest} isn't part of the text and wasn't given")
                return self._constants[digest]
            case [ast.Name(id=name), elements] if name in dtypes.BY_NAME:
                dtype, (shape, flat) = dtypes.BY_NAME[name], self._elements(elements)
            case [ast.Subscript() as annotation, ast.List(elts=[])]:
                type_ = self._type(annotation)
                if not isinstance(type_, TensorType) or not type_.is_static or type_.elements != 0:
                    self._fail(node, f"{type_} is no type of an empty constant")
                dtype, shape, flat = type_.dtype, tuple(int(dim) for dim in type_.dims), []
            case _:
                self._fail(node, "a constant is written (dtype, elements) or (digest)")
        try:
            return Data(array_of(dtype, shape, flat))
        except (ValueError, TypeError, OverflowError) as error:
            self._fail(node, f"{ast.unparse(node)}: {error}")

    def _elements(self, node: ast.expr) -> tuple[tuple[int, ...], list[int | float | str | bytes | bool]]:
        """Shape and elements of nested lists."""
        if not isinstance(node, ast.List):
            element = self._value(node)
            if not isinstance(element, int | float | str | bytes):
                self._fail(node, f"{ast.unparse(node)} is no element")
            return (), [element]
        parts = [self._elements(item) for item in node.elts]
        if not parts or any(shape != parts[0][0] for shape, _ in parts):
            self._fail(node, "rows are empty or differ in length")
        return (len(parts), *parts[0][0]), [element for _, flat in parts for element in flat]

    def _type(self, node: ast.expr) -> Type:
        match node:
            case ast.Call(func=ast.Name(id="other"), args=[ast.Constant(value=str(spec))], keywords=[]):
                return OtherType(spec)
            case ast.Subscript(value=head, slice=inside):
                dtype, quant, sparsity = self._head(head)
                return TensorType(dtype, self._shape(inside), quant, sparsity)
        self._fail(node, f"{ast.unparse(node)} is no type")

    def _head(self, node: ast.expr) -> tuple[DType, Quant | None, Sparsity | None]:
        match node:
            case ast.Name(id=name) if name in dtypes.BY_NAME:
                return dtypes.BY_NAME[name], None, None
            case ast.Call(func=ast.Name(id="q"), args=[inner, scale, zero], keywords=options):
                scales, zero_value = self._value(scale), self._value(zero)
                scales = scales if isinstance(scales, tuple) else (scales,)
                named = {option.arg: self._value(option.value) for option in options}
                axis, codebook = named.get("axis"), named.get("codebook", "")
                if isinstance(zero_value, int) and isinstance(axis, int | None) and isinstance(codebook, str):
                    quant = Quant(tuple(self._float(value, node) for value in scales), zero_value, axis, codebook)
                    return self._head(inner)[0], quant, None
            case ast.Call(func=ast.Name(id="sparse"), args=[inner, kind, block], keywords=options):
                named = {option.arg: self._value(option.value) for option in options}
                extents, axis, density = self._value(block), named.get("axis"), named.get("density", 1.0)
                if isinstance(extents, tuple) and isinstance(axis, int | None) and isinstance(density, int | float):
                    return *self._head(inner)[:2], Sparsity(self._string(kind), extents, axis, float(density))
        self._fail(node, f"{ast.unparse(node)} is no element type")

    def _shape(self, node: ast.expr) -> tuple[Dim, ...] | None:
        match node:
            case ast.Constant(value=value) if value is ...:
                return None
            case ast.Tuple(elts=items):
                return tuple(self._dim(item) for item in items)
        return (self._dim(node),)

    def _dim(self, node: ast.expr) -> Dim:
        match node:  # the usual cases, for speed
            case ast.Name(id=symbol):
                return symbol
            case ast.Constant(value=int(size)) if not isinstance(size, bool):
                return size
        for part in ast.walk(node):
            match part:
                case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv()) | ast.UnaryOp(op=ast.USub()):
                    pass
                case ast.Name() | ast.operator() | ast.unaryop() | ast.expr_context():
                    pass
                case ast.Constant(value=int(value)) if not isinstance(value, bool):
                    pass
                case ast.Call(func=ast.Name(id="broadcast"), args=[_, _], keywords=[]):
                    pass
                case _:
                    self._fail(node, f"{ast.unparse(node)} is no dimension")
        return dims.canonical(ast.unparse(node))

    def _float(self, value: object, node: ast.expr) -> float:
        if not isinstance(value, int | float):
            self._fail(node, f"{value!r} is no number")
        return float(value)

    def _string(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return text
        self._fail(node, f"{ast.unparse(node)} is no string")

    def _fail(self, node: ast.AST, message: str) -> NoReturn:
        line = int(getattr(node, "lineno", 1))
        raise VerifyError(f"line {line}: {message}", context=_source(self._text, line))


def _source(text: str, line: int) -> str:
    lines = text.splitlines()
    return f"  {lines[line - 1].strip()}" if 0 < line <= len(lines) else ""
