"""Time of a compressed model from its token counts: a few are measured on the target, the rest follows from a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.graph import Graph
from planish.passes.tokens.encoder import Encoder

Tokens = Sequence[tuple[int, int]]
"""Tokens in the attention and in the MLP of each block."""


@dataclass(frozen=True)
class Latency:
    """time = fixed + linear * sum(n) + square * sum(n * n) + step * number of cuts, over the blocks' tokens n."""

    fixed: float
    linear: float
    square: float
    step: float
    full: float

    @staticmethod
    def fitted(encoder: Encoder, tried: Sequence[tuple[Tokens, float]]) -> Latency:
        """From measured times of some token counts, the first of them without compression."""
        rows = np.array([_features(encoder, tokens) for tokens, _ in tried])
        times = np.array([time for _, time in tried])
        scale = rows.max(axis=0)
        solved = _not_negative(rows / scale, times / times[0]) / scale * times[0]
        fixed, linear, square, step = map(float, solved)
        return Latency(fixed, linear, square, step, float(rows[0] @ solved))

    @staticmethod
    def counted(graph: Graph, encoder: Encoder) -> Latency:
        """From multiplications of linear layers and attention, where nothing can be measured."""
        per_token = sum(
            int(node.inputs[1].tensor.elements)
            for node in graph.nodes(ops.Linear)
            if node.inputs[0] in encoder.places and isinstance(node.inputs[1].tensor.elements, int)
        ) / len(encoder.blocks)
        keys = encoder.blocks[0].attention.inputs[1].tensor.dims
        square = 2.0 * int(keys[1]) * int(keys[3]) if all(isinstance(d, int) for d in (keys[1], keys[3])) else 0.0
        every = [(encoder.tokens, encoder.tokens)] * len(encoder.blocks)
        plain = Latency(0.0, per_token, square, 0.02 * per_token * encoder.tokens, 1.0)
        return Latency(plain.fixed, plain.linear, plain.square, plain.step, plain.of(encoder, every))

    def of(self, encoder: Encoder, tokens: Tokens) -> float:
        """The time for tokens in the attention and in the MLP of each block."""
        return float(np.dot(_features(encoder, tokens), (self.fixed, self.linear, self.square, self.step)))

    def speed(self, encoder: Encoder, tokens: Tokens) -> float:
        """How many times as fast as without compression."""
        return self.full / max(self.of(encoder, tokens), 1e-30)


def _features(encoder: Encoder, tokens: Tokens) -> tuple[float, ...]:
    """A third of the linear work lies before the cut; of a last block of which few rows are read, half of that."""
    whole = tokens if encoder.is_dense else tokens[:-1]
    linear = sum(before / 3 + 2 * behind / 3 for before, behind in whole)
    linear += 0.0 if encoder.is_dense else tokens[-1][0] / 6
    cuts = sum(1 for before, behind in tokens if behind != before)
    return 1.0, linear, float(sum(before**2 for before, _ in whole)), float(cuts)


def _not_negative(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least zero: those that would be negative are left out one by one."""
    used = list(range(rows.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(rows[:, used], times, rcond=None)
        if len(used) == 1 or found.min() >= 0:
            break
        used.pop(int(found.argmin()))
    solved = np.zeros(rows.shape[1])
    solved[used] = np.maximum(found, 0)
    return solved
