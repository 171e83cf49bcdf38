"""How much each layer suffers from quantization, measured on calibration samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir.graph import Graph, Node, Value
from planish.ir.ops.quantize import quant_of
from planish.passes.base import Context
from planish.passes.integer.plan import Plan, key_of

SAMPLES = 4  # feeds that are compared


@dataclass(frozen=True)
class LayerError:
    """One product of the integer graph against the same of the float graph.

    activation_db: signal-to-noise ratio that 8-bit codes of its activations can be expected to have, not evened out.
    output_db: measured at its result, with all the noise of the layers before. bits: of its activations.
    """

    layer: str
    op: str
    bits: int
    activation_db: float
    output_db: float


def layer_errors(
    reference: Graph, graph: Graph, pairs: Sequence[tuple[Node, Value, Value]], plan: Plan, context: Context
) -> list[LayerError]:
    """Errors of the layers in `pairs`: the float node, its result in `reference`, and the sums in `graph`."""
    if context.taps is None or context.calibration is None or not pairs:
        return []
    true = context.taps(reference, [value for _, value, _ in pairs])
    coded = context.taps(graph, [sums for _, _, sums in pairs])
    signal, noise = np.zeros(len(pairs)), np.zeros(len(pairs))
    for feed in itertools.islice(context.calibration, SAMPLES):
        for i, (x, q) in enumerate(zip(true(feed), coded(feed), strict=True)):
            quant = quant_of("sums", pairs[i][2].type)
            real = (q.astype(np.float64) - quant.zero) * quant.along(q.ndim)
            signal[i] += float(np.sum(x.astype(np.float64) ** 2))
            noise[i] += float(np.sum((real - x) ** 2))
    return [
        LayerError(
            key_of(node),
            node.op.name,
            sums.node.inputs[0].tensor.dtype.bits if sums.node is not None else 8,
            plan.sqnr(node.inputs[0], plan.operand(node.inputs[0])),
            _decibels(signal[i], noise[i]),
        )
        for i, (node, _, sums) in enumerate(pairs)
    ]


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
