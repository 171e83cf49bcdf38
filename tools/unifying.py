"""What the command adds to passes that replace norms or attention: training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planish.ir.graph import Graph, Node, Value
from planish.passes.base import Feeds, Recover


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
