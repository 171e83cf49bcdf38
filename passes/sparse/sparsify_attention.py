"""The pass that lets heads of attention look at the keys only that they give weight to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.attention_patterns import DENSE, Pattern
from planish.ir.graph import Graph, Node, Value
from planish.passes.allocation import Option, spread, tradeoffs
from planish.passes.base import Context, Pass
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import Bars, Distance, Judge, joined, three_sets
from planish.passes.rewrite import Changes
from planish.passes.sparse.attention_costs import costs_of
from planish.passes.sparse.attention_heads import Head, Observed, observe

BY = "sparsify-attention"
_POINTS = 10  # choices that are measured, before those between them
_TRIED = 1e-2  # about the error of the one attention at a time that shows how much its error harms the outputs
_MARGIN = 4.0  # times the energy of the error of the worst sample to choose on, that one of others may have
_WORTH = 0.95  # of the time of all keys, that the best choice must not take more than


@dataclass(frozen=True)
class Choice:
    """What one head gets. error: of the attention's projected results, on the samples to fit on, by this head alone.
    cost: over that of all keys.
    """

    pattern: Pattern
    error: float
    cost: float


@dataclass(frozen=True)
class SparseHeads:
    """An attention and what its heads got. errors: of each, see `Choice`. cost: of all, over that of all keys."""

    name: str
    heads: tuple[str, ...]
    errors: tuple[float, ...]
    cost: float


@dataclass(frozen=True)
class Point:
    """A choice for all heads: its cost over that of all keys, and the error on the samples to choose on."""

    cost: float
    chosen: Distance
    taken: bool


@dataclass(frozen=True)
class SparseAttentionReport:
    """The run of one `sparsify-attention`. reported: error on samples that nothing was fitted
    or compared on."""

    attentions: tuple[SparseHeads, ...]
    curve: tuple[Point, ...]
    budget: str
    chosen: Distance
    reported: Distance

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class SparsifyAttention(Pass):
    """Attention in which each head looks at some keys: near ones, those of some positions, of a phase, or none.

    Each head's patterns are weighed by the error of what the next layer makes of its results on samples, and by what
    kernels were measured to take. The cheapest choice for all heads that stays within the budget is taken: with a
    margin on each sample that it is chosen on, and on those to report on.

    max_nmse: energy of the outputs' error over their variance; 1e-4 is a relative error of 1 %. max_drop: by how much
    the metric may fall; then max_nmse doesn't count. least: positions below which nothing is tried, since the
    attention of short sequences takes little of the time.
    Source: Sparse-vDiT (arXiv 2506.03065), with relative errors, measured costs, and means for skipped heads.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    max_nmse: float = 1e-4
    max_drop: float | None = None
    least: int = 512

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises CalibrationError for too few or shared samples."""
        changes, numbers = Changes(), list[int]()
        for number, node in enumerate(graph.nodes(ops.Attention)):
            if reason := fault_of(node, self.least):
                changes.skipped.append((str(node.loc), reason))
            else:
                numbers.append(number)
        if not numbers:
            return changes
        run = _Run(self, graph, context, numbers)
        report = run.run()
        changes.skipped += run.skipped
        if report is not None:
            context.reports.append(report)
            changes.rewrites[BY] += run.replaced
        return changes

    @property
    def bars(self) -> Bars:
        """What the error has to stay within."""
        return Bars(self.max_drop, self.max_nmse)


def fault_of(node: Node, least: int) -> str:
    """Why heads of an attention can't look at some keys only; "" if they can."""
    q, k, v, *mask = node.inputs
    if mask:
        return "it has a mask"
    if not all(isinstance(dim, int) for dim in (*q.tensor.dims[1:], *k.tensor.dims[1:], v.tensor.dims[3])):
        return "its extents aren't known: fix them with --shape"
    length = int(q.tensor.dims[2])
    if length != int(k.tensor.dims[2]):
        return f"its {length} queries aren't those of its {k.tensor.dims[2]} keys"
    return f"{length} positions are too few for it to take much of the time" if length < least else ""


@dataclass(frozen=True)
class _Attention:
    """What is kept of an attention. means: float32[E] of each head. options: of each head."""

    node: Node
    means: Sequence[np.ndarray]
    options: Sequence[Sequence[Choice]]


class _Run:
    """One run on one graph, which stays as it is until a choice has been made."""

    def __init__(self, step: SparsifyAttention, graph: Graph, context: Context, numbers: Sequence[int]):
        self.step, self.graph, self.context = step, graph, context
        self.sets = three_sets(context)
        self.judge = Judge(graph, joined(self.sets.fit, self.sets.rank), context)
        self.costs = costs_of(context.target)
        self.skipped: list[tuple[str, str]] = []
        self.replaced = 0
        self.found: list[_Attention] = []
        nodes = graph.nodes(ops.Attention)
        for done, number in enumerate(numbers, 1):
            seen = observe(graph, nodes[number], self.sets.fit.feeds, context)
            options = [self._options(head, seen) for head in seen.heads]
            self.found.append(_Attention(nodes[number], [head.mean for head in seen.heads], options))
            context.progressed("weigh patterns", done, len(numbers))

    def _options(self, head: Head, seen: Observed) -> list[Choice]:
        length = head.weights[0].shape[1]
        made = [Choice(DENSE, 0.0, 1.0)]
        for pattern in head.candidates():
            cost = self.costs.of(pattern, length, head.causal)
            if cost < 1:
                made.append(Choice(pattern, head.error(pattern) / seen.energy, cost))
        return made

    def run(self) -> SparseAttentionReport | None:
        """Choose, rewrite the graph, and say what was found; None if all heads keep all keys."""
        choices = self._choices()
        measured: dict[int, Distance] = {}
        sample = spread(len(choices), _POINTS)
        for done, place in enumerate(sample, 1):
            measured[place] = self.judge.distance(self._copy(choices[place]))
            self.context.progressed("measure choices", done, len(sample))
        taken = self._cheapest_allowed(choices, measured)
        reporting = Judge(self.graph, self.sets.report, self.context)
        reported = reporting.distance(self._copy(choices[taken]))
        while not self.step.bars.allows(reported) and taken < len(choices) - 1:
            taken += 1
            reported = reporting.distance(self._copy(choices[taken]))
        choice = choices[taken]
        if taken not in measured:
            measured[taken] = self.judge.distance(self._copy(choice))
        if self._cost(choice) > _WORTH:
            reason = f"no cheaper choice of keys fits: {self.step.bars}"
            self.skipped += [(str(found.node.loc), reason) for found in self.found]
            return None
        points = tuple(Point(self._cost(choices[i]), measured[i], i == taken) for i in sorted(measured))
        rows = []
        for found, heads in zip(self.found, choice, strict=True):
            cost = float(np.mean([head.cost for head in heads]))
            names, errors = tuple(str(head.pattern) for head in heads), tuple(head.error for head in heads)
            rows.append(SparseHeads(found.node.label, names, errors, cost))
            if set(names) == {"dense"}:
                self.skipped.append((str(found.node.loc), f"its heads need all keys: {self.step.bars}"))
        self._apply(choice)
        return SparseAttentionReport(tuple(rows), points, str(self.step.bars), measured[taken], reported)

    def _choices(self) -> list[tuple[tuple[Choice, ...], ...]]:
        """The choices to take one of, the cheapest first; by attention and head."""
        table: list[list[Option[Choice]]] = []
        for number, found in enumerate(self.found):
            harm = self._harm(number)
            q, v = found.node.inputs[0].tensor, found.node.inputs[2].tensor
            work = float(int(q.dims[2]) ** 2 * (int(q.dims[3]) + int(v.dims[3])))
            for options in found.options:
                table.append([(work * each.cost, harm * each.error, each) for each in options])
        sizes = np.cumsum([0, *(len(found.options) for found in self.found)])
        return [tuple(flat[a:b] for a, b in pairwise(sizes)) for flat in tradeoffs(table)]

    def _harm(self, number: int) -> float:
        """Error of the outputs per error of an attention: from that attention alone."""
        tried, every = [], self.found[number].options
        wanted = _TRIED / len(every)
        for options in every:
            tried.append(min(options[1:] or options, key=lambda each: abs(math.log((each.error + 1e-12) / wanted))))
        copy, twins = self.graph.clone()
        self._replace(copy, twins, number, tried)
        distance, error = self.judge.distance(copy), sum(each.error for each in tried)
        self.context.progressed("try attentions", number + 1, len(self.found))
        return distance.nmse / max(error, 1e-12) if math.isfinite(distance.nmse) else 1e12

    def _cheapest_allowed(
        self, choices: Sequence[tuple[tuple[Choice, ...], ...]], measured: dict[int, Distance]
    ) -> int:
        """The first choice within the error, by bisection between those that were measured."""

        def allows(place: int) -> bool:
            if not self.step.bars.allows(measured[place]) or self.step.max_drop is not None:
                return self.step.bars.allows(measured[place])
            return self.judge.worst(self._copy(choices[place])) <= self.step.max_nmse / _MARGIN

        allowed = [place for place in sorted(measured) if allows(place)]
        high = allowed[0] if allowed else len(choices) - 1
        low = max((place for place in measured if place < high), default=-1)
        while high - low > 1:
            middle = (low + high) // 2
            measured[middle] = self.judge.distance(self._copy(choices[middle]))
            low, high = (low, middle) if allows(middle) else (middle, high)
        return high

    def _cost(self, choice: Sequence[Sequence[Choice]]) -> float:
        return float(np.mean([each.cost for heads in choice for each in heads]))

    def _copy(self, choice: Sequence[Sequence[Choice]]) -> Graph:
        """A copy of the graph with the choice made."""
        copy, twins = self.graph.clone()
        for number, heads in enumerate(choice):
            self._replace(copy, twins, number, heads)
        return copy

    def _apply(self, choice: Sequence[Sequence[Choice]]) -> None:
        for number, heads in enumerate(choice):
            if self.context.fuelled and self._replace(self.graph, None, number, heads):
                self.replaced += 1
                self.context.burn()

    def _replace(self, graph: Graph, twins: Mapping[Value, Value] | None, number: int, heads: Sequence[Choice]) -> bool:
        """Put patterns in the place of an attention, in `graph`, whose values are twins of the original's."""
        found, patterns = self.found[number], [each.pattern for each in heads]
        node = found.node if twins is None else twins[found.node.result].node
        assert node is not None
        assert isinstance(node.op, ops.Attention)
        if all(pattern.dense for pattern in patterns):
            return False
        skipped = [each for each, pattern in zip(found.means, patterns, strict=True) if pattern.skipped]
        mean = np.stack(skipped).astype(node.result.tensor.dtype.storage) if skipped else None
        op = ops.SparseAttention(node.op.scale, tuple(map(str, patterns)), node.op.causal)
        made: Value = op(*node.inputs, mean)
        graph.attach(made, node, node.loc.made_by(BY))
        made.hint = node.result.hint
        graph.replace(node.result, made)
        graph.erase_dead([node])
        return True
