"""What the command adds to the passes that replace norms: bars from options, and training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planish.ir.errors import UsageError
from planish.ir.graph import Graph, Node, Value
from planish.passes.base import Feeds, Pass, Pipeline, Recover
from planish.passes.integer import Integerize
from planish.passes.norms import UnifyNorms


def has(pipeline: Pipeline, kind: type[Pass]) -> bool:
    """True if a step of the pipeline is of that kind."""
    return any(isinstance(step, kind) for step in pipeline.leaves())


def split_after(pipeline: Pipeline, kind: type[Pass]) -> tuple[Pipeline, Pipeline]:
    """The steps up to the last of a kind, and the rest; all are in the rest if there is none."""
    last = max((i for i, step in enumerate(pipeline.steps, 1) if isinstance(step, kind)), default=0)
    return Pipeline(*pipeline.steps[:last]), Pipeline(*pipeline.steps[last:])


def unifying_options(
    pipeline: Pipeline, max_drop: float | None, max_nmse: float | None, recover: float | None, metric: str | None
) -> dict[str, float]:
    """Options of `unify-norms` for the bars that the user gave.

    Half of what the metric may fall is kept for codes, if the pipeline integerizes too. Raises UsageError for bars that
    no pass of the pipeline heeds.
    """
    if not has(pipeline, UnifyNorms):
        if max_nmse is not None or recover is not None:
            raise UsageError("--max-nmse and --recover are for replaced norms", remedy="add --recipe unify")
        if (max_drop is not None or metric is not None) and not has(pipeline, Integerize):
            raise UsageError(
                "--metric and --max-drop are for recipes that change what a model computes",
                remedy="add --recipe integer or --recipe unify",
            )
        return {}
    options: dict[str, float] = {}
    if max_nmse is not None:
        options["max_nmse"] = max_nmse
    if max_drop is not None:
        options["max_drop"] = max_drop / 2 if has(pipeline, Integerize) else max_drop
    return options


def recovering(
    seconds: float, seed: int, on_stage: Callable[[str], None], on_progress: Callable[[int, int], None]
) -> Recover:
    """What trains layers for so long. Raises UsageError, when it runs, if torch is missing."""
    from planish.tools.recovery.recover import recover

    def run(
        student: Graph,
        teacher: Graph,
        trainable: Sequence[Node],
        pairs: Sequence[tuple[Value, Value]],
        feeds: Sequence[Feeds],
        held_out: Sequence[Feeds],
    ) -> object:
        on_stage(f"train {len(trainable)} layers")
        return recover(
            student, teacher, trainable, pairs, feeds,
            held_out=held_out, seconds=seconds, seed=seed, on_progress=on_progress,
        )  # fmt: skip

    return run
