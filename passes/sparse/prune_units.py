"""The pass that takes neurons of MLPs and heads of attention out of trained models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.data import Data
from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph, Node
from planish.passes.allocation import Option, spread, tradeoffs
from planish.passes.base import Context, Pass
from planish.passes.calibration.gram import collect_grams
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import Bars, Distance, Judge, three_sets
from planish.passes.layers import decibels, matrices, refusal, replace_layer
from planish.passes.rewrite import Changes
from planish.passes.sparse.bundles import Bundle, Seed, bundle_of, seeds
from planish.passes.sparse.drop_zero_channels import DropZeroChannels
from planish.passes.sparse.pruning import damped
from planish.passes.sparse.report import Point
from planish.passes.sparse.unit_pruning import Fitted, Part, elimination, fitted, rows_of, widths
from planish.passes.sparse.unit_rules import Entangled
from planish.passes.sparse.units_report import PrunedUnits, UnitsReport

BY = "prune-units"
_GRID = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.1)  # shares that may stay in a layer
_TRIED = 0.5  # in one layer at a time, to see how much its noise harms the outputs
_POINTS = 12  # choices that are measured

Choice = tuple[Fitted, ...]
Table = list[list[Option[Fitted]]]


@dataclass(frozen=True)
class PruneUnits(Pass):
    """Neurons of MLPs and heads of attention vanish, without training: narrower layers are faster on every runtime.

    Those go that harm least. What stays is fitted to make them good, by second moments of calibration samples, and
    biases take their mean. How many each layer loses follows from how much its noise harms the outputs.

    neurons, heads: shares that are to vanish, over all layers. max_drop: by how much the metric may fall; max_nmse:
    energy of the outputs' error over their variance; with one of these, as much vanishes of both as it allows. uniform:
    the same share in every layer. refit: fit what stays. keep: names of layers whose inputs stay as they are.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    neurons: float = 0.25
    heads: float = 0.0
    max_drop: float | None = None
    max_nmse: float | None = None
    uniform: bool = False
    refit: bool = True
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for impossible shares, CalibrationError for too few or shared samples,
        GateError for a budget that no choice fits.
        """
        for share in (self.neurons, self.heads):
            if not 0 <= share < 1:
                raise UsageError(f"a share of {share:g} can't vanish", remedy="give one from 0 to below 1")
        changes = Changes()
        found = [
            (seed, bundle)
            for seed, bundle in _bundles(graph, self.keep, changes)
            if self.barred or (self.heads if bundle.are_heads else self.neurons)
        ]
        if found:
            report = _Run(self, graph, context, found).run()
            context.reports.append(report)
            for row in report.layers:
                changes.rewrites[row.kind] += row.units - row.kept
        return changes

    @property
    def bars(self) -> Bars:
        """What the error has to stay within."""
        return Bars(self.max_drop, self.max_nmse)

    @property
    def barred(self) -> bool:
        """True if the error has a budget."""
        return self.bars != Bars()

    @property
    def budget(self) -> str:
        """The budget in words."""
        parts = [f"{100 * s:g} % of the {kind}" for s, kind in ((self.neurons, "neurons"), (self.heads, "heads")) if s]
        return str(self.bars) or " and ".join(parts)


def _bundles(graph: Graph, keep: Sequence[str], changes: Changes) -> list[tuple[Seed, Bundle]]:
    """Units that one Linear sums up."""
    found: dict[Node, tuple[Seed, Bundle]] = {}
    for seed in seeds(graph):
        if seed.units < 2:
            continue
        try:
            bundle = bundle_of(seed)
        except Entangled as why:
            if isinstance(seed.node.op, ops.Attention):
                changes.skipped.append((str(seed.node.loc), f"its heads stay: {why}"))
            continue
        reasons = [reason for sink in bundle.sinks for reason in [_reason(bundle, sink, keep)] if reason]
        if reasons:
            changes.skipped.append((str(seed.node.loc), reasons[0]))
        elif bundle.sinks and bundle.sources:
            found.setdefault(bundle.sinks[0], (seed, bundle))
    changes.skipped = list(dict.fromkeys(changes.skipped))
    return list(found.values())


def _reason(bundle: Bundle, sink: Node, keep: Sequence[str]) -> str:
    """Why units can't vanish at a layer that sums them up; "" if they can."""
    if any(name in sink.loc.sources for name in keep):
        return "it was asked to stay as it is"
    if len(bundle.sinks) > 1:
        return f"{len(bundle.sinks)} layers read its units"
    if not isinstance(sink.op, ops.Linear):
        return f"its units are read by {sink.op.name}"
    return refusal(sink)


class _Run:
    """One run on one graph, which stays as it is until a choice has been made."""

    def __init__(self, step: PruneUnits, graph: Graph, context: Context, found: Sequence[tuple[Seed, Bundle]]):
        self.step, self.graph, self.context = step, graph, context
        self.sets = three_sets(context)
        sinks = [bundle.sinks[0] for _, bundle in found]
        fit = collect_grams(graph, context, sinks, self.sets.fit.feeds)
        rank = collect_grams(graph, context, sinks, self.sets.rank.feeds)
        self.parts = [
            Part(seed, sink, matrices(sink)[0], rows_of(bundle, sink), bundle.are_heads, _products(bundle), f, r)
            for (seed, bundle), sink, f, r in zip(found, sinks, fit, rank, strict=True)
        ]
        self.judge = Judge(graph, self.sets.rank, context)

    def run(self) -> UnitsReport:
        """Choose, rewrite the graph, and say what was found."""
        step, options = self.step, self._options()
        table = None if step.uniform else self._table(options)
        choices = self._uniform(options) if table is None else tradeoffs(table)
        sample, wanted = [choices[i] for i in spread(len(choices), _POINTS)], None
        if not step.barred:
            wanted = choices[0] if table is None else self._asked(table)
            sample = sorted(dict.fromkeys([*sample, wanted]), key=self._density)
        measured: list[Distance] = []
        for done, choice in enumerate(sample, 1):
            measured.append(self.judge.distance(self._copy(choice)))
            self.context.progressed("measure choices", done, len(sample))
        allowed = [
            i for i, found in enumerate(measured) if sample[i] == wanted or (step.barred and step.bars.allows(found))
        ]
        if not allowed:
            raise GateError(f"no choice of units fits: {step.budget}", remedy="allow more")
        taken = sample[allowed[0]]
        reported = Judge(self.graph, self.sets.report, self.context).distance(self._copy(taken))
        points = [Point(self._density(c), d, c == taken) for c, d in zip(sample, measured, strict=True)]
        rows = tuple(_row(part, each) for part, each in zip(self.parts, taken, strict=True))
        self._apply(taken)
        return UnitsReport(rows, tuple(points), step.budget, self._density(taken), measured[allowed[0]], reported)

    def _options(self) -> list[dict[int, Fitted]]:
        """Weights of each layer for numbers of units that may stay."""
        step, options = self.step, []
        for done, part in enumerate(self.parts, 1):
            order = elimination(part.weights, damped(part.fit.covariance[0]), part.rows)
            shares = (*_GRID, 1 - (step.heads if part.heads else step.neurons))
            counts = widths(part.units, shares, part.heads)
            options.append({count: fitted(part, order, count, step.refit) for count in counts})
            self.context.progressed("prune layers", done, len(self.parts))
        return options

    def _table(self, options: Sequence[dict[int, Fitted]]) -> Table:
        """Products and harm to the outputs of each option."""
        table: Table = []
        for number, (part, found) in enumerate(zip(self.parts, options, strict=True)):
            harm = self._harm(number, found[_nearest(found, _TRIED * part.units)])
            table.append([(part.products * count, harm * each.noise, each) for count, each in found.items()])
        return table

    def _uniform(self, options: Sequence[dict[int, Fitted]]) -> list[Choice]:
        """The same shares in every layer."""
        step = self.step
        pairs = (
            [(share, share) for share in sorted({*_GRID, 1.0})] if step.barred else [(1 - step.neurons, 1 - step.heads)]
        )
        return [
            tuple(
                found[_nearest(found, (heads if part.heads else neurons) * part.units)]
                for part, found in zip(self.parts, options, strict=True)
            )
            for neurons, heads in pairs
        ]

    def _asked(self, table: Table) -> Choice:
        """What the shares ask for: neurons and heads each by the trade-offs among themselves."""
        taken: dict[int, Fitted] = {}
        for heads, share in ((False, self.step.neurons), (True, self.step.heads)):
            numbers = [i for i, part in enumerate(self.parts) if part.heads == heads]
            total = sum(self.parts[i].units for i in numbers)
            found = tradeoffs([table[i] for i in numbers]) if numbers else [()]
            fits = [choice for choice in found if sum(each.kept for each in choice) <= (1 - share) * total + 1e-9]
            if not fits:
                raise GateError(f"so many units can't vanish: {self.step.budget}", remedy="take less off")
            taken |= dict(zip(numbers, fits[-1], strict=True))
        return tuple(taken[i] for i in range(len(self.parts)))

    def _harm(self, number: int, option: Fitted) -> float:
        """Error of the outputs per noise of a layer: from that layer alone."""
        choice = [option if i == number else None for i in range(len(self.parts))]
        distance = self.judge.distance(self._copy(choice))
        self.context.progressed("try layers", number + 1, len(self.parts))
        return distance.nmse / max(option.noise, 1e-12) if math.isfinite(distance.nmse) else 1e12

    def _density(self, choice: Choice) -> float:
        """The share of the products that stays."""
        total = sum(part.products * each.kept for part, each in zip(self.parts, choice, strict=True))
        return total / sum(part.products * part.units for part in self.parts)

    def _copy(self, choice: Sequence[Fitted | None]) -> Graph:
        """A copy of the graph with zeros for what vanishes."""
        copy, twins = self.graph.clone()
        for part, found in zip(self.parts, choice, strict=True):
            node = twins[part.sink.result].node
            if found is not None and node is not None:
                _replace(copy, part, node, found)
        return copy

    def _apply(self, choice: Choice) -> None:
        for part, found in zip(self.parts, choice, strict=True):
            if found.kept < part.units and self.context.fuelled:
                _replace(self.graph, part, part.sink, found)
                self.context.burn()
        DropZeroChannels().run(self.graph, self.context)


def _nearest(found: dict[int, Fitted], count: float) -> int:
    return min(found, key=lambda kept: (abs(kept - count), kept))


def _products(bundle: Bundle) -> float:
    """Products of numbers for one sample that go with one unit; symbolic extents count once."""
    total = 0
    for node in (*bundle.sources, *bundle.sinks):
        places = [dim for dim in node.results[0].tensor.dims if isinstance(dim, int)]
        depth = node.inputs[1].tensor.elements
        wide = places[-1] if places else 1
        total += math.prod(places) * (int(depth) if isinstance(depth, int) else 1) // max(wide, 1)
    for node in bundle.slots:
        if isinstance(node.op, ops.Attention):
            q, k, v = (value.tensor.dims[1:] for value in node.inputs[:3])
            heads, rows, columns = (dim if isinstance(dim, int) else 1 for dim in (q[0], q[1], k[1]))
            width = sum(dim for dim in (q[2], v[2]) if isinstance(dim, int))
            total += heads * rows * columns * width
    return total / bundle.units


def _replace(graph: Graph, part: Part, node: Node, found: Fitted) -> None:
    """Give the layer that sums units up the weights, and its bias what is lost on average."""
    lost = part.fit.mean[0] @ (part.weights - found.weights)
    replace_layer(graph, node, ops.Linear(), Data(found.weights.astype(np.float32)), lost, BY)


def _row(part: Part, found: Fitted) -> PrunedUnits:
    noise, masked = decibels(found.noise), decibels(found.masked)
    kind = "heads" if part.heads else "neurons"
    return PrunedUnits(part.sink.label, kind, part.units, found.kept, noise, masked)
