"""Constant folding under a byte budget; shape arithmetic with known results folds to integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import dtypes
from planish.ir.data import Data
from planish.ir.errors import PlanishError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, as_value, constant
from planish.ir.ops import Cast, Concat, Div, Mod, Opaque, Reshape, Slice, Split, Squeeze, Transpose, Unsqueeze
from planish.ir.types import TensorType
from planish.passes.base import Context, Pass
from planish.passes.cleanup.replacing import Replacer
from planish.passes.exactness import ROUNDING, Exactness
from planish.passes.rewrite import Changes

LAZY_BYTES = 1 << 20  # results of at least this size are computed when somebody reads them, where that can't fail
_MOVES = (Concat, Reshape, Slice, Split, Squeeze, Transpose, Unsqueeze)
_FAULTS = (PlanishError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what depends on constants only, as far as the model grows by no more than a byte budget.

    Growth of one fold: bytes of its results less those of the constants that only it reads. `Context.fold_bytes` is
    what all folds together may cost; what a run spends or frees is taken from it. Integers that follow from static
    shapes (at most 64) are free. Folds over budget, results that are undefined, and evaluations that fail are left
    and reported. Rounding: numpy's functions may round unlike those of the target.
    """

    name: ClassVar[str] = "fold-constants"
    exactness: ClassVar[Exactness] = ROUNDING

    def run(self, graph: Graph, context: Context) -> Changes:
        replacer = Replacer(self.name, graph, context)
        for node in graph:
            if node.op.is_return or isinstance(node.op, Const) or not any(result.uses for result in node.results):
                continue
            known = [_known(result) for result in node.results]
            if all(data is not None for data in known):
                _replace_all(replacer, node, known)
            elif _is_constant(node):
                _fold(replacer, node)
        return replacer.changes


def _fold(replacer: Replacer, node: Node) -> None:
    """Replace the results of `node`, whose operands are constants, or say why not."""
    context = replacer.context
    if isinstance(node.op, Opaque) and (context.evaluate_opaque is None or not node.op.pure):
        return
    freed = sum(_nbytes(v) for v in dict.fromkeys(node.inputs) if v.users == [node])
    expected = sum(_nbytes(result) for result in node.results if result.uses)
    if expected - freed > context.fold_bytes:
        replacer.skip(node, _over_budget(expected - freed, context.fold_bytes))
        return
    try:
        results = _lazily(node) or _evaluate(node, context)
    except _FAULTS as error:
        replacer.skip(node, f"it can't be computed: {error.what if isinstance(error, PlanishError) else error}")
        return
    wrong = [r for r, data in zip(node.results, results, strict=True) if data is None or not r.type.accepts(data.type)]
    if wrong:
        replacer.skip(node, f"its value isn't of the type {wrong[0].type}")
        return
    growth = sum(d.nbytes for r, d in zip(node.results, results, strict=True) if r.uses and d is not None) - freed
    if growth > context.fold_bytes:  # a result of unknown shape came out larger
        replacer.skip(node, _over_budget(growth, context.fold_bytes))
    elif _replace_all(replacer, node, results):
        context.fold_bytes -= growth


def _replace_all(replacer: Replacer, node: Node, contents: Sequence[Data | None]) -> bool:
    done = True
    for result, data in zip(node.results, contents, strict=True):
        new = as_value(data)
        if result.uses and new is not None:
            done = replacer.replace(result, new, [node]) and done
    return done


def _evaluate(node: Node, context: Context) -> list[Data | None]:
    """The results; None for one that is no tensor. Raises what the evaluation raises, ValueError if undefined."""
    arrays = [data.numpy() if (data := constant(v)) is not None else None for v in node.operands]
    if isinstance(node.op, Opaque):
        results = [] if context.evaluate_opaque is None else list(context.evaluate_opaque(node, arrays))
        if len(results) != len(node.results):
            raise ValueError(f"{len(results)} results, not {len(node.results)}")
        return [Data(np.asarray(array)) if isinstance(array, np.ndarray | np.generic) else None for array in results]
    _require_defined(node, arrays)
    found = node.op.evaluate(*arrays)
    return [Data(np.asarray(array)) for array in (found if isinstance(found, tuple) else (found,))]


def _require_defined(node: Node, arrays: Sequence[np.ndarray | None]) -> None:
    first, last = arrays[0] if arrays else None, arrays[-1] if arrays else None
    if first is None or last is None:
        return
    kind = dtypes.of(first)
    if isinstance(node.op, Div | Mod) and not kind.is_float and not np.all(last):
        raise ValueError("integer division by zero")
    if isinstance(node.op, Cast) and kind.is_float and node.op.to.is_integer:
        wide = first.astype(np.float64)
        if (
            not np.all(np.isfinite(wide))
            or np.any(np.trunc(wide) < node.op.to.min)
            or np.any(wide >= node.op.to.max + 1.0)
        ):
            raise ValueError(f"a number is out of the range of {node.op.to}")


def _lazily(node: Node) -> list[Data | None] | None:
    """Results of a large computation that can't fail, as promises; None for any other."""
    op, types = node.op, [result.type for result in node.results]
    tensors = [t for t in types if isinstance(t, TensorType) and t.is_static and t.quant is None]
    undefined = isinstance(op, Div | Mod | Cast)  # may be, depending on the contents
    safe = isinstance(op, _MOVES) or (op.pointwise and not undefined)
    if isinstance(op, Cast):
        safe = op.to.is_float
    if not safe or len(tensors) != len(types) or max(map(_nbytes, (*node.results, *node.inputs))) < LAZY_BYTES:
        return None
    operands = [constant(v) for v in node.operands]

    def loader(index: int) -> Callable[[], np.ndarray]:
        def load() -> np.ndarray:
            found = op.evaluate(*(None if data is None else data.numpy() for data in operands))
            return np.ascontiguousarray(found[index] if isinstance(found, tuple) else found)

        return load

    return [Data.lazy(type_.interface(), loader(i)) for i, type_ in enumerate(tensors)]


def _is_constant(node: Node) -> bool:
    return all(constant(operand) is not None for operand in node.inputs)


def _known(value: Value) -> Data | None:
    """The contents of a value, if its type tells them all as numbers."""
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.known is None or not type_.is_static or type_.quant is not None:
        return None
    if not all(isinstance(element, int) for element in type_.known):
        return None
    return Data(np.array(type_.known, type_.dtype.storage).reshape(tuple(map(int, type_.dims))))


def _nbytes(value: Value) -> int:
    """Bytes of a value of static shape; 0 where the shape isn't known."""
    type_ = value.type
    if not isinstance(type_, TensorType) or not type_.is_static:
        return 0
    return (math.prod(map(int, type_.dims)) * type_.dtype.bits + 7) // 8


def _over_budget(growth: int, budget: int) -> str:
    return f"folding adds {growth} bytes, more than the {max(budget, 0)} that are left of the budget"
