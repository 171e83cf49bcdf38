"""What each head of an attention looks at on samples, and how far a pattern is from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planish.ir import ops
from planish.ir.attention_patterns import SKIP, Pattern
from planish.ir.graph import Graph, Node
from planish.ir.op import constant
from planish.passes.base import Context, Feeds
from planish.passes.judging import tapped

_ROWS = 256  # queries that are looked at, of each sample
_SAMPLES = 4  # at most, that weights are kept of: patterns depend little on the input, and weights are large
_GROUP = 16  # neighbouring keys that are in a stripe together
_BLOCKS = (32, 64)  # blocks of windows
_STEPS = (0, 1, 2, 4, 8)  # windows, in blocks
_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of the keys, in a stripe
_LEAST = 8  # positions of a period, and periods of a sequence


@dataclass
class Head:
    """Of one head, on some queries of some samples.

    weights: float32[R, N] for each sample, what queries give to keys. values: float32[N, E] for each, and
    given: float32[R, E], their products. gram: float64[E, E], of the rows of the output projection that read the head.
    """

    causal: bool
    rows: np.ndarray
    gram: np.ndarray
    weights: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    given: list[np.ndarray] = field(default_factory=list)

    @property
    def mean(self) -> np.ndarray:
        """float32[E]: what the head gives on average."""
        return np.asarray(np.mean(np.concatenate(self.given), axis=0), np.float32)

    def error(self, pattern: Pattern) -> float:
        """Energy of the error of the projected results, summed over queries."""
        total, mean = 0.0, self.mean if pattern.skipped else None
        kept = None if pattern.skipped else pattern.kept(self.weights[0].shape[1], self.causal)[self.rows]
        for weights, values, given in zip(self.weights, self.values, self.given, strict=True):
            found = mean
            if kept is not None:
                chosen = weights * kept
                found = (chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1e-30)) @ values
            off = (found - given).astype(np.float64)
            total += float(np.sum((off @ self.gram) * off))
        return total

    def candidates(self) -> list[Pattern]:
        """Patterns worth a try, by what the weights are concentrated on."""
        length = self.weights[0].shape[1]
        columns = np.mean([w.mean(axis=0) for w in self.weights], axis=0)
        found = [SKIP]
        for block in _BLOCKS:
            if length % block == 0:
                found += [Pattern(step * block, (), block) for step in _STEPS]
        if not self.causal:
            found += [Pattern(None, ranges(columns, share, _GROUP)) for share in _SHARES if length % _GROUP == 0]
        block = _BLOCKS[-1]
        if length % block == 0:
            near = np.abs(self.rows[:, None] // block - np.arange(length) // block) <= 1
            others = np.mean([(w * ~near).mean(axis=0) for w in self.weights], axis=0)
            chosen = dict.fromkeys(ranges(others, max(share, block / length), block) for share in _SHARES)
            found += [Pattern(block, stripe, block) for stripe in chosen]
        return found + self._periodic(length)

    def _periodic(self, length: int) -> list[Pattern]:
        """Windows about keys of the same phase, for the period that gathers most weight over what chance gives."""
        periods = [p for p in range(_LEAST, length // _LEAST + 1) if length % p == 0 and not self.causal]
        if not periods:
            return []
        gains = []
        for period in periods:
            apart = (self.rows[:, None] - np.arange(length)) % period
            same = np.minimum(apart, period - apart) <= 1
            gains.append(np.mean([(w * same).sum(axis=1).mean() for w in self.weights]) - min(1.0, 3 / period))
        period = periods[int(np.argmax(gains))]
        frames = length // period
        block = next(frames * k for k in range(1, period + 1) if period % k == 0 and frames * k >= _BLOCKS[0])
        return [Pattern(step * block, (), block, period) for step in _STEPS[:3] if block < length]


def ranges(mass: np.ndarray, share: float, group: int) -> tuple[tuple[int, int], ...]:
    """The groups of neighbours that have most of `mass`, so many that they are a share of all, as ascending ranges."""
    sums = mass.reshape(-1, group).sum(axis=1)
    count = max(1, round(share * sums.size))
    chosen = np.zeros(sums.size + 2, np.int8)
    chosen[1 + np.argsort(-sums, kind="stable")[:count]] = 1
    edges = np.diff(chosen)
    starts, ends = np.flatnonzero(edges == 1) * group, np.flatnonzero(edges == -1) * group
    return tuple((int(start), int(end)) for start, end in zip(starts, ends, strict=True))


@dataclass
class Observed:
    """The heads of an attention. energy: of its projected results, summed as errors are."""

    heads: list[Head]
    energy: float


def observe(graph: Graph, node: Node, feeds: Sequence[Feeds], context: Context) -> Observed:
    """Run some samples and keep what some queries of an attention without mask look at."""
    op = node.op
    assert isinstance(op, ops.Attention)
    q, k, v = node.inputs[:3]
    count, length, depth = (int(dim) for dim in (q.tensor.dims[1], q.tensor.dims[2], v.tensor.dims[3]))
    group = count // int(k.tensor.dims[1])
    rows = np.sort(np.random.default_rng(context.seed).permutation(length)[:_ROWS])
    projection = projection_of(node)
    parts = projection.reshape(count, depth, -1)
    heads = [Head(op.causal, rows, part @ part.T) for part in parts]
    run, energy = tapped(context, graph, [q, k, v]), 0.0
    seen = rows[:, None] >= np.arange(length) if op.causal else None
    for feed in feeds[:_SAMPLES]:
        queries, keys, values = (array.astype(np.float32) for array in run(feed))
        for sample in range(min(len(queries), _SAMPLES - len(heads[0].weights))):
            for number, head in enumerate(heads):
                own, other = queries[sample, number, rows], number // group
                scores = (own * np.float32(op.scale)) @ keys[sample, other].T
                scores = scores if seen is None else np.where(seen, scores, -np.inf)
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                head.weights.append(weights / weights.sum(axis=1, keepdims=True))
                head.values.append(values[sample, other])
                head.given.append(head.weights[-1] @ head.values[-1])
            given = np.concatenate([head.given[-1] for head in heads], axis=1)
            energy += float(np.sum((given.astype(np.float64) @ projection) ** 2))
    return Observed(heads, max(energy, 1e-30))


def projection_of(node: Node) -> np.ndarray:
    """float64[H * E, N]: the weights that read all heads side by side; ones on the diagonal where none is found."""
    _, heads, _, depth = (int(dim) if isinstance(dim, int) else 0 for dim in node.result.tensor.dims)
    value = node.result
    while len(value.uses) == 1:
        reader = value.users[0]
        if isinstance(reader.op, ops.Linear) and reader.inputs[0] is value:
            data = constant(reader.inputs[1])
            if data is not None and data.numpy().shape[0] == heads * depth:
                return data.numpy().astype(np.float64)
        moved = isinstance(reader.op, ops.Reshape) or reader.op == ops.Transpose((0, 2, 1, 3))
        if not moved:
            break
        value = reader.result
    return np.eye(heads * depth)
