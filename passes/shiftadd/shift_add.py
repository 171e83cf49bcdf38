"""The pass that makes sums of signed powers of two of the weights of linear layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from planish.ir import ops, signed_digits
from planish.ir.codebooks import CODEBOOKS, Codebook
from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph, Node
from planish.passes.allocation import spread
from planish.passes.base import Context, Pass
from planish.passes.calibration import Request, collect
from planish.passes.calibration.gram import collect_grams
from planish.passes.exactness import Exactness, approximate
from planish.passes.integer.plan import Plan
from planish.passes.integer.quantize_products import even_out
from planish.passes.judging import Bars, Distance, Judge, ThreeSets, three_sets
from planish.passes.layers import Layer, decibels, eligible, matrices
from planish.passes.rewrite import Changes
from planish.passes.shiftadd.choosing import Choice, choices, cost_of
from planish.passes.shiftadd.layers import Coded, coded, replace_weights
from planish.passes.shiftadd.report import LayerFinding, Point, ShiftAddReport

MIX = "mix"
MIXED = ("csd2", "apot6", "apot5", "apot4", "int4", "bcq4", "bcq3")
"""What a layer may get without training; `pot4` and fewer bits lose too much, and can be asked for."""

_TRIED = "apot4"  # in one layer at a time, to see how much its noise harms the outputs
_POINTS = 12  # choices that are measured
BY = "shift-add"


@dataclass(frozen=True)
class ShiftAdd(Pass):
    """Weights as sums of a few signed powers of two, so that products become shifts and additions.

    Rows of weights are rounded one after the other, each making good what those before lost (by second moments of
    calibration samples), and biases take what is lost on average.

    codebook: of all layers, see `planish.ir.codebooks`; "mix" chooses for each layer by its measured error; "auto" is
    "mix" where there is a budget, and "csd2" where there is none.
    bits: stored bits per weight that a mix may take on average, scales and levels counted. energy: of the operations,
    as a share of what 8-bit integers take, that it may take. max_drop: by how much the metric may fall; max_nmse:
    energy of the outputs' error over their variance. With these, layers that harm most get better codes, or keep their
    floats. equalize: how far channels of norms are evened out between activations and weights first, 0 to 1: exact in
    floats, and better for 8-bit activations. keep: names of layers that keep their floats.
    Source: ShiftAddViT (arXiv 2306.06446); ShiftAddLLM (arXiv 2406.05981) for what needs no training.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    codebook: str = "auto"
    bits: float | None = None
    energy: float | None = None
    max_drop: float | None = None
    max_nmse: float | None = None
    equalize: float = 0.5
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for unknown options, CalibrationError for too few or shared samples,
        GateError for a budget that no choice fits.
        """
        if self.book not in (MIX, *CODEBOOKS):
            known = f"known: auto, {MIX}, {', '.join(CODEBOOKS)}"
            raise UsageError(f"there is no codebook {self.codebook!r}", remedy=known)
        if self.bits is not None and self.energy is not None:
            raise UsageError("bits and energy can't both be a budget", remedy="give one of them")
        changes = Changes()
        nodes = eligible(graph, self.keep, changes)
        if nodes:
            run = _Run(self, graph, context, nodes)
            report = run.run()
            context.reports.append(report)
            for finding in report.layers:
                if finding.codebook:
                    changes.rewrites[finding.codebook] += 1
                else:
                    changes.skipped.append((finding.name, f"the budget needs its floats: {report.budget}"))
        return changes

    @property
    def bars(self) -> Bars:
        """What the error has to stay within."""
        return Bars(self.max_drop, self.max_nmse)

    @property
    def book(self) -> str:
        """The codebook, or "mix"."""
        if self.codebook != "auto":
            return self.codebook
        return MIX if self.barred or self.bits is not None or self.energy is not None else "csd2"

    @property
    def barred(self) -> bool:
        """True if the error has a budget."""
        return self.bars != Bars()

    @property
    def budget(self) -> str:
        """The budget in words."""
        parts = [] if self.bits is None else [f"at most {self.bits:g} bits per weight"]
        parts += [] if self.energy is None else [f"at most {100 * self.energy:g} % of the energy of int8"]
        parts += [str(self.bars)] if self.barred else []
        return ", ".join(parts) or f"all layers in {self.book}"

    def books(self) -> list[Codebook]:
        """What a layer may get: the codebook asked for, and what is more exact where the error has a budget."""
        if self.book == MIX:
            return [CODEBOOKS[name] for name in MIXED]
        asked = CODEBOOKS[self.book]
        better = [CODEBOOKS[name] for name in MIXED if self.barred and CODEBOOKS[name].bits > asked.bits]
        return [asked, *better]


class _Run:
    """One run on one graph, which stays as it is until a choice has been made."""

    def __init__(self, step: ShiftAdd, graph: Graph, context: Context, nodes: Sequence[Node]):
        self.step, self.graph, self.context = step, graph, context
        self.sets: ThreeSets = three_sets(context)
        norms = graph.nodes(ops.LayerNorm, ops.RMSNorm)
        if step.equalize and norms:
            requests = [Request(norm.result, len(norm.result.tensor.dims) - 1) for norm in norms]
            statistics = collect(graph, replace(context, statistics_cache=None), requests)
            even_out(graph, statistics, step.equalize, Plan(statistics))
        fit = collect_grams(graph, context, nodes, self.sets.fit.feeds)
        rank = collect_grams(graph, context, nodes, self.sets.rank.feeds)
        self.layers = [Layer(n, matrices(n), f, r) for n, f, r in zip(nodes, fit, rank, strict=True)]
        self.options = self._options()
        self.judge = Judge(graph, self.sets.rank, context)

    def run(self) -> ShiftAddReport:
        """Choose, rewrite the graph, and say what was found."""
        step = self.step
        found = self._every()
        measured: dict[int, Distance] = {}
        taken = self._within(found) if step.bits is not None or step.energy is not None else len(found) - 1
        if len(found) > 1:
            sample = {*spread(len(found), _POINTS), taken}
            for done, place in enumerate(sorted(sample), 1):
                measured[place] = self.judge.distance(self._copy(found[place]))
                self.context.progressed("measure choices", done, len(sample))
            if step.barred:
                taken = self._cheapest_allowed(found, measured, taken)
        choice = found[taken]
        if taken not in measured:
            measured[taken] = self.judge.distance(self._copy(choice))
        if step.barred and not step.bars.allows(measured[taken], doubts=2):
            raise GateError(f"no choice of codebooks fits: {step.budget}", remedy="allow more, or fewer bars")
        reported = Judge(self.graph, self.sets.report, self.context).distance(self._copy(choice))
        report = self._report(found, measured, taken, reported)
        self._apply(choice)
        return report

    def _options(self) -> list[dict[str, Coded]]:
        """Codes of each layer, by codebook."""
        found = []
        for done, layer in enumerate(self.layers, 1):
            found.append(coded(layer, self.step.books()))
            self.context.progressed("encode weights", done, len(self.layers))
        return found

    def _every(self) -> list[Choice]:
        """The choices to take one of, the cheapest first."""
        if len(self.step.books()) == 1 and not self.step.barred:
            return [tuple(options[self.step.book] for options in self.options)]
        by_energy = self.step.energy is not None
        return choices(self.layers, self.options, self._harm(), by_energy, self.step.barred)

    def _harm(self) -> list[float]:
        """Error of the outputs per noise of each layer: from one layer in a cheap codebook at a time."""
        found = []
        for number, layer in enumerate(self.layers):
            option = self.options[number].get(_TRIED) or coded(layer, [CODEBOOKS[_TRIED]])[_TRIED]
            choice: Choice = tuple(option if i == number else None for i in range(len(self.layers)))
            distance = self.judge.distance(self._copy(choice))
            found.append(distance.nmse / max(option.noise, 1e-12) if math.isfinite(distance.nmse) else 1e12)
            self.context.progressed("try layers", number + 1, len(self.layers))
        return found

    def _within(self, found: Sequence[Choice]) -> int:
        """The most exact choice within the cost. Raises GateError if none is."""
        limit = self.step.bits if self.step.bits is not None else self.step.energy
        assert limit is not None
        costs = [cost_of(self.layers, choice) for choice in found]
        fits = [
            i for i, cost in enumerate(costs) if (cost.bits if self.step.bits is not None else cost.energy) <= limit
        ]
        if not fits:
            least = costs[0].bits if self.step.bits is not None else costs[0].energy
            raise GateError(f"the cheapest choice takes {least:.2f}, more than {limit:g}", remedy="allow more")
        return fits[-1]

    def _cheapest_allowed(self, found: Sequence[Choice], measured: dict[int, Distance], last: int) -> int:
        """The first choice within the error, by bisection between those that were measured."""
        places = [place for place in sorted(measured) if place <= last]
        allowed = [place for place in places if self.step.bars.allows(measured[place])]
        high = allowed[0] if allowed else last
        low = max((place for place in places if place < high), default=-1)
        while high - low > 1:
            middle = (low + high) // 2
            measured[middle] = self.judge.distance(self._copy(found[middle]))
            low, high = (low, middle) if self.step.bars.allows(measured[middle]) else (middle, high)
        return high

    def _copy(self, choice: Choice) -> Graph:
        """A copy of the graph with the choice made."""
        copy, twins = self.graph.clone()
        for layer, found in zip(self.layers, choice, strict=True):
            node = twins[layer.node.result].node
            if found is not None and node is not None:
                replace_weights(copy, node, found, BY)
        return copy

    def _apply(self, choice: Choice) -> None:
        for layer, found in zip(self.layers, choice, strict=True):
            if found is not None and self.context.fuelled:
                replace_weights(self.graph, layer.node, found, BY)
                self.context.burn()

    def _report(
        self, found: Sequence[Choice], measured: Mapping[int, Distance], taken: int, reported: Distance
    ) -> ShiftAddReport:
        points = []
        for place in sorted(measured):
            cost = cost_of(self.layers, found[place])
            points.append(Point(cost.bits, cost.energy, measured[place], place == taken))
        cost = cost_of(self.layers, found[taken])
        layers = tuple(_finding(layer, each) for layer, each in zip(self.layers, found[taken], strict=True))
        return ShiftAddReport(
            layers, tuple(points), self.step.budget, cost.bits, cost.energy, measured[taken], reported
        )


def _finding(layer: Layer, found: Coded | None) -> LayerFinding:
    size = layer.weights.size
    if found is None:
        return LayerFinding(layer.name, "", size, 32.0, 0.0, None)
    noise = decibels(found.noise)
    return LayerFinding(
        layer.name, found.book.name, size, found.bits / size, float(np.mean(signed_digits.count(found.codes))), noise
    )
