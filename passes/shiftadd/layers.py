"""Layers whose weights can become codes: their weights as matrices, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.codebooks import Codebook
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.ir.types import Quant
from planish.passes.calibration.gram import Gram
from planish.passes.shiftadd.encoding import Curvature, error_of

SCALE_BITS = 32  # of the scale of a channel, as files store it


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


@dataclass(frozen=True)
class Coded:
    """A layer's weights in a codebook.

    codes: int8 in the layout of the layer. scales: float64, one per channel. lost: float64, by how much its results
    are smaller on average, per channel, which the bias takes. noise: energy of the rest of their error over that of the
    results, on samples that nothing was fitted on.
    """

    book: Codebook
    codes: np.ndarray
    scales: np.ndarray
    lost: np.ndarray
    noise: float

    @property
    def bits(self) -> int:
        """Stored bits of codes, levels and scales."""
        axis = 1 if self.codes.ndim == 2 else 0
        return self.book.stored_bits(self.codes.shape, axis) + SCALE_BITS * len(self.scales)


def refusal(node: Node) -> str:
    """Why the weights of a Linear or Conv can't become codes; "" if they can."""
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


def coded(layer: Layer, books: Sequence[Codebook]) -> dict[str, Coded]:
    """The weights in each codebook: with feedback between rows, or rounded one by one where that errs less unseen."""
    curvatures, unseen = [Curvature(c) for c in layer.fit.covariance], layer.rank.covariance
    energy = sum(float(np.sum(w * (c @ w))) for w, c in zip(layer.weights, unseen, strict=True))

    def encoded(book: Codebook, feedback: bool) -> Coded:
        found = [c.encode(w, book, feedback) for w, c in zip(layer.weights, curvatures, strict=True)]
        wrong = sum(error_of(e, w, c) for e, w, c in zip(found, layer.weights, unseen, strict=True))
        lost = [m @ (w - e.real) for m, w, e in zip(layer.fit.mean, layer.weights, found, strict=True)]
        codes = _laid_out(layer.node, np.stack([e.codes for e in found]))
        scales = np.concatenate([e.scales for e in found])
        return Coded(book, codes, scales, np.concatenate(lost), wrong / max(energy, 1e-300))

    return {book.name: min((encoded(book, f) for f in (True, False)), key=lambda one: one.noise) for book in books}


def _laid_out(node: Node, codes: np.ndarray) -> np.ndarray:
    """Codes [G, K, N] in the layout of the node's weights."""
    shape = tuple(int(dim) for dim in node.inputs[1].tensor.dims)
    return codes[0] if not isinstance(node.op, ops.Conv) else np.swapaxes(codes, 1, 2).reshape(shape)


def replace_weights(graph: Graph, node: Node, found: Coded, by: str) -> Value:
    """Give `node` of `graph` the codes, and its bias what they lose on average."""
    op, data = node.op, constant(node.operands[2]) if len(node.operands) > 2 else None
    bias = found.lost if data is None else data.numpy().astype(np.float64) + found.lost
    axis = 0 if isinstance(op, ops.Conv) else 1
    weight = Data(found.codes, Quant(tuple(found.scales.tolist()), 0, axis, found.book.name))
    made = ops.ShiftConv(op.strides, op.pads, op.dilations, op.group) if isinstance(op, ops.Conv) else ops.ShiftLinear()
    result: Value = made(node.inputs[0], weight, bias.astype(np.float32))
    graph.attach(result, node, node.loc.made_by(by))
    result.hint = node.result.hint
    graph.replace(node.result, result)
    graph.erase_dead([node])
    return result
