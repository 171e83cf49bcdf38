"""The pass that replaces norms by calibrated linear maps, as many as an error budget allows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.ops import Linear
from planish.passes.base import Context, Pass
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import Bars, Distance, Judge, tapped, three_sets
from planish.passes.norms.converting import Conversion, convert, converted, norms_of, vanishes
from planish.passes.norms.fit import Fit
from planish.passes.norms.unify_report import NormFinding, Step, UnifyReport
from planish.passes.rewrite import Changes
from planish.passes.trained import take_weights

VARIANTS = ("auto", "diagonal", "full")
_LOOKAHEAD = 3  # norms that are tried for each one that is taken
_TOKENS_PER_CHANNEL = 100  # that a map is fitted on while norms are chosen
_KEPT_AT_MOST = 4  # norms that stay in the graphs that are trained
_HELD_OUT_EVERY = 4  # feeds of the set to choose on, that training doesn't see
BY = "unify-norms"
Plan = dict[int, Conversion]


@dataclass
class _Result:
    """A plan, its distance on the report set, and if its layers were trained the graph that they were trained in."""

    plan: Plan
    distance: Distance
    graph: Graph | None = None
    recovery: object = None


@dataclass(frozen=True)
class UnifyNorms(Pass):
    """LayerNorm and RMSNorm replaced by linear maps that the next linears take in, as many as a budget allows.

    Each norm's result is regressed on its input over calibration samples, channel by channel ("diagonal") or with a
    matrix ("full"). Norms are taken one by one, by the error of the outputs that replacing them causes, on samples that
    nothing was fitted on; maps are fitted again on what the norms before have become, towards the original's values.

    variant: "diagonal", "full", or "auto": what errs less. max_nmse: energy of the outputs' error over their variance.
    max_drop: by how much the metric may fall; then max_nmse doesn't count. limit: at most so many norms.
    anchor_every: of so many norms in a row one stays, so that no long stretch of the residual stream grows unchecked;
    0 for none. With `context.recover`, all norms but a few are replaced, the most that training brings back within the
    budget, and none has to stay as an anchor.
    Source: Unified Normalization (arXiv 2208.01313) for what is left: a norm that is a constant.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    variant: str = "auto"
    max_nmse: float = 0.02
    max_drop: float | None = None
    limit: int | None = None
    anchor_every: int = 4

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for an unknown variant, CalibrationError for too few or shared samples."""
        if self.variant not in VARIANTS:
            raise UsageError(f"there is no variant {self.variant!r}", remedy=f"known: {', '.join(VARIANTS)}")
        changes = Changes()
        if norms_of(graph):
            search = _Search(self, graph, context)
            report = search.run()
            context.reports.append(report)
            for finding in report.norms:
                if finding.state == "kept":
                    changes.skipped.append((finding.name, finding.note))
                else:
                    changes.rewrites[f"{finding.state}, {finding.variant}"] += 1
        return changes

    @property
    def bars(self) -> Bars:
        """What the error has to stay within."""
        return Bars(self.max_drop, self.max_nmse)


class _Search:
    """One search on one graph; a plan says what stands for which norms, and graphs are made from the original by it."""

    def __init__(self, step: UnifyNorms, graph: Graph, context: Context):
        self.step, self.graph, self.context = step, graph, context
        self.sets = three_sets(context)
        self.norms = norms_of(graph)
        self.judge = Judge(graph, self.sets.rank, context)
        self.done, self.total = 0, len(self.norms) * 6
        self.curve: list[Step] = []
        self.alone: dict[int, Distance] = {}
        self.fits: dict[int, Fit] = {}
        self.first: Plan = {}

    def run(self) -> UnifyReport:
        """Search, rewrite the graph, and say what was found."""
        self.fits = self._fitted({}, range(len(self.norms)))
        for number in range(len(self.norms)):
            options = [({number: conversion}, conversion) for conversion in self._options(self.fits[number])]
            tried = [(self._distance(plan), conversion) for plan, conversion in options]
            self.alone[number], self.first[number] = min(tried, key=lambda pair: _key(pair[0]))
        judge = Judge(self.graph, self.sets.report, self.context)
        plans = self._greedy()
        best = self._best_recovered(judge, len(plans) - 1) or self._best(judge, plans)
        chosen = self.judge.distance(best.graph or converted(self.graph, best.plan, BY)[0])
        findings = self._findings(best.plan)
        self._apply(best)
        return UnifyReport(
            tuple(findings), tuple(self.curve), str(self.step.bars), chosen, best.distance, best.recovery
        )

    def _best_recovered(self, judge: Judge, without: int) -> _Result | None:
        """The most norms that training keeps within the budget on the report set, if no fewer than `without` it."""
        if self.context.recover is None:
            return None
        order = self._ranking()
        for count in range(len(order), max(without - 1, len(order) - _KEPT_AT_MOST - 1, 0), -1):
            result = self._recovered({number: self.first[number] for number in order[:count]})
            assert result.graph is not None
            result.distance = judge.distance(result.graph)
            if self.step.bars.allows(result.distance):
                return result
        return None

    def _best(self, judge: Judge, plans: list[Plan]) -> _Result:
        """The longest plan that is within the budget on the report set, by bisection; fitted from front to back."""
        best = _Result({}, Distance(0.0, None if judge.metric is None else 0.0))
        low, high = 0, len(plans) - 1
        while low < high:
            middle = (low + high + 1) // 2
            plan = self._in_order(plans[middle])
            distance = judge.distance(converted(self.graph, plan, BY)[0])
            if self.step.bars.allows(distance):
                low, best = middle, _Result(plan, distance)
            else:
                high = middle - 1
        return best

    def _recovered(self, plan: Plan) -> _Result:
        """The plan, fitted from front to back, with the layers that took norms in trained against the original."""
        assert self.context.recover is not None
        plan = self._in_order(plan)
        student, nodes = converted(self.graph, plan, BY)
        trainable = [node for node in student.nodes(Linear) if node.loc.via[-1:] == (BY,)]
        pairs = [
            (mine.inputs[0], norm.inputs[0])
            for mine, norm in zip(nodes, self.norms, strict=True)
            if mine.inputs[0].node is None or mine.inputs[0].node.graph is student
        ]
        rank = self.sets.rank.feeds
        held_out = rank[::_HELD_OUT_EVERY]
        training = [*self.sets.fit.feeds, *(feed for i, feed in enumerate(rank) if i % _HELD_OUT_EVERY)]
        recovery = self.context.recover(student, self.graph, trainable, pairs, training, held_out)
        return _Result(plan, Distance(0.0), student, recovery)

    def _ranking(self) -> list[int]:
        """All norms, the one whose replacement alone does the least harm first."""
        return sorted(self.alone, key=lambda number: _key(self.alone[number]))

    def _greedy(self) -> list[Plan]:
        """Plans of 0, 1, 2 .. norms within the budget on the set to choose on."""
        plans: list[Plan] = [{}]
        left = self._ranking()
        limit = len(left) if self.step.limit is None else self.step.limit
        while left and len(plans[-1]) < limit:
            left = [number for number in left if not self._breaks_anchors(plans[-1], number)]
            ahead = left[:_LOOKAHEAD]
            if not ahead:
                break
            fits = self._fitted(plans[-1], ahead)
            tried = []
            for number in ahead:
                (conversion,) = self._options(fits[number], self.first[number].variant)
                plan = {**plans[-1], number: conversion}
                tried.append((self._distance(plan), number, plan))
            distance, number, plan = min(tried, key=lambda entry: (_key(entry[0]), entry[1]))
            accepted = self.step.bars.allows(distance, doubts=2)
            self.curve.append(Step(len(plan), self.norms[number].label, distance, accepted))
            if not accepted:
                break
            left.remove(number)
            plans.append(plan)
        return plans

    def _in_order(self, plan: Plan) -> Plan:
        """The plan with each map fitted on what the norms before it have become."""
        made: Plan = {}
        for number in sorted(plan):
            fit = self._fitted(made, [number], all_samples=True)[number]
            (made[number],) = self._options(fit, plan[number].variant)
        return made

    def _breaks_anchors(self, plan: Plan, number: int) -> bool:
        every = self.step.anchor_every
        if every <= 0:
            return False
        taken = {*plan, number}
        starts = range(max(0, number - every + 1), min(number, len(self.norms) - every) + 1)
        return any(all(i in taken for i in range(start, start + every)) for start in starts)

    def _options(self, fit: Fit, variant: str = "") -> list[Conversion]:
        """The maps to try for a norm."""
        plain = fit.diagonal()
        made = {"diagonal": Conversion("diagonal", plain, plain), "full": Conversion("full", fit.full(), plain)}
        wanted = variant or self.step.variant
        return list(made.values()) if wanted == "auto" else [made[wanted]]

    def _fitted(self, plan: Plan, numbers: Iterable[int], all_samples: bool = False) -> dict[int, Fit]:
        """Least squares of what norms give in the original on what they read in the graph that the plan makes.

        Unless all samples are wanted, stops when there are enough tokens to choose by.
        """
        chosen = list(numbers)
        copy, nodes = converted(self.graph, plan, BY)
        original = tapped(self.context, self.graph, [self.norms[i].result for i in chosen])
        now = tapped(self.context, copy, [nodes[i].inputs[0] for i in chosen])
        fits = {i: Fit(self.norms[i].result.tensor.dims[-1]) for i in chosen}  # type: ignore[arg-type]
        for feed in self.sets.fit.feeds:
            for i, x, y in zip(chosen, now(feed), original(feed), strict=True):
                fits[i].add(x, y)
            if not all_samples and all(fit.count >= _TOKENS_PER_CHANNEL * len(fit.x) for fit in fits.values()):
                break
        return fits

    def _distance(self, plan: Plan) -> Distance:
        copy, _ = converted(self.graph, plan, BY)
        distance = self.judge.distance(copy)
        self.done += 1
        self.total = max(self.total, self.done)
        self.context.progressed("choose norms", self.done, self.total)
        return distance

    def _findings(self, plan: Plan) -> list[NormFinding]:
        found = []
        for number, norm in enumerate(self.norms):
            conversion = plan.get(number, self.first[number])
            fit, alone = self.fits[number], self.alone[number]
            if number not in plan:
                state, note = "kept", self._why_kept(plan, number)
            else:
                state, note = "folded" if vanishes(norm) else "product and sum", fit.deviations().warning()
            local = fit.error(self.first[number].linear)
            found.append(NormFinding(norm.label, conversion.variant, state, note, fit.deviations(), local, alone))
        return found

    def _why_kept(self, plan: Plan, number: int) -> str:
        if self.context.recover is None and self._breaks_anchors(plan, number):
            return f"it is the one of {self.step.anchor_every} norms in a row that stays"
        return f"the budget allows no more: {self.step.bars}"

    def _apply(self, result: _Result) -> None:
        """Rewrite the graph itself."""
        for number, conversion in result.plan.items():
            if not self.context.fuelled:
                return
            self.context.burn()
            convert(self.graph, self.norms[number], conversion, BY)
        if result.graph is not None:
            take_weights(self.graph, result.graph)


def _key(distance: Distance) -> float:
    """What the better one has less of: outputs differ finely where a metric moves in steps."""
    return distance.nmse if math.isfinite(distance.nmse) else math.inf
