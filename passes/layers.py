"""Linear layers and convolutions with constant weights, as matrices beside the moments of what they multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.ir.types import TensorType
from planish.passes.calibration.gram import Gram
from planish.passes.rewrite import Changes


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution.

    weights: float64[G, K, N], columns of each group of channels. fit, rank: moments of what it reads, of the samples to
    fit on and of others to judge by.
    """

    node: Node
    weights: np.ndarray
    fit: Gram
    rank: Gram

    @property
    def name(self) -> str:
        return self.node.label

    @property
    def products(self) -> int:
        """Products of numbers for one sample; symbolic extents count once."""
        places = [dim for dim in self.node.result.tensor.dims if isinstance(dim, int)]
        return math.prod(places) * self.weights.shape[1]

    @property
    def energy(self) -> float:
        """Energy of its results, beyond their mean, on samples that nothing is fitted on."""
        found = zip(self.weights, self.rank.covariance, strict=True)
        return sum(float(np.sum(w * (c @ w))) for w, c in found)

    def laid_out(self, found: np.ndarray) -> np.ndarray:
        """Matrices [G, K, N] in the layout of its weights."""
        shape = tuple(int(dim) for dim in self.node.inputs[1].tensor.dims)
        return found[0] if not isinstance(self.node.op, ops.Conv) else np.swapaxes(found, 1, 2).reshape(shape)

    def lost(self, found: np.ndarray) -> np.ndarray:
        """By how much results are smaller on average with other weights [G, K, N]: float64, one per channel."""
        groups = zip(self.fit.mean, self.weights, found, strict=True)
        return np.concatenate([mean @ (w - other) for mean, w, other in groups])


def eligible(graph: Graph, keep: Sequence[str], changes: Changes) -> list[Node]:
    """Layers whose weights may change; the others are noted as skipped. keep: names of layers that are to stay."""
    found = []
    for node in graph.nodes(ops.Linear, ops.Conv):
        reason = refusal(node)
        if any(name in node.loc.sources for name in keep):
            reason = "it was asked to stay as it is"
        if reason:
            changes.skipped.append((str(node.loc), reason))
        else:
            found.append(node)
    return found


def refusal(node: Node) -> str:
    """Why the weights of a Linear or Conv can't change; "" if they can."""
    x, w = node.inputs[0], constant(node.operands[1])
    if w is None:
        return "its weights are computed"
    if x.tensor.dtype != dtypes.f32:
        return f"its input is {x.tensor.dtype}"
    if not np.all(np.isfinite(w.numpy())):
        return "its weights hold NaN or infinity"
    bias = node.operands[2] if len(node.operands) > 2 else None
    return "its bias is computed" if bias is not None and constant(bias) is None else ""


def matrices(node: Node) -> np.ndarray:
    """The weights as float64[G, K, N]."""
    data = constant(node.operands[1])
    assert data is not None
    w = data.numpy().astype(np.float64)
    if not isinstance(node.op, ops.Conv):
        return w[None]
    return np.swapaxes(w.reshape(node.op.group, w.shape[0] // node.op.group, -1), 1, 2)


def replace_layer(
    graph: Graph, node: Node, op: ops.Linear | ops.Conv | ops.ShiftLinear | ops.ShiftConv, weight: Data,
    lost: np.ndarray, by: str,
) -> Value:  # fmt: skip
    """Put an op with other weights in the place of `node`, its bias greater by what they lose on average."""
    result: Value = op(node.inputs[0], weight, raised_bias(node, lost))
    graph.attach(result, node, node.loc.made_by(by))
    result.hint = node.result.hint
    graph.replace(node.result, result)
    graph.erase_dead([node])
    return result


def raised_bias(node: Node, lost: np.ndarray) -> np.ndarray:
    """The bias of a layer, float32, greater by what its results lose on average."""
    data = constant(node.operands[2]) if len(node.operands) > 2 else None
    bias = lost if data is None else data.numpy().astype(np.float64) + lost
    return bias.astype(np.float32)


def decibels(noise: float) -> float | None:
    """The signal-to-noise ratio for noise as a share of the signal's energy; None without noise."""
    return None if noise <= 0 else -10 * math.log10(noise)


def alone(node: Node, op: ops.Linear | ops.Conv | ops.ShiftLinear | ops.ShiftConv, weight: Data) -> Graph:
    """A graph of one layer alone, on what it reads of one sample, to be timed."""
    graph = Graph("layer")
    rows = graph.add_input("x", TensorType(dtypes.f32, (1, *node.inputs[0].tensor.dims[1:])))
    bias = [constant(value) for value in node.inputs[2:]]
    y: Value = op(rows, weight, *bias)
    graph.attach(y, None, node.loc)
    graph.add(ops.Return(("y",)), y)
    return graph
