"""The calibration stage: the float graph runs on each feed once, and only statistics are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.ir.errors import CalibrationError
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.passes.base import Context, Feeds, PreparedTaps
from planish.passes.calibration.statistics import Request, Statistics, ValueStatistics


def collect(graph: Graph, context: Context, requests: Sequence[Request]) -> Statistics:
    """Statistics of the requested values over `context.calibration`, one feed in memory at a time.

    Uses `context.taps` to run the graph, or numpy if there is none; tells observers of each feed. With
    `context.statistics_cache`, statistics are read from there, or written there.
    Raises CalibrationError for NaN or infinity in a value, naming the node.
    """
    feeds = context.calibration
    if feeds is None:
        raise CalibrationError("there is no calibration data", remedy="give some with --calib")
    cache, digest = context.statistics_cache, _digest(feeds)
    if cache is not None and cache.exists():
        return Statistics.load(cache, graph, digest, requests)
    found = {request.value: ValueStatistics() for request in requests}
    values = list(found)
    run: PreparedTaps = context.taps(graph, values) if context.taps is not None else _numpy_taps(graph, values)
    axes = {request.value: request.channel_axis for request in requests}
    for index, feed in enumerate(feeds):
        for value, array in zip(values, run(feed), strict=True):
            if array.size:
                _check(value, array, index)
                found[value].add(array, axes[value])
        for observer in context.observers:
            observer.progressed("calibrate", index + 1, len(feeds))
    statistics = Statistics(found)
    if cache is not None:
        statistics.save(cache, graph, digest)
    return statistics


def _check(value: Value, array: np.ndarray, feed: int) -> None:
    if not np.isfinite(array).all():
        node = value.node
        raise CalibrationError(
            f"{value.hint or 'a value'} holds NaN or infinity for calibration sample {feed}",
            where=str(node.loc) if node is not None else value.hint,
            remedy="repair the model or the sample: codes can't stand for that",
        )


def _numpy_taps(graph: Graph, values: Sequence[Value]) -> PreparedTaps:
    wanted = set(values)

    def run(feed: Feeds) -> list[np.ndarray]:
        seen: dict[Value, np.ndarray] = {}

        def tap(value: Value, array: np.ndarray) -> None:
            if value in wanted:
                seen[value] = array

        interpret(graph, feed, taps=tap)
        return [seen[value] for value in values]

    return run


def _digest(feeds: object) -> str:
    digest = getattr(feeds, "digest", None)
    return str(digest()) if callable(digest) else ""
