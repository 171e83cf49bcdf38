"""The pass that takes weights out of trained layers, in structures that kernels can skip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph, Node
from planish.ir.sparsity import PATTERNS
from planish.passes.allocation import Option, spread, tradeoffs
from planish.passes.base import Context, Pass
from planish.passes.calibration.gram import collect_grams
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import Bars, Distance, Judge, three_sets
from planish.passes.layers import Layer, decibels, eligible, matrices
from planish.passes.rewrite import Changes
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruned import Pruned, at_random, pruned, replace_pruned, unfit
from planish.passes.sparse.pruning import METHODS
from planish.passes.sparse.recovering import recovered
from planish.passes.sparse.report import Point, PrunedLayer, PruneReport
from planish.passes.trained import take_weights

BY = "prune"
ALL = "all"
_GRID = (1.0, 0.75, 0.625, 0.5, 0.4, 0.3, 0.2, 0.1)  # shares that may stay in a layer
_TRIED = 0.5  # in one layer at a time, to see how much its noise harms the outputs
_POINTS = 10  # choices that are measured

Choice = tuple[Pruned, ...]


@dataclass(frozen=True)
class Prune(Pass):
    """Weights of linear layers and convolutions set to zero in a structure, which needs no training.

    What vanishes is chosen, and made good by what stays, from second moments of calibration samples; biases take what
    is lost on average. How much of each layer stays follows from how much its noise harms the outputs, and from what
    its zeros save: products where a share of them is asked for; where the error has a budget and `context.clock` can
    measure layers on the target, time.

    method: "magnitude", "wanda", "sparsegpt" or "obs" (see `pruning`), or "all", and the best of them.
    structure: "unstructured", "ob4", "ob16", "ib4" or "2:4". sparsity: share of the products that is to vanish, over
    all layers. max_drop: by how much the metric may fall; max_nmse: energy of the outputs' error over their variance;
    with one of these, as much vanishes as it allows. uniform: the same share in every layer. refit: fit what stays.
    keep: names of layers that stay as they are. With `context.recover`, `sparsity` vanishes, what stays is trained with
    the zeros held, and has to be within the error's budget then.
    Source: SparseGPT (arXiv 2301.00774), OBC (arXiv 2208.11580), Wanda (arXiv 2306.11695).
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    method: str = "obs"
    structure: str = "ob4"
    sparsity: float = 0.5
    max_drop: float | None = None
    max_nmse: float | None = None
    uniform: bool = False
    refit: bool = True
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for unknown options, CalibrationError for too few or shared samples,
        GateError for a budget that no choice fits.
        """
        if self.method not in (ALL, *METHODS):
            raise UsageError(f"there is no method {self.method!r}", remedy=f"known: {', '.join((*METHODS, ALL))}")
        if self.structure not in PATTERNS:
            raise UsageError(f"there is no structure {self.structure!r}", remedy=f"known: {', '.join(PATTERNS)}")
        if not 0 < self.sparsity < 1:
            raise UsageError(f"a share of {self.sparsity:g} can't vanish", remedy="give one between 0 and 1")
        changes = Changes()
        nodes = []
        for node in eligible(graph, self.keep, changes):
            if fault := unfit(node, Structure(self.structure)):
                changes.skipped.append((str(node.loc), fault))
            else:
                nodes.append(node)
        if nodes:
            report = _Run(self, graph, context, nodes).run()
            context.reports.append(report)
            for row in report.layers:
                if row.density < 1:
                    changes.rewrites[f"{self.structure}, {report.method}"] += 1
                else:
                    changes.skipped.append((row.name, f"the budget needs all of it: {report.budget}"))
        return changes

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to try, the simplest first."""
        return tuple(METHODS) if self.method == ALL else (self.method,)

    @property
    def bars(self) -> Bars:
        """What the error has to stay within."""
        return Bars(self.max_drop, self.max_nmse)


@dataclass
class _Way:
    """What one method makes of the layers: choices, those that cost least first; the error of some; the one taken."""

    method: str
    choices: list[Choice]
    measured: dict[int, Distance] = field(default_factory=dict)
    taken: int = -1


class _Run:
    """One run on one graph, which stays as it is until a choice has been made."""

    def __init__(self, step: Prune, graph: Graph, context: Context, nodes: Sequence[Node]):
        self.step, self.graph, self.context = step, graph, context
        self.structure = Structure(step.structure)
        self.sets = three_sets(context)
        fit = collect_grams(graph, context, nodes, self.sets.fit.feeds)
        rank = collect_grams(graph, context, nodes, self.sets.rank.feeds)
        self.layers = [Layer(n, matrices(n), f, r) for n, f, r in zip(nodes, fit, rank, strict=True)]
        self.judge = Judge(graph, self.sets.rank, context)
        self.barred = step.bars != Bars() and context.recover is None  # bars then say how much vanishes
        self.budget = str(step.bars) if self.barred else f"{100 * step.sparsity:g} % of the products"

    def run(self) -> PruneReport:
        """Choose, rewrite the graph, and say what was found."""
        ways = self._ways()
        for way in ways:
            self._take(way)
        fits = [way for way in ways if way.taken >= 0]
        if not fits:
            raise GateError(f"no choice of weights fits: {self.budget}", remedy="allow more, or take less off")
        best = min(fits, key=lambda way: self._rank(way))
        choice, distance = best.choices[best.taken], best.measured[best.taken]
        student = self._copy(choice)
        recovery = recovered(student, self.graph, self.sets, self.context)
        reported = Judge(self.graph, self.sets.report, self.context).distance(student)
        if recovery is not None and not self.step.bars.allows(reported, doubts=2):
            raise GateError(
                f"after training the error isn't within the budget: {self.step.bars}",
                remedy="take less off, train for longer, or give more samples with --calib",
            )
        for layer, each in zip(self.layers, choice, strict=True):
            if each.weights is not None and self.context.fuelled:
                replace_pruned(self.graph, layer.node, each, BY)
                self.context.burn()
        if recovery is not None and self.context.fuelled:
            take_weights(self.graph, student)
        rows = tuple(_row(layer, each) for layer, each in zip(self.layers, choice, strict=True))
        curves = {way.method: self._curve(way, way is best) for way in ways}
        shown = (best.method, self.step.structure, self.budget)
        return PruneReport(rows, curves, *shown, self._density(choice), distance, reported, recovery)

    def _ways(self) -> list[_Way]:
        """The choices to take one of, by method."""
        step = self.step
        shares: tuple[float, ...] = (1 - step.sparsity,) if step.uniform and not self.barred else _GRID
        shares = (0.5, 1.0) if self.structure.fixed else shares
        options: dict[str, list[dict[float, Pruned]]] = {method: [] for method in step.methods}
        for done, layer in enumerate(self.layers, 1):
            for method, found in options.items():
                tried = sorted({*shares, _TRIED})
                found.append(pruned(layer, self.structure, method, tried, refit=step.refit))
            self.context.progressed("prune layers", done, len(self.layers))
        if step.uniform:
            return [
                _Way(method, [tuple(found[share] for found in each) for share in sorted(shares)])
                for method, each in options.items()
            ]
        harm = [self._harm(number, found[_TRIED]) for number, found in enumerate(options[step.methods[-1]])]
        costs = self._costs(shares)
        ways = []
        for method, each in options.items():
            table: list[list[Option[Pruned]]] = [
                [(cost[s], weight * found[s].noise, found[s]) for s in shares]
                for found, cost, weight in zip(each, costs, harm, strict=True)
            ]
            ways.append(_Way(method, tradeoffs(table)))
        return ways

    def _take(self, way: _Way) -> None:
        """Measure some choices, and take the one that the budget asks for, if there is one."""
        last = len(way.choices) - 1
        if not self.barred:
            rounding = 0.1 if self.step.uniform and not self.structure.fixed else 1e-3  # few blocks can't be shared out
            most = 1 - self.step.sparsity + rounding
            way.taken = max((i for i, choice in enumerate(way.choices) if self._density(choice) <= most), default=-1)
        sample = sorted({*spread(len(way.choices), _POINTS), way.taken} - {-1})
        for done, place in enumerate(sample, 1):
            way.measured[place] = self.judge.distance(self._copy(way.choices[place]))
            self.context.progressed(f"measure {way.method}", done, len(sample))
        if self.barred and self.step.bars.allows(way.measured[last]):
            allowed = [place for place in sample if self.step.bars.allows(way.measured[place])]
            way.taken = allowed[0]
            low = max((place for place in sample if place < way.taken), default=-1)
            while way.taken - low > 1:
                middle = (low + way.taken) // 2
                way.measured[middle] = self.judge.distance(self._copy(way.choices[middle]))
                low, way.taken = (low, middle) if self.step.bars.allows(way.measured[middle]) else (middle, way.taken)

    def _rank(self, way: _Way) -> float:
        """What the best way has least of: products where the error has a budget, and error otherwise."""
        return self._density(way.choices[way.taken]) if self.barred else way.measured[way.taken].nmse

    def _curve(self, way: _Way, best: bool) -> tuple[Point, ...]:
        return tuple(
            Point(self._density(way.choices[place]), distance, best and place == way.taken)
            for place, distance in sorted(way.measured.items())
        )

    def _costs(self, shares: Sequence[float]) -> list[dict[float, float]]:
        """What each layer costs with each share: seconds or products."""
        clock = self.context.clock if self.barred else None
        costs, timed = list[dict[float, float]](), dict[object, dict[float, float]]()
        static = all(isinstance(dim, int) for layer in self.layers for dim in layer.node.inputs[0].tensor.dims[1:])
        for done, layer in enumerate(self.layers, 1):
            if clock is None or not static:
                costs.append({share: layer.products * share for share in shares})
                continue
            key = (layer.node.op, layer.node.inputs[0].tensor.dims[1:], layer.weights.shape)
            if key not in timed:
                graphs = [at_random(layer, self.structure, share, self.context.seed) for share in shares]
                timed[key] = dict(zip(shares, clock(graphs), strict=True))
            costs.append(timed[key])
            self.context.progressed("time layers", done, len(self.layers))
        return costs

    def _harm(self, number: int, option: Pruned) -> float:
        """Error of the outputs per noise of a layer: from that layer alone."""
        alone = tuple(option if i == number else None for i in range(len(self.layers)))
        distance = self.judge.distance(self._copy(alone))
        self.context.progressed("try layers", number + 1, len(self.layers))
        return distance.nmse / max(option.noise, 1e-12) if math.isfinite(distance.nmse) else 1e12

    def _density(self, choice: Choice) -> float:
        """The share of the products that stays."""
        products = [layer.products for layer in self.layers]
        return sum(n * found.density for n, found in zip(products, choice, strict=True)) / sum(products)

    def _copy(self, choice: Sequence[Pruned | None]) -> Graph:
        """A copy of the graph with the choice made; None leaves a layer."""
        copy, twins = self.graph.clone()
        for layer, found in zip(self.layers, choice, strict=True):
            node = twins[layer.node.result].node
            if found is not None and found.weights is not None and node is not None:
                replace_pruned(copy, node, found, BY)
        return copy


def _row(layer: Layer, found: Pruned) -> PrunedLayer:
    return PrunedLayer(layer.name, layer.weights.size, found.density, decibels(found.noise), decibels(found.masked))
