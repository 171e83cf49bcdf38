"""Latency of several models, taken in turns so that the machine's moods hit all of them alike."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from planish.ir.errors import UsageError
from planish.tools.boundary import Boundary
from planish.tools.measure_worker import Worker
from planish.tools.sessions import Model, open_model

Verdict = Literal["faster", "equal", "slower"]
Progress = Callable[[int, int], None]

NOISE = 0.02  # speed ratios within 2 % of 1 count as equal
MIN_ROUNDS, MAX_ROUNDS = 5, 2000
_TURN_S = 0.05  # a turn of a process lasts at least this long, to outlive the spinning threads of the one before
_RESAMPLES = 1000


@dataclass(frozen=True)
class Timing:
    """One model: milliseconds per run, and how many times as fast as the baseline it is (with its 95 % interval)."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in vars(self).items()}


@dataclass(frozen=True)
class Measurements:
    """Timings of one interleaved measurement; `threads` 0 means that ONNX Runtime chose."""

    rows: tuple[Timing, ...]
    baseline: str
    rounds: int
    threads: int
    cpu: str
    cores: int
    processes: bool

    def row(self, name: str) -> Timing:
        return next(row for row in self.rows if row.name == name)

    def ratio(self, name: str) -> float:
        """How many times as fast as the baseline: median over the rounds of baseline time / time."""
        return self.row(name).ratio

    def median_ms(self, name: str) -> float:
        return self.row(name).median_ms

    def verdict(self, name: str) -> Verdict:
        """ "equal" where the ratio is within the noise, or its interval includes 1."""
        return self.row(name).verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `measurements.json` and `--json`."""
        return {**vars(self), "rows": [row.to_dict() for row in self.rows]}


def measure_models(
    models: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    baseline: str | None = None,
    seconds: float = 3.0,
    on_progress: Progress | None = None,
) -> Measurements:
    """Time model files: in this process at one thread, else each in a process of its own, as spinning pools disturb.

    Raises FrontendError, LoweringError or CalibrationError where a model doesn't load or run.
    """
    if threads != 1:
        return measure_in_processes(
            models, feeds, threads=threads, baseline=baseline, seconds=seconds, on_progress=on_progress
        )
    sessions = {name: open_model(path, threads=1, what=f"the model '{name}'") for name, path in models.items()}
    return measure(sessions, feeds, baseline=baseline, seconds=seconds, on_progress=on_progress)


def measure(
    sessions: Mapping[str, Model],
    feeds: Mapping[str, np.ndarray],
    *,
    baseline: str | None = None,
    seconds: float = 3.0,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
    warmup: int = 3,
    on_progress: Progress | None = None,
) -> Measurements:
    """Time sessions in turns on one feed; each round runs every session once, every other round backwards.

    baseline: name that ratios refer to, by default the first. seconds: when to stop, once `min_rounds` are done.
    """

    def timed(session: Model) -> Callable[[], float]:
        fed = Boundary.of_session(session).encoded_for(session, feeds)

        def run() -> float:
            start = time.perf_counter()
            session.run(fed)
            return time.perf_counter() - start

        return run

    runners = {name: timed(session) for name, session in sessions.items()}
    threads = next((session.threads for session in sessions.values()), 0)
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        times = _take_turns(runners, seconds, min_rounds, max_rounds, warmup, on_progress)
    finally:
        if collecting:
            gc.enable()
    return summarize(times, baseline=baseline, threads=threads, processes=False)


def measure_in_processes(
    models: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int,
    baseline: str | None = None,
    seconds: float = 3.0,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
    on_progress: Progress | None = None,
) -> Measurements:
    """Like `measure`, with each model loaded in a process of its own; a turn is a burst of runs and counts its median.

    Raises LoweringError where a process fails to load or run its model.
    """
    workers: dict[str, Worker] = {}
    try:
        for name, path in models.items():
            workers[name] = Worker(name, path, feeds, threads)
        runners = {name: _burst(worker) for name, worker in workers.items()}
        times = _take_turns(runners, seconds, min_rounds, max_rounds, 1, on_progress)
    finally:
        for worker in workers.values():
            worker.close()
    return summarize(times, baseline=baseline, threads=threads, processes=True)


def summarize(
    times: Mapping[str, Sequence[float]], *, baseline: str | None, threads: int, processes: bool
) -> Measurements:
    """Statistics of seconds per round and name; entry i of every name was taken in the same round."""
    if not times:
        raise UsageError("there is nothing to measure", remedy="name at least one model")
    reference = next(iter(times)) if baseline is None else baseline
    if reference not in times:
        raise UsageError(f"no model '{reference}' to compare with", remedy=f"name one of {', '.join(times)}")
    base = np.asarray(times[reference])
    rows = []
    for name, seconds in times.items():
        taken = np.asarray(seconds)
        ratio, low, high = _ratio(base, taken)
        p10, median, p90 = (float(value) * 1e3 for value in np.percentile(taken, (10, 50, 90)))
        rows.append(Timing(name, median, p10, p90, ratio, low, high, verdict_of(ratio, low, high)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Measurements(tuple(rows), reference, len(base), threads, cpu_name(), cores, processes)


def verdict_of(ratio: float, low: float, high: float) -> Verdict:
    """Verdict for a speed ratio and its interval."""
    if ratio > 1 + NOISE and low > 1:
        return "faster"
    if ratio < 1 - NOISE and high < 1:
        return "slower"
    return "equal"


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system doesn't tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _take_turns(
    runners: Mapping[str, Callable[[], float]],
    seconds: float,
    min_rounds: int,
    max_rounds: int,
    warmup: int,
    on_progress: Progress | None,
) -> dict[str, list[float]]:
    """Seconds per round of each runner; the order reverses every round, so that none always follows the same one."""
    start = time.perf_counter()
    for run in runners.values():
        for attempt in range(warmup):
            run()
            if attempt and time.perf_counter() - start > seconds / 2:
                break
    times: dict[str, list[float]] = {name: [] for name in runners}
    start = time.perf_counter()
    elapsed, done = 0.0, 0
    while runners and (done < min_rounds or (elapsed < seconds and done < max_rounds)):
        order = list(runners) if done % 2 == 0 else list(runners)[::-1]
        for name in order:
            times[name].append(runners[name]())
        done += 1
        elapsed = time.perf_counter() - start
        if on_progress:
            on_progress(min(100, int(100 * max(min(elapsed / seconds, 1), 0))) if seconds > 0 else 100, 100)
    return times


def _burst(worker: Worker) -> Callable[[], float]:
    """A turn of a worker: an untimed run to wake it up, then enough runs to fill the turn."""
    count = max(1, min(50, int(_TURN_S / max(worker.run(1), 1e-6))))
    return lambda: worker.run(count)


def _ratio(base: np.ndarray, taken: np.ndarray) -> tuple[float, float, float]:
    """Median over the rounds of base / taken, and the 95 % interval of that median by a seeded bootstrap."""
    ratios = base / taken
    drawn = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)
