"""Patterns: expressions over ops that match parts of a graph, read like the formula that they recognise.

    def layer_norm_parts(x, gamma: Const, beta: Const, eps: Scalar):
        centred = x - ReduceMean(axes=(-1,), keepdims=True)(x)
        variance = ReduceMean(axes=(-1,), keepdims=True)(either(centred * centred, Pow()(centred, 2.0)))
        return centred / Sqrt()(variance + eps) * gamma + beta

A parameter stands for a value; its annotation says which: none for any value, `Const` for a constant, `Array` and
`Scalar` for a constant that the rewrite receives as a numpy array or Python number, `Maybe` for an optional operand.
The same pattern object used twice must match the same value. Commutative ops match in both orders. Numbers match
constants of one element (or of equal elements) within 1e-4 relative, the precision in which exporters round them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import Op, constant
from planish.ir.ops import Add, Div, Mul, Neg, Pow, Sub


class Const:
    """Annotation of a pattern parameter: a constant; the rewrite receives its Value."""


class Array:
    """Annotation of a pattern parameter: a constant; the rewrite receives its numpy array."""


class Scalar:
    """Annotation of a pattern parameter: a constant of one element; the rewrite receives a Python number."""


class Maybe:
    """Annotation of a pattern parameter: an optional operand; the rewrite receives the Value or None."""


class Pattern:
    """Base of patterns, with the operators of arithmetic."""

    def pattern_of(self, op: Op, operands: Sequence[object]) -> Pattern:
        """What calling an op on patterns gives (see Op.__call__)."""
        return Apply(op, tuple(as_pattern(operand) for operand in operands))

    def __add__(self, other: object) -> Pattern:
        return self.pattern_of(Add(), (self, other))

    def __radd__(self, other: object) -> Pattern:
        return self.pattern_of(Add(), (other, self))

    def __sub__(self, other: object) -> Pattern:
        return self.pattern_of(Sub(), (self, other))

    def __rsub__(self, other: object) -> Pattern:
        return self.pattern_of(Sub(), (other, self))

    def __mul__(self, other: object) -> Pattern:
        return self.pattern_of(Mul(), (self, other))

    def __rmul__(self, other: object) -> Pattern:
        return self.pattern_of(Mul(), (other, self))

    def __truediv__(self, other: object) -> Pattern:
        return self.pattern_of(Div(), (self, other))

    def __rtruediv__(self, other: object) -> Pattern:
        return self.pattern_of(Div(), (other, self))

    def __pow__(self, other: object) -> Pattern:
        return self.pattern_of(Pow(), (self, other))

    def __neg__(self) -> Pattern:
        return self.pattern_of(Neg(), (self,))


@dataclass(frozen=True, eq=False)
class Var(Pattern):
    """A parameter of a pattern function: matches one value, which the rewrite receives under this name."""

    name: str
    kind: type = Value


@dataclass(frozen=True, eq=False)
class Apply(Pattern):
    """Matches a node of the op's class whose attributes equal the op's (or are captured by `attr`)."""

    op: Op
    operands: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class Literal(Pattern):
    """Matches a constant whose elements all equal `number`."""

    number: float


@dataclass(frozen=True, eq=False)
class Either(Pattern):
    """Matches what any of the alternatives matches, tried in order."""

    alternatives: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class Attr:
    """In place of an attribute: matches any value, which the rewrite receives under this name."""

    name: str


def attr(name: str) -> Any:
    """Capture an attribute: `Softmax(axis=attr("axis"))(x)`."""
    return Attr(name)


def either(*alternatives: object) -> Pattern:
    """Alternatives at one place of a pattern."""
    return Either(tuple(as_pattern(alternative) for alternative in alternatives))


def as_pattern(operand: object) -> Pattern:
    """Numbers become literals. Raises TypeError for anything else that is no pattern."""
    if isinstance(operand, Pattern):
        return operand
    if isinstance(operand, int | float):
        return Literal(float(operand))
    raise TypeError(f"{operand!r} can't stand in a pattern; use a parameter, an op applied to patterns, or a number")


def trace(function: Callable[..., object]) -> tuple[Pattern, tuple[Var, ...]]:
    """The pattern that a pattern function describes, and its parameters."""
    kinds = inspect.get_annotations(function, eval_str=True)
    variables = tuple(Var(name, kinds.get(name, Value)) for name in inspect.signature(function).parameters)
    return as_pattern(function(*variables)), variables


@dataclass
class Match:
    """A match under construction or found: values by pattern, captured attributes, matched nodes (root first)."""

    values: dict[Pattern, Value | None] = field(default_factory=dict)
    attributes: dict[str, object] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    miss: Miss | None = None  # filled only when an explanation is asked for

    def arguments(self, variables: Sequence[Var]) -> dict[str, object]:
        """What the rewrite receives: matched values by parameter name, then captured attributes."""
        bound = {v.name: _deliver(v, self.values[v]) for v in variables if v in self.values}
        absent = {v.name: None for v in variables if v not in self.values}
        return {**absent, **bound, **self.attributes}

    def foreign_use(self) -> tuple[Value, Node] | None:
        """A matched interior value that a node outside the match reads, and that node."""
        inside = set(self.nodes)
        for node in self.nodes[1:]:
            if constant(node.results[0]) is not None:
                continue
            for result in node.results:
                for user in result.users:
                    if user not in inside:
                        return result, user
        return None


@dataclass
class Miss:
    """Where the best attempt of a pattern ended: after `matched` nodes, at `value`, for `reason`."""

    matched: int = -1
    value: Value | None = None
    reason: str = ""

    def note(self, matched: int, value: Value | None, reason: str) -> None:
        if matched > self.matched:
            self.matched, self.value, self.reason = matched, value, reason


def matches(pattern: Pattern, value: Value | None, match: Match) -> Iterator[Match]:
    """All ways in which `pattern` matches `value`, extending `match`; bindings are undone between alternatives."""
    if pattern in match.values:
        if match.values[pattern] is value:
            yield match
        elif match.miss is not None:
            match.miss.note(len(match.nodes), value, "this must be the same value as elsewhere in the pattern")
        return
    match pattern:
        case Var():
            attempts = _match_var(pattern, value, match)
        case Literal():
            attempts = _match_literal(pattern, value, match)
        case Either():
            attempts = (found for option in pattern.alternatives for found in matches(option, value, match))
        case Apply():
            attempts = _match_apply(pattern, value, match)
        case _:
            raise TypeError(f"unknown pattern {pattern!r}")
    for found in attempts:
        match.values[pattern] = value
        yield found
        del match.values[pattern]


def _match_var(pattern: Var, value: Value | None, match: Match) -> Iterator[Match]:
    data = constant(value)
    if pattern.kind is Maybe:
        fits = True
    elif pattern.kind is Scalar:
        fits = data is not None and data.size == 1
    elif pattern.kind in (Const, Array):
        fits = data is not None
    else:
        fits = value is not None
    if fits:
        yield match
    elif match.miss is not None:
        match.miss.note(len(match.nodes), value, f"{pattern.name} must be a {pattern.kind.__name__.lower()}")


def _match_literal(pattern: Literal, value: Value | None, match: Match) -> Iterator[Match]:
    data = constant(value)
    if data is not None and uniform(data, pattern.number):
        yield match
    elif match.miss is not None:
        match.miss.note(len(match.nodes), value, f"the constant {pattern.number:g} is expected here")


def _match_apply(pattern: Apply, value: Value | None, match: Match) -> Iterator[Match]:
    node = value.node if value is not None else None
    if node is None or type(node.op) is not type(pattern.op) or len(node.results) != 1:
        if match.miss is not None:
            found = "a graph input" if node is None else node.op.name
            match.miss.note(len(match.nodes), value, f"{pattern.op.name} is expected here, not {found}")
        return
    captured = _captures(pattern.op, node.op)
    if captured is None:
        if match.miss is not None:
            match.miss.note(len(match.nodes), value, f"{pattern.op!r} does not match {node.op!r}")
        return
    added = {name: v for name, v in captured.items() if name not in match.attributes}
    if any(match.attributes.get(name, v) != v for name, v in captured.items()):
        if match.miss is not None:
            match.miss.note(len(match.nodes), value, "attributes differ from those matched elsewhere")
        return
    match.attributes.update(added)
    match.nodes.append(node)
    for operands in _orders(pattern, node):
        yield from _match_operands(pattern.operands, operands, match)
    match.nodes.pop()
    for name in added:
        del match.attributes[name]


def _match_operands(patterns: Sequence[Pattern], operands: Sequence[Value | None], match: Match) -> Iterator[Match]:
    if not patterns:
        yield match
        return
    for _ in matches(patterns[0], operands[0], match):
        yield from _match_operands(patterns[1:], operands[1:], match)


def _orders(pattern: Apply, node: Node) -> Iterator[tuple[Value | None, ...]]:
    """Operands of the node as the pattern counts them, in every order that the op allows."""
    wanted, operands = len(pattern.operands), node.operands
    if len(operands) > wanted and all(operand is None for operand in operands[wanted:]):
        operands = operands[:wanted]
    if len(operands) < wanted:
        operands = operands + (None,) * (wanted - len(operands))
    if len(operands) != wanted:
        return
    yield operands
    if node.op.commutative and operands[0] is not operands[1]:
        yield (operands[1], operands[0], *operands[2:])


def _captures(wanted: Op, found: Op) -> dict[str, object] | None:
    captured: dict[str, object] = {}
    for f in fields(wanted):  # type: ignore[arg-type]
        expected, actual = getattr(wanted, f.name), getattr(found, f.name)
        if isinstance(expected, Attr):
            captured[expected.name] = actual
        elif expected != actual:
            return None
    return captured


def _deliver(variable: Var, value: Value | None) -> object:
    data = constant(value)
    if variable.kind is Array and data is not None:
        return data.numpy()
    if variable.kind is Scalar and data is not None:
        return data.numpy().reshape(-1)[0].item()
    return value


def uniform(data: Data, number: float) -> bool:
    """True if all elements of the constant equal `number` within 1e-4 relative."""
    dtype = data.type.dtype
    if data.size == 0 or data.size > 4096 or not (dtype.is_float or dtype.is_integer):
        return False
    array = data.numpy().reshape(-1)
    first = float(array[0])
    close = math.isclose(first, number, rel_tol=1e-4, abs_tol=0.0)
    return close and (array.size == 1 or bool(np.all(array == array[0])))
