"""The whole way: read a model, optimize it, write the artifact, compare it with the original, time both."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planish.backends.ort.evaluate import evaluate_opaque
from planish.backends.ort.taps import taps
from planish.backends.targets import TARGETS, Target, target_named
from planish.frontend import load
from planish.frontend.calibration import CalibrationSet, InputSpec, open_calibration
from planish.frontend.weights import check_weights
from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context, Observer, Pass, Pipeline, pipeline_exactness
from planish.passes.integer import Integerize
from planish.passes.observers import VerifyEach
from planish.passes.pipelines import resolve_pipeline
from planish.passes.rewrite import Fuel
from planish.passes.shiftadd import MixExperts, ShiftAdd
from planish.passes.sparse import Prune
from planish.passes.tokens import CompressTokens
from planish.tools import manifest as manifests
from planish.tools.accuracy_control import Controlled, control, metric_named
from planish.tools.agreement import mismatch, tolerance_of
from planish.tools.artifact import artifact_folder
from planish.tools.bars import CHANGING, check_bars, has, is_scheduled, split_after, with_bars
from planish.tools.clock import TargetClock
from planish.tools.description import describe, source_files, source_ops
from planish.tools.measure import Measurements, measure_models
from planish.tools.model_stats import ModelStats, bytes_of, graph_ops
from planish.tools.progress import Progress, Silent
from planish.tools.samples import input_specs, random_feeds, single_sample
from planish.tools.unifying import recovering
from planish.tools.verify import Verification, verify
from planish.tools.writing import Written, write_for

CALIBRATION_BATCH = 8  # samples per feed of calibration: memory stays small whatever the number of samples
VERIFY_BATCH = 32  # samples per feed where the batch dimension is symbolic


@dataclass(frozen=True)
class Job:
    """What to do to a model.

    source: an ONNX or .pt2 file. out: the artifact folder to make. shapes: input dimensions to bind.
    calib: where sample inputs come from (see `planish.frontend.calibration`), None for none.
    verify_with: other samples to compare artifact and original on; None takes those of `calib`.
    calib_cache: file to keep calibration statistics in, or to read them from.
    metric: "file.py:function" that judges outputs (None: top-1); max_drop: by how much it may fall, None for no bar.
    max_nmse: error of the outputs over their variance that replaced norms or fewer tokens may cause, None for the
      pass's own bar.
    recover: seconds to train layers around what was replaced for, against the original; None doesn't.
    compare_forms: also make the model in other number formats, and put a table of all of them into the report.
    verify: compare artifact and original; bench: time both. threads: of ONNX Runtime while timing.
    min_speedup: fail (exit code 6) if the artifact isn't that many times faster.
    """

    source: Path
    out: Path
    pipeline: Pipeline
    target: Target = TARGETS["ort-cpu"]
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    calib: str | None = None
    verify_with: str | None = None
    calib_cache: Path | None = None
    metric: str | None = None
    max_drop: float | None = None
    max_nmse: float | None = None
    recover: float | None = None
    compare_forms: bool = False
    verify: bool = True
    bench: bool = True
    threads: int = 1
    seed: int = 0
    force: bool = False
    opset: int | None = None
    fuel: int | None = None
    min_speedup: float | None = None
    observers: tuple[Observer, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a job did. `unverified` says why there is no verification."""

    job: Job
    before: ModelStats
    after: ModelStats
    understood: Mapping[str, int]
    context: Context
    written: Written
    seconds: Mapping[str, float]
    data: CalibrationSet | None = None
    verification: Verification | None = None
    unverified: str = ""
    measurements: Measurements | None = None
    controlled: Controlled | None = None


def optimize(
    source: Any,
    pipeline: str | Pass = "default",
    *,
    shapes: Mapping[str, tuple[int | str, ...]] | None = None,
    target: str = "ort-cpu",
    calibration: Any = None,
    observers: Sequence[Observer] = (),
    seed: int = 0,
) -> Graph:
    """Load a model (or take a graph, which is copied) and run a recipe, a pipeline text or a pass over it.

    calibration: sample inputs for passes that need some: a sequence of feeds (input name -> array), or where to read
    them from, as `--calib` takes it.
    Raises FrontendError, UsageError, or what the passes raise.
    """
    graph = source.clone()[0] if isinstance(source, Graph) else load(source, shapes=shapes)
    steps = pipeline if isinstance(pipeline, Pass) else resolve_pipeline(pipeline)
    if isinstance(calibration, str | Path):
        calibration = open_calibration(str(calibration), input_specs(graph), seed=seed, batch=CALIBRATION_BATCH)
    context = Context(
        target=target_named(target).name,
        calibration=calibration,
        seed=seed,
        evaluate_opaque=evaluate_opaque,
        taps=taps,
        observers=(VerifyEach(), *observers),
    )
    Pipeline(steps).run(graph, context)
    return graph


def compile(
    source: str | Path,
    out: str | Path,
    pipeline: str | Pipeline = "default",
    *,
    target: str = "ort-cpu",
    **options: Any,
) -> Outcome:
    """Make a verified, timed artifact folder of a model file. `options` are the further fields of `Job`."""
    steps = pipeline if isinstance(pipeline, Pipeline) else resolve_pipeline(pipeline)
    return run_job(Job(Path(source), Path(out), steps, target_named(target), **options))


def run_job(job: Job, progress: Progress | None = None) -> Outcome:
    """Do all that `job` says; the artifact appears whole or not at all.

    Raises FrontendError or CalibrationError (unreadable input), MismatchError (the artifact computes something else),
    GateError (`min_speedup` missed), UsageError (output can't be written).
    """
    return _Run(job, progress or Silent()).run()


class _Showing(Observer):
    """Passes the progress of long stages inside passes on; they may take turns."""

    def __init__(self, progress: Progress):
        self.progress, self.current = progress, ""

    def progressed(self, stage: str, done: int, total: int) -> None:
        if done == 1 or stage != self.current:
            self.progress.stage(stage)
        self.current = stage
        self.progress.advance(done, total)


class _Run:
    def __init__(self, job: Job, progress: Progress):
        self.job, self.progress = job, progress
        self.seconds: dict[str, float] = {}
        self.opened: dict[str, CalibrationSet] = {}
        self.showing = _Showing(progress)
        self.context = Context(
            target=job.target.name,
            seed=job.seed,
            fuel=None if job.fuel is None else Fuel(job.fuel),
            evaluate_opaque=evaluate_opaque,
            taps=taps,
            statistics_cache=job.calib_cache,
            observers=(VerifyEach(), self.showing, *job.observers),
        )

    def run(self) -> Outcome:
        job = self.job
        with artifact_folder(job.out, force=job.force, protect=[job.source]) as folder:
            with self._stage("read"):
                graph = load(job.source, shapes=job.shapes)
            before = ModelStats(source_ops(graph), bytes_of(source_files(job.source, graph)))
            inputs = input_specs(graph)
            data = None
            if job.calib is not None:
                with self._stage("check data"):
                    data = open_calibration(job.calib, inputs, seed=job.seed, batch=CALIBRATION_BATCH)
                self.context.calibration = data
            controlled = None
            job = self.job = self._with_bars(inputs)
            if (job.max_drop is not None or job.metric is not None) and has(job.pipeline, Integerize):
                controlled = self._controlled(inputs, graph)
                graph, self.context = controlled.graph, controlled.context
                job = self.job = replace(job, pipeline=controlled.pipeline)
            else:
                self._optimize(graph)
            with self._stage("write"):
                written = write_for(graph, folder, job.target, opset=job.opset, on_progress=self.progress.advance)
            outcome = Outcome(
                job,
                before,
                ModelStats(written.ops, bytes_of(written.files)),
                graph_ops(graph),
                self.context,
                written,
                self.seconds,
                data,
                controlled=controlled,
            )
            outcome = self._checked(outcome, folder, graph, inputs)
            if job.compare_forms:
                self.context.reports.append(self._forms(outcome, inputs))
            with self._stage("manifest"):
                manifests.write_manifest(folder, describe(outcome, folder, graph))
                if outcome.measurements is not None:
                    manifests.write_measurements(folder, outcome.measurements.to_dict())
            with self._stage("report"):
                from planish.tools.report import write_report  # it draws what this module defines

                write_report(folder, outcome)
        return outcome

    def _optimize(self, graph: Graph) -> None:
        """Run the pipeline. Bars that its passes don't search within are checked on what comes out."""
        job = self.job
        barred = job.max_drop is not None or job.max_nmse is not None
        original = graph.clone()[0] if barred and is_scheduled(job.pipeline) else None
        with self._stage("optimize"):
            job.pipeline.run(graph, self.context)
        if original is not None and not has(job.pipeline, Integerize):
            with self._stage("check bars"):
                check_bars(original, graph, self.context, job.max_drop, job.max_nmse)

    def _samples(self, source: str, inputs: Mapping[str, InputSpec]) -> CalibrationSet:
        """Data in batches to judge by; opened, and so read and checked, once."""
        if source not in self.opened:
            self.opened[source] = open_calibration(source, inputs, seed=self.job.seed, batch=VERIFY_BATCH)
        return self.opened[source]

    def _with_bars(self, inputs: Mapping[str, InputSpec]) -> Job:
        """The job with its bars handed to the passes that change a model, and what these need in the context."""
        job, context = self.job, self.context
        pipeline = with_bars(job.pipeline, job.max_drop, job.max_nmse, job.recover, job.metric)
        if not has(pipeline, *CHANGING, MixExperts):
            return job
        if job.verify_with is not None:
            context.evaluation = self._samples(job.verify_with, inputs)
        sources = [context.calibration, *([] if context.evaluation is None else [context.evaluation])]
        labelled = all(getattr(source, "labels", None) is not None for source in sources)
        if job.max_drop is not None or job.metric is not None or (labelled and has(pipeline, Prune, ShiftAdd)):
            context.metric = metric_named(job.metric)
        if job.recover is not None:
            context.recover = recovering(job.recover, job.seed, self.progress.stage, self.progress.advance)
        timed = (CompressTokens, MixExperts, *((Prune,) if job.target.compiled else ()))  # zeros save nothing in ONNX
        if has(pipeline, *timed) and context.calibration is not None:
            rest = split_after(pipeline, *timed)[1]
            sample = single_sample(next(iter(context.calibration)), inputs)
            context.clock = TargetClock(
                rest,
                job.target,
                sample,
                context.calibration,
                job.threads,
                job.opset,
                job.seed,
                self.showing.progressed,
            )
        return replace(job, pipeline=pipeline)

    def _controlled(self, inputs: Mapping[str, InputSpec], original: Graph) -> Controlled:
        """The pipeline with the accuracy bar. Statistics are kept between attempts."""
        job, context = self.job, self.context
        source = job.verify_with or job.calib
        if source is None:
            raise UsageError("--metric and --max-drop need data", remedy="give some with --calib or --verify-with")
        data = self._samples(source, inputs)
        metric = metric_named(job.metric)
        before, rest = split_after(job.pipeline, *CHANGING)
        with self._stage("optimize"):
            graph = original.clone()[0]
            before.run(graph, context)
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            cache = context.statistics_cache or Path(folder) / "statistics.npz"

            def attempt(setting: str) -> None:
                self.progress.stage(setting)

            with self._stage("optimize"):
                found = control(
                    original,
                    lambda: graph.clone()[0],
                    lambda: replace(context, statistics_cache=cache, records=list(context.records)),
                    rest,
                    data,
                    metric,
                    math.inf if job.max_drop is None else job.max_drop,
                    attempt,
                )
        return replace(found, pipeline=before + found.pipeline)

    def _checked(self, outcome: Outcome, folder: Path, graph: Graph, inputs: Mapping[str, InputSpec]) -> Outcome:
        job, artifact = self.job, outcome.written.model
        feeds, reason = outcome.data, ""
        if job.verify_with is not None:
            with self._stage("check data"):
                feeds = self._samples(job.verify_with, inputs)
        if feeds is None and (job.verify or job.bench):
            with self._stage("check data"):
                check_weights(graph)
                feeds, reason = random_feeds(inputs, job.seed)
        if feeds is None:
            return replace(outcome, unverified=reason or "not asked for")
        verification = measurements = None
        if job.verify:
            with self._stage("verify"):
                tolerance = tolerance_of(pipeline_exactness(job.pipeline))
                verification = verify(
                    job.source,
                    artifact,
                    feeds,
                    tolerance=tolerance,
                    labels=feeds.labels,
                    on_progress=self.progress.advance,
                )
            if not verification.passed:
                raise mismatch(job, artifact, feeds, verification)
        if job.bench:
            with self._stage("time"):
                measurements = measure_models(
                    {"original": job.source, "artifact": artifact},
                    single_sample(next(iter(feeds)), inputs),
                    threads=job.threads,
                    on_progress=self.progress.advance,
                )
            speedup = measurements.ratio("artifact")
            if job.min_speedup is not None and speedup < job.min_speedup:
                raise GateError(
                    f"the artifact is {speedup:.2f} times as fast as the original, less than {job.min_speedup}",
                    remedy="try another recipe, or lower the bar",
                )
        return replace(outcome, verification=verification, measurements=measurements, unverified=reason)

    def _forms(self, outcome: Outcome, inputs: Mapping[str, InputSpec]) -> object:
        """The model in several number formats."""
        from planish.tools.forms import compare_forms  # it optimizes by what this module defines

        job, data = self.job, outcome.data
        if data is None:
            raise UsageError("--compare-forms needs data", remedy="give some with --calib")
        evaluation = self._samples(job.verify_with or job.calib or "", inputs)
        asked = next((step for step in job.pipeline.leaves() if isinstance(step, ShiftAdd)), None)
        with self._stage("compare forms"):
            sample = single_sample(next(iter(data)), inputs)
            return compare_forms(
                job.source, asked, data, evaluation, sample,
                threads=job.threads, seed=job.seed, on_stage=self.progress.stage,
            )  # fmt: skip

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress.stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
