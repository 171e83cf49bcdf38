"""Passes and pipelines: frozen values that say what they need, do and keep.

A pass is a frozen dataclass whose fields are its options. A pipeline is a sequence of passes; it prints to text and
parses back (see `planish.passes.pipelines`). Valid graph in, valid graph out; a pass that doesn't understand a part
of the graph leaves it and says so in `Changes.skipped`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from planish.ir.errors import PlanishError, RewriteError
from planish.ir.graph import Graph, Node, Value
from planish.passes.exactness import EXACT, Exactness, weakest
from planish.passes.rewrite import Changes, Fuel, Rule, apply_rules

OpaqueEvaluator = Callable[[Node, Sequence[np.ndarray | None]], Sequence[object]]
Feeds = Mapping[str, np.ndarray]


class FeedSource(Protocol):
    """Sample inputs, as often as asked for, in a fixed order: a list of feeds, or a stream from a file."""

    def __iter__(self) -> Iterator[Feeds]: ...

    def __len__(self) -> int: ...


PreparedTaps = Callable[[Feeds], list[np.ndarray]]
Metric = Callable[[Mapping[str, np.ndarray], np.ndarray | None], float]
"""Judges outputs (by name, all samples) against labels (None if there are none); higher is better."""

TapEvaluator = Callable[[Graph, Sequence[Value]], PreparedTaps]
"""Prepares a graph to be run for the arrays of some of its values."""


Clock = Callable[[Sequence[Graph]], list[float]]
"""Seconds that each graph takes on the target, finished and measured in turns."""


class Recover(Protocol):
    """Trains weights of `student` in place until values in it are close to values in `teacher` again."""

    def __call__(
        self,
        student: Graph,
        teacher: Graph,
        trainable: Sequence[Node],
        pairs: Sequence[tuple[Value, Value]],
        feeds: Sequence[Feeds],
        held_out: Sequence[Feeds],
    ) -> object: ...


@dataclass(frozen=True)
class Property:
    """A named predicate on graphs. `offenders` lists what stands against it; none means that it holds."""

    name: str
    offenders: Callable[[Graph], list[str]]

    def __str__(self) -> str:
        return self.name


class Observer:
    """Is told of each step of a pipeline. Subclasses override what they need."""

    def before(self, step: Pass, graph: Graph) -> None:
        """`step` is about to run."""

    def rewrote(self, rule: str, old: Value, new: Value) -> None:
        """A rule has replaced `old` by `new`."""

    def after(self, step: Pass, graph: Graph, changes: Changes) -> None:
        """`step` has run."""

    def progressed(self, stage: str, done: int, total: int) -> None:
        """A long stage inside a pass has done so many of its parts."""

    def failed(self, step: Pass, graph: Graph, error: PlanishError) -> None:
        """`step` raised `error`; the graph may be half rewritten."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did, for reports."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changes: Changes


@dataclass
class Context:
    """What passes may use besides the graph.

    target: name of the backend that the graph is meant for.
    calibration: sample inputs, a re-iterable of feeds by input name; None if the user gave none.
    evaluate_opaque: computes ops that the IR only carries; None leaves them unfolded.
    taps: runs a graph for values inside it, for calibration; None computes with numpy.
    evaluation: other samples, to report errors on; None takes a part of the calibration samples.
    metric: judges outputs where a pass has to keep an accuracy; None if the user asked for none.
    recover: trains layers that a pass changed against what they were; None if the user asked for none.
    clock: measures graphs on the target where a pass weighs speed; None if nothing can.
    reports: what passes found out, for reports: each appends an object of its own.
    layer_errors: where passes that quantize report the error of each layer; None if nobody wants to know.
    statistics_cache: file from which calibration statistics are read, or to which they are written.
    fold_bytes: by how many bytes constant folding may grow the model in total.
    """

    target: str = "ort-cpu"
    calibration: FeedSource | None = None
    seed: int = 0
    fuel: Fuel | None = None
    fold_bytes: int = 1 << 20
    evaluate_opaque: OpaqueEvaluator | None = None
    taps: TapEvaluator | None = None
    statistics_cache: Path | None = None
    evaluation: FeedSource | None = None
    metric: Metric | None = None
    recover: Recover | None = None
    clock: Clock | None = None
    reports: list[object] = field(default_factory=list)
    layer_errors: list[object] | None = None
    observers: tuple[Observer, ...] = ()
    records: list[PassRecord] = field(default_factory=list)

    @property
    def fuelled(self) -> bool:
        """True if a further rewrite may be made."""
        return self.fuel is None or self.fuel.left > 0

    def burn(self) -> None:
        """Count a rewrite against the fuel, if there is a budget of it."""
        if self.fuel is not None:
            self.fuel.burn()

    def progressed(self, stage: str, done: int, total: int) -> None:
        """Tell observers how far a long stage has come."""
        for observer in self.observers:
            observer.progressed(stage, done, total)

    def on_rewrite(self, rule: str, old: Value, new: Value) -> None:
        for observer in self.observers:
            observer.rewrote(rule, old, new)


@dataclass(frozen=True)
class Pass:
    """Base of passes. Class attributes declare the contract, fields are options.

    name: as written in pipelines. requires, establishes: properties that must hold before, and hold after.
    needs_calibration: the pass can't run without sample inputs.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Property, ...]] = ()
    establishes: ClassVar[tuple[Property, ...]] = ()
    exactness: ClassVar[Exactness] = EXACT
    needs_calibration: ClassVar[bool] = False

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph` in place; return what was done."""
        raise RewriteError(f"pass {self.name} doesn't say what it does")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that the pass applies, for listing and for `inspect --why`."""
        return ()

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]

    def __str__(self) -> str:
        options = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        shown = ", ".join(f"{name}={value!r}" for name, value in options)
        return f"{self.name}{{{shown}}}" if shown else self.name


@dataclass(frozen=True)
class RulePass(Pass):
    """Base of passes that apply a fixed set of rules until none matches."""

    rule_set: ClassVar[tuple[Rule, ...]] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.rule_set

    def run(self, graph: Graph, context: Context) -> Changes:
        return apply_rules(graph, self.rule_set, fuel=context.fuel, on_rewrite=context.on_rewrite)


@dataclass(frozen=True, init=False)
class Pipeline(Pass):
    """Passes in order."""

    name: ClassVar[str] = "pipeline"
    steps: tuple[Pass, ...] = ()

    def __init__(self, *steps: Pass):
        object.__setattr__(self, "steps", steps)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(r for step in self.steps for r in step.rules)

    def leaves(self) -> Iterator[Pass]:
        """The passes inside, without pipelines and repetitions."""
        for step in self.steps:
            if isinstance(step, Pipeline | Repeat):
                yield from (step if isinstance(step, Pipeline) else Pipeline(step.body)).leaves()
            else:
                yield step

    def without(self, *names: str) -> Pipeline:
        """The pipeline without the passes of the given names."""
        kept: list[Pass] = []
        for step in self.steps:
            if isinstance(step, Pipeline):
                kept.append(step.without(*names))
            elif isinstance(step, Repeat):
                body = Pipeline(step.body).without(*names)
                if body.steps:
                    kept.append(Repeat(body.steps[0] if len(body.steps) == 1 else body, step.limit))
            elif step.name not in names:
                kept.append(step)
        return Pipeline(*kept)

    def with_options(self, name: str, **options: object) -> Pipeline:
        """The pipeline with fields of the passes of that name set."""
        kept: list[Pass] = []
        for step in self.steps:
            if isinstance(step, Pipeline):
                kept.append(step.with_options(name, **options))
            elif isinstance(step, Repeat):
                kept.append(replace(step, body=Pipeline(step.body).with_options(name, **options)))
            else:
                kept.append(replace(step, **options) if step.name == name else step)
        return Pipeline(*kept)

    def run(self, graph: Graph, context: Context) -> Changes:
        """Run all steps; each simple pass is observed and recorded. Raises RewriteError if a property is broken."""
        total = Changes()
        for step in self.steps:
            total.update(
                step.run(graph, context) if isinstance(step, Pipeline | Repeat) else observe(step, graph, context)
            )
        return total

    def __add__(self, other: Pass) -> Pipeline:
        return Pipeline(*self.steps, *(other.steps if isinstance(other, Pipeline) else (other,)))

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps))


@dataclass(frozen=True)
class Repeat(Pass):
    """A pass or pipeline, run until it changes nothing, at most `limit` times."""

    name: ClassVar[str] = "repeat"
    body: Pass = Pipeline()
    limit: int = 8

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.body.rules

    def run(self, graph: Graph, context: Context) -> Changes:
        total = Changes()
        for _ in range(self.limit):
            changes = Pipeline(self.body).run(graph, context)
            total.update(changes)
            if not changes:
                break
        return total

    def __str__(self) -> str:
        return f"repeat({self.body})"


def pipeline_exactness(step: Pass) -> Exactness:
    """How exact a pass or pipeline is as a whole."""
    if isinstance(step, Pipeline):
        return weakest(*(pipeline_exactness(s) for s in step.steps))
    if isinstance(step, Repeat):
        return pipeline_exactness(step.body)
    return weakest(step.exactness, *(r.exactness for r in step.rules))


def observe(step: Pass, graph: Graph, context: Context) -> Changes:
    """Run one pass with its declared properties checked, its observers told and its record kept."""
    _check(step, step.requires, graph, "needs")
    if step.needs_calibration and context.calibration is None:
        raise RewriteError(f"{step.name} needs calibration data", remedy="give some with --calib")
    for observer in context.observers:
        observer.before(step, graph)
    before, start = len(graph), time.perf_counter()
    try:
        changes = step.run(graph, context)
        seconds = time.perf_counter() - start
        _check(step, step.establishes, graph, "promises")
        for observer in context.observers:
            observer.after(step, graph, changes)
    except PlanishError as error:
        error.who = error.who or step.name
        for observer in context.observers:
            observer.failed(step, graph, error)
        raise
    context.records.append(PassRecord(step.name, seconds, before, len(graph), changes))
    return changes


def _check(step: Pass, properties: Sequence[Property], graph: Graph, verb: str) -> None:
    for wanted in properties:
        offenders = wanted.offenders(graph)
        if offenders:
            shown = "; ".join(offenders[:3]) + (f"; and {len(offenders) - 3} more" if len(offenders) > 3 else "")
            raise RewriteError(f"{step.name} {verb} {wanted}, which doesn't hold: {shown}")
