"""The pass that lets fewer tokens through the blocks of an encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from planish.ir.errors import CalibrationError, UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context, Pass
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import Judge, joined, three_sets
from planish.passes.rewrite import Changes
from planish.passes.tokens.applying import compress, compressed, prove_order_free
from planish.passes.tokens.encoder import Encoder, find_encoder
from planish.passes.tokens.following import BY
from planish.passes.tokens.masks import mask_of
from planish.passes.tokens.methods import METHODS, Choice
from planish.passes.tokens.profile import profile
from planish.passes.tokens.refusal import Refusal
from planish.passes.tokens.report import CompressReport, Point
from planish.passes.tokens.schedule import Schedule, by_counts, removed_by
from planish.passes.tokens.search import Budget, Search
from planish.passes.tokens.signals import SIGNALS


@dataclass(frozen=True)
class CompressTokens(Pass):
    """Fewer tokens from block to block: merged, fused, eliminated or routed around, in shapes that are known.

    method: "merge" (ToMe), "fuse" (EViT), "eliminate" (PoWER-BERT), "route" (ToC3D); "auto" takes one by what reads
    the encoder; "all" tries each that is legal and takes the best.
    schedule: tokens that go, see `schedule.Schedule`; "search" looks for the one that fits the budget.
    latency: the knob of `eliminate`, `fuse` and `merge` instead of a schedule: 0 keeps all tokens, 1 as many as get
    attention, more is faster.
    signal: what ranks tokens: "class" (attention of the first one), "received" (by each), "energy" (few alike), "auto";
    "prior" adds an input `token_prior`, float[batch, tokens], in which the caller says it; the graph needs it then.
    proportional: merged tokens count in attention as many times as they stand for; None takes what errs less.
    target_speedup, max_drop, max_nmse: the budget of a search.

    Legality is shown before anything changes (T1 to T16, see `refusal.CONDITIONS`): by following the token axis through
    every op, and with samples at hand by reordering tokens, which must not change the outputs.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    method: str = "auto"
    schedule: Schedule = "search"
    latency: float | None = None
    signal: str = "auto"
    proportional: bool | None = None
    target_speedup: float | None = None
    max_drop: float | None = None
    max_nmse: float | None = None

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for unknown options, CalibrationError for a search without samples,
        GateError where no schedule is as fast as asked within the error.
        """
        if self.method not in ("auto", "all", *METHODS):
            raise UsageError(f"there is no method {self.method!r}", remedy=f"known: auto, all, {', '.join(METHODS)}")
        if self.signal not in SIGNALS:
            raise UsageError(f"there is no signal {self.signal!r}", remedy=f"known: {', '.join(SIGNALS)}")
        if self.signal == "prior" and (self.schedule == "search" or self.latency is not None):
            raise UsageError("samples don't hold the prior that tokens are ranked by", remedy="give a schedule")
        changes = Changes()
        try:
            encoder = find_encoder(graph)
            order_error = None
            if context.calibration is not None:
                order_error = prove_order_free(graph, context, context.calibration)
            report = self._compressed(graph, context, encoder, order_error)
        except Refusal as refusal:
            changes.skipped.append((refusal.where, str(refusal)))
            return changes
        context.reports.append(report)
        changes.rewrites[f"tokens {report.choice.method}d" if any(report.choice.removed) else "nothing"] += sum(
            1 for removed in report.choice.removed if removed
        )
        changes.skipped += [("", f"{method}: {reason}") for method, reason in report.refused.items()]
        return changes

    def _compressed(
        self, graph: Graph, context: Context, encoder: Encoder, order_error: float | None
    ) -> CompressReport:
        method = default_method(encoder) if self.method == "auto" else self.method
        curves: dict[str, tuple[Point, ...]] = {}
        refused: dict[str, str] = {}
        result: Point | None = None
        budget = Budget(self.target_speedup, self.max_drop, self.max_nmse)
        if self.latency is None and self.schedule == "search":
            if context.calibration is None:
                raise CalibrationError(
                    "a schedule can't be searched for without samples",
                    remedy="give some with --calib, or a schedule: --schedule 13",
                )
            search = Search(graph, context, budget, self.signal, self.proportional)
            for one in METHODS if method == "all" else (method,):
                try:
                    curves[one] = search.curve(one)
                except Refusal as refusal:
                    if method != "all":
                        raise
                    refused[one] = str(refusal)
            result = search.best(list(curves.values()))
            choice = Choice(default_method(encoder), (0,) * len(encoder.blocks)) if result is None else result.choice
        else:
            choice = self._asked_for(graph, context, encoder, method if method != "all" else default_method(encoder))
        if any(choice.removed):
            compress(graph, choice)
        names = tuple(
            str(block.attention.loc.sources[0]) if block.attention.loc.sources else "" for block in encoder.blocks
        )
        counts = tuple(choice.counts(encoder.tokens))
        shown = str(budget) if curves else "as asked for"
        return CompressReport(choice, encoder.tokens, names, counts, shown, curves, refused, order_error, result)

    def _asked_for(self, graph: Graph, context: Context, encoder: Encoder, method: str) -> Choice:
        """The choice that a schedule or the latency knob says."""
        if self.latency is None:
            removed = removed_by(self.schedule, encoder, method)
            return self._weighed(graph, context, Choice(method, removed, self.signal))
        if context.calibration is None:
            raise CalibrationError("the latency knob needs samples", remedy="give some with --calib")
        found = profile(graph, three_sets(context).fit.feeds, context)
        removed = by_counts(found.counts(self.latency, encoder), encoder, method)
        return self._weighed(graph, context, Choice(method, removed, self.signal))

    def _weighed(self, graph: Graph, context: Context, choice: Choice) -> Choice:
        """The choice with `proportional` as asked for, or what errs less on the samples."""
        options = [replace(choice, proportional=weigh) for weigh in (True, False) if self.proportional in (None, weigh)]
        if len(options) == 1 or choice.method != "merge" or context.calibration is None:
            return options[0]
        sets = three_sets(context)
        judge = Judge(graph, joined(sets.fit, sets.rank), context)

        def error(option: Choice) -> tuple[float, float]:
            distance = judge.distance(compressed(graph, option))
            return distance.drop or 0.0, distance.nmse

        return min(options, key=error)


def default_method(encoder: Encoder) -> str:
    """Elimination where padding is masked, which goes first; merging elsewhere, which lost least on every model."""
    return "eliminate" if any(mask_of(block.attention) is not None for block in encoder.blocks) else "merge"
