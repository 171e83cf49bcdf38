"""Where the time goes: each kernel of a program timed on its own, in the order of the program."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from planish.backends.tvm.build import Executable


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of a kernel. result: the value that it computes."""

    name: str
    result: str
    op: str
    seconds: float


def profile(executable: Executable, rounds: int = 20) -> list[Timing]:
    """Medians over whole runs of a program that was lowered with `steps`, so that caches are as in a run."""
    calls = executable.program.calls
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for i in range(len(calls)):
            start = time.perf_counter()
            executable.step(i)
            seconds[i].append(time.perf_counter() - start)
    return [
        Timing(call.name, call.kernel.result.hint, _op(call), statistics.median(taken))
        for call, taken in zip(calls, seconds, strict=True)
    ]


def _op(call) -> str:  # type: ignore[no-untyped-def]
    return call.kernel.title
