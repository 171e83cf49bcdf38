"""What a user allows a job to cost in accuracy, shared out among the passes that change what a model computes."""

from __future__ import annotations

from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context, Pass, Pipeline
from planish.passes.integer import Integerize
from planish.passes.judging import Judge, Samples
from planish.passes.norms import UnifyNorms
from planish.passes.shiftadd import AddAttention, ShiftAdd
from planish.passes.sparse import Prune, PruneUnits, SparsifyAttention
from planish.passes.tokens import CompressTokens

CHANGING = (UnifyNorms, AddAttention, CompressTokens, SparsifyAttention, PruneUnits, Prune, ShiftAdd)
"""Passes that keep within bars themselves; those that quantize are controlled from outside."""

TRAINING = (UnifyNorms, AddAttention, Prune)
"""Passes that train what they have changed."""


def has(pipeline: Pipeline, *kinds: type[Pass]) -> bool:
    """True if a step of the pipeline is of one of these kinds."""
    return any(isinstance(step, kinds) for step in pipeline.leaves())


def split_after(pipeline: Pipeline, *kinds: type[Pass]) -> tuple[Pipeline, Pipeline]:
    """The steps up to the last of these kinds, and the rest; all are in the rest if there is none."""
    last = max((i for i, step in enumerate(pipeline.steps, 1) if isinstance(step, kinds)), default=0)
    return Pipeline(*pipeline.steps[:last]), Pipeline(*pipeline.steps[last:])


def with_bars(
    pipeline: Pipeline, max_drop: float | None, max_nmse: float | None, recover: float | None, metric: str | None
) -> Pipeline:
    """The pipeline with the user's bars set on its passes that change a model.

    Half of what the metric may fall is kept for codes, if the pipeline integerizes too; passes share the rest, and the
    error of the outputs, in equal parts. Raises UsageError for bars that no pass of the pipeline heeds.
    """
    if recover is not None and not has(pipeline, *TRAINING):
        raise UsageError(
            "--recover is for replaced norms and attention, and for pruned weights",
            remedy="add --recipe unify, add-attention or prune",
        )
    changing = [kind for kind in CHANGING if has(pipeline, kind)]
    if not changing:
        if max_nmse is not None:
            raise UsageError(
                "--max-nmse is for replaced norms and attention, compressed tokens, pruned weights and codebooks",
                remedy="add --recipe unify, add-attention, compress, sparse-attention, shrink, prune or shift-add",
            )
        if (max_drop is not None or metric is not None) and not has(pipeline, Integerize):
            raise UsageError(
                "--metric and --max-drop are for recipes that change what a model computes",
                remedy="add --recipe integer, unify, compress, sparse-attention, shrink, prune or shift-add",
            )
        return pipeline
    options: dict[str, float] = {}
    if max_nmse is not None:
        options["max_nmse"] = max_nmse / len(changing)
    if max_drop is not None:
        options["max_drop"] = (max_drop / 2 if has(pipeline, Integerize) else max_drop) / len(changing)
    for kind in changing:
        pipeline = pipeline.with_options(kind.name, **options)
    return pipeline


def is_scheduled(pipeline: Pipeline) -> bool:
    """True if the user said how many tokens go, so that the pass searches for nothing that fits the bars."""
    found = [step for step in pipeline.leaves() if isinstance(step, CompressTokens)]
    return any(step.latency is not None or step.schedule != "search" for step in found)


def check_bars(original: Graph, graph: Graph, context: Context, max_drop: float | None, max_nmse: float | None) -> None:
    """Hold a graph against the bars on the samples to report on. Raises GateError if it misses one, UsageError without
    samples.
    """
    source = context.calibration if context.evaluation is None else context.evaluation
    if source is None:
        raise UsageError("--max-drop and --max-nmse need data", remedy="give some with --calib or --verify-with")
    samples = Samples(list(source), getattr(source, "labels", None))
    found = Judge(original, samples, context).distance(graph)
    remedy = "let fewer tokens go, or leave --schedule and --latency out to search for what fits"
    if max_drop is not None and found.drop is not None and found.drop > max_drop:
        raise GateError(f"the metric falls by {found.drop:.3g}, more than {max_drop:g}", remedy=remedy)
    if max_nmse is not None and not found.nmse <= max_nmse:
        shown = f"{100 * found.nmse:.2g} % of their variance, more than {100 * max_nmse:g} %"
        raise GateError(f"the outputs err by {shown}", remedy=remedy)
