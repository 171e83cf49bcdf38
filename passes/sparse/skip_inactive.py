"""The pass that makes one op of feed-forward layers of ReLU networks, where leaving neurons out is faster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from planish.ir import dtypes
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.ir.ops import Linear, Mul, Relu, ReluMLP
from planish.ir.screening import Screen, screen
from planish.passes.base import Context, Pass
from planish.passes.exactness import ROUNDING, Exactness
from planish.passes.judging import tapped
from planish.passes.rewrite import Changes

BY = "skip-inactive"
MOST_ROWS = 4  # whose active neurons together are few enough
_SKIPPING = ("tvm-cpu",)  # targets with a kernel that leaves neurons out
_SCREENED, _SCATTERED = 1.4, 1.15  # time of a byte that screens, and of one of a single row, in that of a dense layer
_CONSTANTS = 20  # bytes per neuron beside its codes
_CALL = 1 << 16  # bytes that are read in the time that quantizing inputs and adding pieces up take


@dataclass(frozen=True)
class SkippingLayer:
    """A feed-forward layer on the calibration samples.

    inactive: share of its neurons that give 0 for all rows of a sample. proved: share that the screen proves to.
    cost: time of the op over that of dense layers, both by bytes read. taken: whether the op was made.
    """

    name: str
    neurons: int
    inactive: float
    proved: float
    cost: float
    taken: bool


@dataclass(frozen=True)
class SkipReport:
    """The run of one `skip-inactive`."""

    layers: tuple[SkippingLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class _Found:
    """Linear -> Relu -> Linear, or with the Relu of a gate: the last node, what it reads, and all nodes, last first."""

    down: Node
    up: Node
    gate: Node | None
    nodes: tuple[Node, ...]

    @property
    def screened(self) -> Node:
        """The layer that the rectifier reads."""
        return self.up if self.gate is None else self.gate

    @property
    def shape(self) -> tuple[int, int, int]:
        """K, F, N."""
        (depth, neurons), (_, columns) = self.up.inputs[1].tensor.dims, self.down.inputs[1].tensor.dims
        return int(depth), int(neurons), int(columns)

    def op(self) -> Value:
        """The op that computes the same."""
        parts = [_parameters(node) for node in (self.up, self.down, *([] if self.gate is None else [self.gate]))]
        (up, b_up), (down, b_down), *gate = parts
        made: Value = ReluMLP()(self.up.inputs[0], up, down, b_up, b_down, *(gate[0] if gate else ()))
        return made


@dataclass(frozen=True)
class SkipInactive(Pass):
    """Feed-forward layers of ReLU networks as one op that leaves out neurons proved to give 0, where that is faster.

    For at most four rows, as in decoding: with more, hardly a neuron is 0 for all of them. Samples tell how many
    neurons are inactive, and how many a kernel can prove to be; the op is made if it is expected to take less than
    `worth` of the time of dense layers. Nothing is approximated: a neuron that isn't proved to be 0 is computed.
    Source: "ReLU strikes back" (arXiv 2310.04564), section 4, with a bound in place of a predictor.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = ROUNDING
    needs_calibration: ClassVar[bool] = True
    worth: float = 0.95

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`."""
        changes, fitting = Changes(), []  # type: Changes, list[_Found]
        for found in _candidates(graph):
            if reason := _fault(found, graph, context):
                changes.skipped.append((str(found.down.loc), reason))
            else:
                fitting.append(found)
        if not fitting:
            return changes
        layers = []
        for found, (inactive, proved) in zip(fitting, _measured(graph, fitting, context), strict=True):
            cost = expected_cost(found.shape, found.gate is not None, inactive, proved)
            taken = cost < self.worth and context.fuelled
            layers.append(SkippingLayer(found.down.label, found.shape[1], inactive, proved, cost, taken))
            if taken:
                _replace(graph, found, context)
                changes.rewrites[BY] += 1
            elif context.fuelled:
                shown = f"{100 * inactive:.0f} % of its neurons are inactive, {100 * proved:.0f} % can be proved to be"
                reason = f"{shown}: expected to take {100 * cost:.0f} % of the time of dense layers"
                changes.skipped.append((str(found.down.loc), reason))
        context.reports.append(SkipReport(tuple(layers)))
        return changes


def expected_cost(shape: tuple[int, int, int], gated: bool, inactive: float, proved: float) -> float:
    """Time of the op over that of dense layers [K, F] and [F, N], both for a few rows and so by the bytes they read.

    Fitted to one row through 12 layers of 1024 x 4096 on Sapphire Rapids with 50 to 95 % of the neurons inactive.
    """
    depth, neurons, columns = shape
    read, active = 4 * (1 - proved) * depth, 4 * (1 - inactive) * ((depth if gated else 0) + columns)
    skipping = _SCREENED * (depth + _CONSTANTS) + _SCATTERED * (read + active)
    return (neurons * skipping + _CALL) / (4 * neurons * (depth * (1 + gated) + columns))


def _candidates(graph: Graph) -> Iterator[_Found]:
    """Places where a linear layer reads what a rectifier, or a rectified gate, makes of another one."""
    for down in graph.nodes(Linear):
        hidden = down.inputs[0].node
        if hidden is None:
            continue
        for relu, other in _orders(hidden):
            first = relu.inputs[0].node if relu is not None and isinstance(relu.op, Relu) else None
            if relu is None or first is None or not isinstance(first.op, Linear):
                continue
            if relu is hidden:
                yield _Found(down, first, None, (down, relu, first))
            elif other is not None and isinstance(other.op, Linear) and _are_parallel(first, other):
                yield _Found(down, other, first, (down, hidden, relu, first, other))
                break


def _orders(hidden: Node) -> list[tuple[Node | None, Node | None]]:
    """What may be the rectifier of a layer, and what is multiplied with it."""
    if not isinstance(hidden.op, Mul):
        return [(hidden, None)]
    one, two = (value.node for value in hidden.inputs)
    return [(one, two), (two, one)]


def _are_parallel(gate: Node, up: Node) -> bool:
    """True if two layers read the same and give as much."""
    return gate.inputs[0] is up.inputs[0] and gate.inputs[1].tensor.dims == up.inputs[1].tensor.dims


def _fault(found: _Found, graph: Graph, context: Context) -> str:
    """Why the op can't stand for these nodes, or wouldn't help; "" if it may."""
    if context.target not in _SKIPPING:
        return f"target {context.target} computes all neurons anyway; {', '.join(_SKIPPING)} can leave some out"
    x, outputs = found.up.inputs[0].tensor, set(graph.outputs)
    if x.dtype != dtypes.f32:
        return f"it computes in {x.dtype}, not f32"
    rows = math.prod(dim for dim in x.dims[:-1] if isinstance(dim, int))
    if not all(isinstance(dim, int) for dim in x.dims[:-1]):
        return "how many rows it has isn't known: bind symbolic dimensions with --shape"
    if not 0 < rows <= MOST_ROWS:
        return f"it has {rows} rows; with more than {MOST_ROWS}, hardly a neuron is inactive for all"
    if any(node.result in outputs or len(node.result.uses) > 1 for node in found.nodes[1:]):
        return "something else reads what its neurons give"
    known = [constant(value) for node in found.nodes if isinstance(node.op, Linear) for value in node.inputs[1:]]
    arrays = [data.numpy() for data in known if data is not None]
    if len(arrays) < len(known):
        return "its weights aren't constant"
    if any(array.ndim == 2 and not array.size for array in arrays):
        return "it is empty"
    return "" if all(np.isfinite(array).all() for array in arrays) else "its weights hold infinity or NaN"


def _measured(graph: Graph, found: Sequence[_Found], context: Context) -> list[tuple[float, float]]:
    """Shares of neurons of each layer that are inactive, and that can be proved to be, on average over samples."""
    layers = [(weights.T, bias, screen(weights.T, bias)) for weights, bias in (_arrays(f.screened) for f in found)]
    run = tapped(context, graph, [each.up.inputs[0] for each in found])
    feeds = context.calibration or []
    totals = np.zeros((len(found), 2))
    for done, feed in enumerate(feeds, 1):
        for i, (x, layer) in enumerate(zip(run(feed), layers, strict=True)):
            totals[i] += _shares(x.reshape(-1, x.shape[-1]), *layer)
        context.progressed("measure activations", done, len(feeds))
    return [(float(inactive), float(proved)) for inactive, proved in totals / max(len(feeds), 1)]


def _shares(x: np.ndarray, weights: np.ndarray, bias: np.ndarray | None, screened: Screen) -> tuple[float, float]:
    """Shares of neurons that give 0 for all rows [T, K], and that the screen proves to. weights: [F, K]."""
    with np.errstate(all="ignore"):
        values = x @ weights.T + (0 if bias is None else bias)
    return float(np.mean(np.all(values <= 0, axis=0))), float(np.mean(np.all(screened.proves(x), axis=0)))


def _replace(graph: Graph, found: _Found, context: Context) -> None:
    made, old = found.op(), found.down.result
    graph.attach(made, found.down, found.down.loc.made_by(BY))
    made.hint = old.hint
    context.on_rewrite(BY, old, made)
    graph.replace(old, made)
    graph.erase_dead(list(found.nodes))
    context.burn()


def _parameters(node: Node) -> tuple[Value, Value | None]:
    _, weights, *bias = node.inputs
    return weights, bias[0] if bias else None


def _arrays(node: Node) -> tuple[np.ndarray, np.ndarray | None]:
    weights, *bias = [data.numpy() for value in node.inputs[1:] if (data := constant(value)) is not None]
    return weights, bias[0] if bias else None
