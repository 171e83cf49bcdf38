"""Known contents of integer tensors through arithmetic, element by element (`TensorType.known`).

Symbols stand for dimensions, which are never negative: an expression without a minus sign isn't either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.dtypes import DType
from planish.ir.errors import VerifyError
from planish.ir.types import KNOWN_LIMIT, TensorType

Elementwise = Callable[..., Dim | bool | None]


def combine(function: Elementwise, result: TensorType, *operands: TensorType) -> TensorType:
    """`result` with contents `function(elements of the operands)`, where those are known, decided and in range.

    `function` takes one dimension per operand and returns None where the outcome depends on the symbols.
    """
    shape = result.shape
    if shape is None or len(shape) > 1 or any(operand.known is None for operand in operands):
        return result
    if not _carries(result.dtype) or (shape and not isinstance(shape[0], int)):
        return result
    size = int(shape[0]) if shape else 1
    if size > KNOWN_LIMIT:
        return result
    contents = [operand.known for operand in operands if operand.known is not None]
    columns = [part if len(part) == size else part * size for part in contents]
    known: list[Dim] = []
    for elements in zip(*columns, strict=True) if columns else [()] * size:
        try:
            element = function(*elements)
        except VerifyError:
            return result
        if element is None or not _fits(element, result.dtype):
            return result
        known.append(int(element) if isinstance(element, bool) else element)
    return replace(result, known=tuple(known))


def never_negative(dim: Dim) -> bool:
    """True if the dimension is provably 0 or more."""
    return dim >= 0 if isinstance(dim, int) else "-" not in dim


def at_least(a: Dim, b: Dim) -> bool:
    """True if a >= b for every value of the symbols, as far as can be seen."""
    return never_negative(dims.sub(a, b))


def equal(a: Dim, b: Dim) -> bool | None:
    """Whether a == b; None if that depends on the symbols."""
    if a == b:
        return True
    return False if at_least(a, dims.add(b, 1)) or at_least(b, dims.add(a, 1)) else None


def greater_or_equal(a: Dim, b: Dim) -> bool | None:
    """Whether a >= b; None if that depends on the symbols."""
    if at_least(a, b):
        return True
    return False if at_least(b, dims.add(a, 1)) else None


def larger(a: Dim, b: Dim) -> Dim | None:
    """The greater of both; None if it depends on the symbols which that is."""
    return a if at_least(a, b) else b if at_least(b, a) else None


def smaller(a: Dim, b: Dim) -> Dim | None:
    """The lesser of both; None if it depends on the symbols which that is."""
    return b if at_least(a, b) else a if at_least(b, a) else None


def divide(a: Dim, b: Dim) -> Dim | None:
    """a / b rounded toward zero; None if the divisor is zero or a symbolic operand may be negative."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return dims.floordiv(a, b) if never_negative(a) and never_negative(b) else None


def remainder(a: Dim, b: Dim) -> Dim | None:
    """a modulo b with the sign of b; None unless both are constant or the division is exact."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return 0 if dims.mul(dims.floordiv(a, b), b) == a else None


def _carries(dtype: DType) -> bool:
    return dtype in (dtypes.i64, dtypes.i32, dtypes.boolean)


def _fits(element: Dim | bool, dtype: DType) -> bool:
    if dtype == dtypes.boolean:
        return isinstance(element, bool) or element in (0, 1)
    return isinstance(element, str) or dtype.min <= int(element) <= dtype.max
