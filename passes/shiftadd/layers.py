"""Weights of layers as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.codebooks import Codebook
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.types import Quant
from planish.passes.layers import Layer, replace_layer
from planish.passes.shiftadd.encoding import Curvature, error_of

SCALE_BITS = 32  # of the scale of a channel, as files store it


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


def coded(layer: Layer, books: Sequence[Codebook]) -> dict[str, Coded]:
    """The weights in each codebook: with feedback between rows, or rounded one by one where that errs less unseen."""
    curvatures, unseen, energy = [Curvature(c) for c in layer.fit.covariance], layer.rank.covariance, layer.energy

    def encoded(book: Codebook, feedback: bool) -> Coded:
        found = [c.encode(w, book, feedback) for w, c in zip(layer.weights, curvatures, strict=True)]
        wrong = sum(error_of(e, w, c) for e, w, c in zip(found, layer.weights, unseen, strict=True))
        codes, lost = layer.laid_out(np.stack([e.codes for e in found])), layer.lost(np.stack([e.real for e in found]))
        scales = np.concatenate([e.scales for e in found])
        return Coded(book, codes, scales, lost, wrong / max(energy, 1e-300))

    return {book.name: min((encoded(book, f) for f in (True, False)), key=lambda one: one.noise) for book in books}


def replace_weights(graph: Graph, node: Node, found: Coded, by: str) -> Value:
    """Give `node` of `graph` the codes, and its bias what they lose on average."""
    op = node.op
    axis = 0 if isinstance(op, ops.Conv) else 1
    weight = Data(found.codes, Quant(tuple(found.scales.tolist()), 0, axis, found.book.name))
    made = ops.ShiftConv(op.strides, op.pads, op.dilations, op.group) if isinstance(op, ops.Conv) else ops.ShiftLinear()
    return replace_layer(graph, node, made, weight, found.lost, by)
