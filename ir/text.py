"""Text form of graphs, in Python grammar: `parse_graph(print_graph(graph))` is the same graph.

    def vit(x: f32[batch, 197, 384]):
        gamma: f32[384] = Const('9c1d0f3a5b7e2468')
        n: f32[batch, 197, 384] = LayerNorm(axis=-1, eps=1e-06)(x, gamma, None)
        a, b = Split(axis=1, sizes=(1, 196))(n)
        return {'out': a, 'second': b}

Names are Python identifiers derived from the hints of values. Original names of inputs stand as default values, of
outputs as keys of the returned dict, of the graph as docstring, where they differ. `opsets = {'': 17}` comes first if
the graph has operator-set versions. Constants of up to 16 elements are written out, others named by digest.
"""

from __future__ import annotations

import itertools
import keyword
import math
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np

from planish.ir import dtypes
from planish.ir.data import Data
from planish.ir.dtypes import DType
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, Op, Return
from planish.ir.ops.opaque import Opaque
from planish.ir.parser import array_of
from planish.ir.parser import parse_graph as parse_graph
from planish.ir.types import OtherType, TensorType

INLINE_LIMIT = 16  # elements of a constant that are written out


def print_graph(graph: Graph, *, locs: bool = False) -> str:
    """The graph as text; `locs` adds the provenance of each node as a comment.

    Loads and hashes constants of more than 16 elements. A graph without Return ends in `...`, which doesn't parse.
    """
    names = _Names()
    lines = [f"def {_identifier(graph.name) or 'graph'}({_parameters(graph.inputs, names)}):"]
    if _identifier(graph.name) != graph.name:
        lines.append(f"    {graph.name!r}")
    if graph.opsets:
        lines.append(f"    opsets = {dict(sorted(graph.opsets.items()))!r}")
    for node in graph:
        comment = "  # " + " ".join(str(node.loc).split()) if locs and str(node.loc) else ""
        lines.append(f"    {_statement(node, names, digests=True)}{comment}")
    if graph.tail is None or not graph.tail.op.is_return:
        lines.append("    ...")
    return "\n".join(lines) + "\n"


def print_around(graph: Graph, node: Node, lines: int = 3) -> str:
    """The node, marked with `>`, among up to `lines` nodes before and after it. Looks at no more than these.

    Names are those of the hints, and constants are shown by type, so that this is cheap for graphs of any size.
    """
    before: list[Node] = []
    after: list[Node] = []
    if node.graph is graph:
        while len(before) < lines and (previous := (before[-1] if before else node).prev) is not None:
            before.append(previous)
        while len(after) < lines and (following := (after[-1] if after else node).next) is not None:
            after.append(following)
    names = _Names()
    shown = [*reversed(before), node, *after]
    return "\n".join(("> " if n is node else "  ") + _statement(n, names, digests=False) for n in shown)


def constants_of(graph: Graph) -> dict[str, Data]:
    """The constants that the text names by digest, in order of appearance: what `parse_graph` needs besides it."""
    found: dict[str, Data] = {}
    for node in graph:
        for data in _constants(getattr(node.op, f.name) for f in fields(node.op)):  # type: ignore[arg-type]
            if _inline(data) is None:
                found.setdefault(data.digest, data)
    return found


def payloads_of(graph: Graph) -> dict[str, object]:
    """The payloads of opaque nodes under the names that the text gives them."""
    names = _Names()
    for value in graph.inputs:
        names.of(value)
    found: dict[str, object] = {}
    for node in graph:
        results = [names.of(value) for value in node.results]
        if isinstance(node.op, Opaque) and node.op.payload is not None:
            found[_payload_name(results)] = node.op.payload
    return found


class _Names:
    """Unique identifiers for values, given out in the order of asking."""

    def __init__(self) -> None:
        self._names: dict[Value, str] = {}
        self._taken = {"opsets"}
        self._suffixes: dict[str, itertools.count[int]] = {}

    def of(self, value: Value) -> str:
        if (name := self._names.get(value)) is None:
            name = self._names[value] = self._fresh(_identifier(value.hint))
            self._taken.add(name)
        return name

    def _fresh(self, base: str) -> str:
        if base and base not in self._taken:
            return base
        suffixes = self._suffixes.setdefault(base, itertools.count(1 if base else 0))
        stem = f"{base}_" if base else "v"
        return next(name for i in suffixes if (name := f"{stem}{i}") not in self._taken)


def _identifier(hint: str) -> str:
    """An ASCII identifier of similar spelling; "" if nothing of the hint can be kept."""
    name = re.sub(r"[^0-9A-Za-z_]", "_", hint)
    if not name.strip("_"):
        return ""
    return f"_{name}" if name[0].isdigit() else f"{name}_" if keyword.iskeyword(name) else name


def _parameters(inputs: Iterable[Value], names: _Names) -> str:
    shown, named = [], False
    for value in inputs:
        name = names.of(value)
        named = named or name != value.hint  # Python wants a default value on all parameters after the first that has
        shown.append(f"{name}: {value.type}" + (f" = {value.hint!r}" if named else ""))
    return ", ".join(shown)


def _statement(node: Node, names: _Names, digests: bool) -> str:
    operands = ["None" if operand is None else names.of(operand) for operand in node.operands]
    if isinstance(node.op, Return):
        return _return(node.op.names, operands)
    results = [names.of(value) for value in node.results]
    call = _op(node.op, digests, results)
    if not isinstance(node.op, Const):
        call += f"({', '.join(operands)})"
    if len(results) == 1:
        return f"{results[0]}: {node.results[0].type} = {call}"
    return f"{', '.join(results)} = {call}" if results else call


def _return(names: tuple[str, ...], operands: list[str]) -> str:
    if list(names) == operands:
        return f"return {', '.join(operands)}".rstrip()
    pairs = itertools.zip_longest(names, operands, fillvalue="?")
    return "return {" + ", ".join(f"{name!r}: {operand}" for name, operand in pairs) + "}"


def _op(op: Op, digests: bool, results: list[str]) -> str:
    if isinstance(op, Const):
        return _data(op.data, "Const", digests)
    shown = []
    for field in fields(op):  # type: ignore[arg-type]
        value = getattr(op, field.name)
        if field.name == "payload" and isinstance(op, Opaque):
            if value is None:
                continue
            value = _payload_name(results)
        shown.append(f"{field.name}={_literal(value, digests)}")
    return f"{op.name}({', '.join(shown)})"


def _payload_name(results: list[str]) -> str:
    return results[0] if results else "payload"


def _literal(value: object, digests: bool) -> str:
    """An attribute as a Python expression."""
    if isinstance(value, tuple):
        inside = ", ".join(_literal(item, digests) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, Data):
        return _data(value, "Data", digests)
    if isinstance(value, float):
        return repr(float(value))  # inf and nan are names that the parser knows
    if isinstance(value, DType | TensorType | OtherType):
        return str(value)
    return repr(value)


def _data(data: Data, head: str, digests: bool) -> str:
    if (inline := _inline(data)) is not None:
        return f"{head}({inline})"
    return f"{head}({data.digest!r})" if digests else f"{head}(...)"


def _inline(data: Data) -> str | None:
    """Contents of a small constant as "dtype, nested lists"; None if it is large or its bits don't survive."""
    type_ = data.type
    if (
        data.size > INLINE_LIMIT
        or type_.dtype.kind == "complex"
        or type_.interface() != TensorType(type_.dtype, type_.shape)
    ):
        return None
    array = data.numpy()
    flat = [_element(element) for element in array.reshape(-1)]
    if type_.dtype.kind == "str" and not all(isinstance(element, str | bytes) for element in flat):
        return None
    if Data(array_of(type_.dtype, array.shape, flat)) != data:
        return None  # a NaN with a payload or a sign
    if not flat:
        return f"{type_}, []"
    return f"{type_.dtype}, {_nested(flat, array.shape)}"


def _element(element: object) -> int | float | str | bytes | bool:
    """A numpy scalar as the Python value that prints shortest."""
    if isinstance(element, str | bytes):
        return element
    if isinstance(element, np.float32 | np.float16):
        return float(str(element))
    value: Any = element
    kind = dtypes.of(value.dtype).kind if isinstance(value, np.generic) else "int"
    return bool(value) if kind == "bool" else float(value) if kind == "float" else int(value)


def _nested(flat: list[int | float | str | bytes | bool], shape: tuple[int, ...]) -> str:
    if not shape:
        return repr(flat[0])
    step = math.prod(shape[1:])
    return "[" + ", ".join(_nested(flat[i : i + step], shape[1:]) for i in range(0, len(flat), step)) + "]"


def _constants(values: Iterable[object]) -> list[Data]:
    found: list[Data] = []
    for value in values:
        if isinstance(value, Data):
            found.append(value)
        elif isinstance(value, tuple):
            found.extend(_constants(value))
    return found
