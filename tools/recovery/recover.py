"""Recover the accuracy of a changed graph without labels: train a few weights until it computes what the original does.

Meant for graphs in which something was replaced by a cheaper approximation that is folded into linear layers: those
are finetuned against the values of the original at chosen places (block outputs) and at the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir.errors import CalibrationError, UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.types import TensorType

Feed = Mapping[str, np.ndarray]

LEARNING_RATE = 0.006
HELD_OUT_SHARE = 8  # one feed of so many is held out where the caller gives none


@dataclass(frozen=True)
class Match:
    """How far one value is from the original's on held-out data: squared error over the original's variance."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Recovery:
    """What training did.

    steps: optimizer steps; the same number with the same seed, data and threads gives the same weights.
    curve: (step, held-out error), from step 0 on; the error is the mean over the outputs, as in `Match`.
    pairs, outputs: each compared value, before and after. kept_step: the step whose weights stand in the graph now;
    0 if none was better than the start.
    """

    steps: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    pairs: tuple[Match, ...]
    outputs: tuple[Match, ...]
    kept_step: int

    @property
    def before(self) -> float:
        """Held-out error at the start."""
        return self.curve[0][1]

    @property
    def after(self) -> float:
        """Held-out error of the weights that were kept."""
        return min(error for _, error in self.curve)


def recover(
    student: Graph,
    teacher: Graph,
    trainable: Sequence[Node],
    pairs: Sequence[tuple[Value, Value]],
    feeds: Iterable[Feed],
    *,
    seconds: float = 180.0,
    steps: int | None = None,
    held_out: Iterable[Feed] | None = None,
    seed: int = 0,
    learning_rate: float = LEARNING_RATE,
    mix: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    threads: int = 0,
) -> Recovery:
    """Train constant weights and biases of the `trainable` nodes of `student` and write them into it, in their dtype.

    pairs: (student value, teacher value) of equal shape that are to become equal, such as the outputs of blocks; the
    outputs of both graphs are compared in any case. feeds: input name -> array, each one batch; held in memory.
    seconds: about how long to train; a few steps are timed and their number is fixed from that. steps: that number
    itself, for a run that can be repeated exactly. held_out: feeds to judge by, never trained on; None keeps every
    eighth of `feeds` for that. learning_rate: change per step, relative to the size of each weight.
    mix: train on mixtures of two samples of a batch (float and uint8 inputs), which stand for more data than there is.
    on_progress: called with (steps done, steps). threads: of torch and of ONNX Runtime; 0 leaves it to them.
    The weights are those with the least held-out error of the outputs, at worst those of the start. The caller's
    global random state, thread count and determinism of torch stay as they are.
    Raises UsageError if torch is missing or the arguments don't fit each other, CalibrationError if the data are
    missing or not finite or one of the graphs yields values that aren't, UnsupportedOp if the student can't be
    differentiated.
    """
    try:
        import torch  # noqa: F401 - several seconds, and an extra: it waits until somebody trains
    except ImportError as error:
        raise UsageError("recovery needs torch", remedy='pip install "planish[torch]"') from error
    from planish.tools.recovery.training import Settings, train

    training, judging = _divided(list(feeds), None if held_out is None else list(held_out))
    _check(student, teacher, trainable, pairs)
    if steps is not None and steps < 1:
        raise UsageError(f"{steps} steps train nothing", remedy="give 1 or more")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise UsageError(f"learning rate {learning_rate} isn't positive", remedy=f"{LEARNING_RATE} is the default")
    for feed in (*training, *judging):
        _check_finite(feed)
    settings = Settings(seconds, steps, seed, learning_rate, mix, threads)
    return train(student, teacher, trainable, pairs, training, judging, settings, on_progress or _unwatched)


def _divided(feeds: list[Feed], held_out: list[Feed] | None) -> tuple[list[Feed], list[Feed]]:
    """Feeds to train on, and to judge by. A single feed is both."""
    if not feeds or held_out == []:
        raise CalibrationError("there is no data to train on or to judge by", remedy="give calibration samples")
    if held_out is not None:
        return feeds, held_out
    judging = feeds[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE] or feeds[-1:]
    return [feed for feed in feeds if not any(feed is other for other in judging)] or feeds, judging


def _check(student: Graph, teacher: Graph, trainable: Sequence[Node], pairs: Sequence[tuple[Value, Value]]) -> None:
    if not trainable:
        raise UsageError("there is nothing to train", remedy="name the linear layers that took something in")
    if len(student.outputs) != len(teacher.outputs):
        raise UsageError(
            f"the student has {len(student.outputs)} outputs and the teacher {len(teacher.outputs)}",
            remedy="train against the graph that the student was made from",
        )
    if not any(isinstance(v.type, TensorType) and v.type.dtype.is_float for v in student.outputs):
        raise UsageError("no output is a float, so there is nothing to measure", remedy="make an output of the logits")
    for mine, other in (*pairs, *zip(student.outputs, teacher.outputs, strict=True)):
        if not mine.type.accepts(other.type.interface()):
            raise UsageError(
                f"{mine!r} of the student is compared with {other!r}",
                remedy="pair values of the same shape and dtype",
            )
    for mine, _ in pairs:
        if not (isinstance(mine.type, TensorType) and mine.type.dtype.is_float):
            raise UsageError(f"{mine!r} isn't a float, so it can't be trained", remedy="pair float values")


def _check_finite(feed: Feed) -> None:
    for name, array in feed.items():
        if np.asarray(array).dtype.kind == "f" and not np.isfinite(array).all():
            raise CalibrationError(
                f"input {name} has NaN or infinite values", remedy="remove these samples or repair their preprocessing"
            )


def _unwatched(done: int, total: int) -> None:
    pass
