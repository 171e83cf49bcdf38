"""Dimensions: integers, or polynomials in symbols written as canonical text ("batch*196+1").

A symbolic dimension is a `str` in Python expression syntax, so types stay hashable and readable. Two dimensions are
provably equal exactly when their canonical forms are equal. `(a)//(b)` and `broadcast(a,b)` that don't simplify are
kept as atoms of the polynomial.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from planish.ir.errors import VerifyError

Dim = int | str
_Poly = dict[tuple[str, ...], int]  # monomial (sorted atoms, with repetition) to coefficient


@lru_cache(maxsize=65536)
def add(a: Dim, b: Dim) -> Dim:
    """a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    result = dict(_parse(a))
    for monomial, coefficient in _parse(b).items():
        result[monomial] = result.get(monomial, 0) + coefficient
    return _print(result)


def sub(a: Dim, b: Dim) -> Dim:
    """a - b."""
    return add(a, mul(b, -1))


@lru_cache(maxsize=65536)
def mul(a: Dim, b: Dim) -> Dim:
    """a * b."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    result: _Poly = {}
    for m1, c1 in _parse(a).items():
        for m2, c2 in _parse(b).items():
            monomial = tuple(sorted(m1 + m2))
            result[monomial] = result.get(monomial, 0) + c1 * c2
    return _print(result)


@lru_cache(maxsize=65536)
def floordiv(a: Dim, b: Dim) -> Dim:
    """a // b, simplified where the division is exact. Raises VerifyError on division by the constant zero."""
    if b == 0:
        raise VerifyError(f"dimension {a} is divided by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    exact = _divide(_parse(a), _parse(b))
    return _print(exact) if exact is not None else _print({(f"({a})//({b})",): 1})


def ceildiv(a: Dim, b: Dim) -> Dim:
    """a / b rounded up."""
    return floordiv(sub(add(a, b), 1), b)


def product(dims: Iterable[Dim]) -> Dim:
    """Product of all, 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = mul(result, dim)
    return result


def broadcast(a: Dim, b: Dim) -> Dim:
    """The dimension that numpy broadcasting gives. Raises VerifyError if the two can't go together."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        raise VerifyError(f"dimensions {a} and {b} don't broadcast")
    if isinstance(a, int) or isinstance(b, int):
        return a if isinstance(a, int) else b  # the constant isn't 1, so the symbol must be 1 or equal
    first, second = sorted((a, b))
    return f"broadcast({first},{second})"


def may_equal(a: Dim, b: Dim) -> bool:
    """False only if the two are provably different for every value of the symbols."""
    difference = sub(a, b)
    return not isinstance(difference, int) or difference == 0


def substitute(dim: Dim, binding: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced. Division and broadcasting atoms are evaluated again."""
    return dim if isinstance(dim, int) else _evaluate(_tree(dim), binding)


def canonical(text: str) -> Dim:
    """Canonical form of a dimension expression; text that is none becomes one symbol of similar spelling."""
    try:
        return _evaluate(_tree(text), {})
    except (SyntaxError, VerifyError):
        return "d_" + (re.sub(r"\W+", "_", text).strip("_") or "unnamed")


def symbols(dim: Dim) -> frozenset[str]:
    """The symbols that a dimension mentions."""
    if isinstance(dim, int):
        return frozenset()
    return frozenset(n.id for n in ast.walk(_tree(dim)) if isinstance(n, ast.Name)) - {"broadcast"}


@lru_cache(maxsize=65536)
def _tree(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def _evaluate(node: ast.expr, binding: Mapping[str, Dim]) -> Dim:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return binding.get(name, name)
        case ast.UnaryOp(op=ast.USub(), operand=a):
            return mul(_evaluate(a, binding), -1)
        case ast.BinOp(left=a, op=op, right=b):
            x, y = _evaluate(a, binding), _evaluate(b, binding)
            for kind, function in ((ast.Add, add), (ast.Sub, sub), (ast.Mult, mul), (ast.FloorDiv, floordiv)):
                if isinstance(op, kind):
                    return function(x, y)
        case ast.Call(func=ast.Name(id="broadcast"), args=[a, b]):
            return broadcast(_evaluate(a, binding), _evaluate(b, binding))
    raise VerifyError(f"{ast.unparse(node)!r} is no dimension")


@lru_cache(maxsize=65536)
def _atoms(text: str) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Polynomial of a canonical text. Division and broadcast calls are atoms."""
    if text.isidentifier():
        return (((text,), 1),)

    def walk(node: ast.expr) -> _Poly:
        match node:
            case ast.Constant(value=int(value)):
                return {(): value}
            case ast.UnaryOp(op=ast.USub(), operand=x):
                return {m: -c for m, c in walk(x).items()}
            case ast.BinOp(left=a, op=ast.Add() | ast.Sub() as op, right=b):
                result, sign = dict(walk(a)), 1 if isinstance(op, ast.Add) else -1
                for monomial, coefficient in walk(b).items():
                    result[monomial] = result.get(monomial, 0) + sign * coefficient
                return result
            case ast.BinOp(left=a, op=ast.Mult(), right=b):
                result = {}
                for m1, c1 in walk(a).items():
                    for m2, c2 in walk(b).items():
                        monomial = tuple(sorted(m1 + m2))
                        result[monomial] = result.get(monomial, 0) + c1 * c2
                return result
            case ast.BinOp(op=ast.FloorDiv(), left=a, right=b):
                return {(f"({_print(walk(a))})//({_print(walk(b))})",): 1}
            case _:
                return {(ast.unparse(node).replace(" ", ""),): 1}

    return tuple(walk(_tree(text)).items())


def _parse(dim: Dim) -> _Poly:
    return {(): dim} if isinstance(dim, int) else dict(_atoms(dim))


def _print(poly: _Poly) -> Dim:
    terms = sorted(((m, c) for m, c in poly.items() if c), key=lambda term: (-len(term[0]), term[0]))
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    parts = []
    for monomial, coefficient in terms:
        factors = "*".join(f"({atom})" if "//" in atom else atom for atom in monomial)
        size = abs(coefficient)
        text = factors if size == 1 and factors else "*".join(filter(None, (str(size), factors)))
        parts.append(("-" if coefficient < 0 else "+") + text)
    return "".join(parts).removeprefix("+")


def _divide(a: _Poly, b: _Poly) -> _Poly | None:
    """a / b if b is one monomial that divides every term of a, else None."""
    if len(b) != 1:
        return {(): 1} if a == b else None
    ((divisor, size),) = b.items()
    result: _Poly = {}
    for monomial, coefficient in a.items():
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % size:
            return None
        result[tuple(rest)] = coefficient // size
    return result
