"""What a user allows a job to cost in accuracy, shared out among the passes that change what a model computes."""

from __future__ import annotations

from planish.ir.errors import UsageError
from planish.passes.base import Pass, Pipeline
from planish.passes.integer import Integerize
from planish.passes.norms import UnifyNorms
from planish.passes.tokens import CompressTokens

CHANGING = (UnifyNorms, CompressTokens)
"""Passes that search for what they may change within bars; those that quantize are controlled from outside."""


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
    if recover is not None and not has(pipeline, UnifyNorms):
        raise UsageError("--recover is for replaced norms", remedy="add --recipe unify")
    changing = [kind for kind in CHANGING if has(pipeline, kind)]
    if not changing:
        if max_nmse is not None:
            raise UsageError(
                "--max-nmse is for replaced norms and compressed tokens",
                remedy="add --recipe unify or --recipe compress",
            )
        if (max_drop is not None or metric is not None) and not has(pipeline, Integerize):
            raise UsageError(
                "--metric and --max-drop are for recipes that change what a model computes",
                remedy="add --recipe integer, --recipe unify or --recipe compress",
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
