"""Runs a graph with numpy, op by op: the meaning that every backend is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.errors import CalibrationError, UnsupportedOp, VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Return
from planish.ir.ops.opaque import Opaque
from planish.ir.types import TensorType

Tap = Callable[[Value, np.ndarray], None]
OpaqueEvaluator = Callable[[Node, Sequence["np.ndarray | None"]], Sequence[object]]


def interpret(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    *,
    taps: Tap | None = None,
    opaque: OpaqueEvaluator | None = None,
) -> dict[str, np.ndarray]:
    """The outputs by name, for the given inputs by name.

    taps: called with each value and its array once it is computed, inputs included. opaque: evaluates Opaque nodes.
    Arrays are dropped after their last use. Floating-point warnings (overflow, division by zero) are silenced, as the
    results follow IEEE 754.
    Raises CalibrationError if feeds are missing, unknown, or don't fit the input types or each other's symbolic
    dimensions; UnsupportedOp for an Opaque node without evaluator; VerifyError if an op computes something else than
    its type says, or the graph has no Return.
    """
    if graph.tail is None or not isinstance(graph.tail.op, Return):
        raise VerifyError("the graph has no Return and can't be run", where=f"graph {graph.name}")
    run = _Run(graph, taps, opaque)
    run.feed(graph.inputs, feeds)
    for node in graph:
        if node is not graph.tail:
            run.step(node)
    return run.results(graph.tail, graph.tail.op.names)


class _Run:
    """State of one run: arrays of live values, uses left of each, and symbols bound so far."""

    def __init__(self, graph: Graph, taps: Tap | None, opaque: OpaqueEvaluator | None):
        self._taps, self._opaque = taps, opaque
        self._arrays: dict[Value, np.ndarray] = {}
        self._uses: dict[Value, int] = {}
        self._binding: dict[str, Dim] = {}
        for node in graph:
            for value in node.inputs:
                self._uses[value] = self._uses.get(value, 0) + 1

    def feed(self, inputs: Sequence[Value], feeds: Mapping[str, np.ndarray]) -> None:
        names = [value.hint for value in inputs]
        missing = [name for name in names if name not in feeds]
        unknown = [name for name in feeds if name not in names]
        if missing or unknown:
            raise CalibrationError(
                "; ".join(
                    f"{what} {', '.join(which)}"
                    for what, which in (("no data for inputs", missing), ("data for unknown inputs", unknown))
                    if which
                ),
                remedy=f"feed exactly {', '.join(names)}",
            )
        fed = {value: np.asarray(feeds[value.hint]) for value in inputs}
        order = sorted(fed, key=lambda value: not _binds(value))  # plain symbols bind, then expressions are checked
        for value in order:
            if (fault := self._fault(value, fed[value])) is not None:
                raise CalibrationError(f"input {value.hint} is {value.type}, but the data are {fault}")
        for value in inputs:
            self._keep(value, fed[value])

    def step(self, node: Node) -> None:
        operands = [None if value is None else self._arrays[value] for value in node.operands]
        for value, array in zip(node.results, self._evaluate(node, operands), strict=True):
            if (fault := self._fault(value, array)) is not None:
                raise VerifyError(
                    f"{node.op.name} computed {fault} where its type says {value.type}", where=str(node.loc)
                )
            self._keep(value, array)
        for value in node.inputs:
            self._release(value)

    def results(self, tail: Node, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._arrays[value] for name, value in zip(names, tail.inputs, strict=True)}

    def _evaluate(self, node: Node, operands: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        if isinstance(node.op, Opaque):
            if self._opaque is None:
                raise UnsupportedOp(
                    f"{node.op.domain or 'ai.onnx'}.{node.op.op_type} isn't modelled and can't be run with numpy",
                    where=str(node.loc),
                    remedy="pass an evaluator for opaque nodes, or run the model with a backend",
                )
            computed: object = tuple(self._opaque(node, operands))
        else:
            with np.errstate(all="ignore"):
                computed = node.op.compute(operands, [None if v is None else v.type for v in node.operands])
        results = [np.asarray(array) for array in (computed if isinstance(computed, tuple) else (computed,))]
        if len(results) != len(node.results):
            raise VerifyError(
                f"{node.op.name} computed {len(results)} results instead of {len(node.results)}", where=str(node.loc)
            )
        return results

    def _keep(self, value: Value, array: np.ndarray) -> None:
        if self._taps is not None:
            self._taps(value, array)
        if self._uses.get(value):
            self._arrays[value] = array

    def _release(self, value: Value) -> None:
        self._uses[value] -= 1
        if not self._uses[value]:
            del self._arrays[value]

    def _fault(self, value: Value, array: np.ndarray) -> str | None:
        """What is wrong with an array for a value, None if it fits. Binds symbols seen for the first time."""
        type_ = value.type
        if not isinstance(type_, TensorType):
            return None
        shown = f"{array.dtype}{list(array.shape)}"
        if array.dtype != type_.dtype.storage and not (array.dtype.kind in "US" and type_.dtype == dtypes.string):
            return shown
        if type_.shape is None:
            return None
        if len(type_.shape) != array.ndim:
            return shown
        for dim, extent in zip(type_.shape, array.shape, strict=True):
            if dim == extent:
                continue
            if isinstance(dim, str) and dim.isidentifier():
                if (bound := self._binding.setdefault(dim, extent)) != extent:
                    return f"{shown} where {dim} is {bound}"
            elif isinstance(dim, int) or not dims.may_equal(dims.substitute(dim, self._binding), extent):
                return shown
        return None


def _binds(value: Value) -> bool:
    """True if all symbolic dimensions of the value are plain symbols."""
    shape = value.type.shape if isinstance(value.type, TensorType) else None
    return all(isinstance(dim, int) or dim.isidentifier() for dim in shape or ())
