"""The calibration stage: the float graph runs on each feed once, and only statistics are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

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
    A value that is requested twice is kept once, by channel if one of the requests says so.
    Raises CalibrationError for NaN or infinity in a value, naming the node, and if there is no data.
    """
    feeds = context.calibration
    if feeds is None or len(feeds) == 0:
        raise CalibrationError("there is no calibration data", remedy="give some with --calib")
    cache = context.statistics_cache
    digest = _digest(feeds) if cache is not None else ""
    if cache is not None and cache.exists():
        return Statistics.load(cache, graph, digest, requests)
    found = {request.value: ValueStatistics() for request in requests}
    values = list(found)
    run: PreparedTaps = context.taps(graph, values) if context.taps is not None else numpy_taps(graph, values)
    axes = {request.value: request.channel_axis for request in sorted(requests, key=_by_channel)}
    for index, feed in enumerate(feeds):
        for value, array in zip(values, run(feed), strict=True):
            if array.size:
                _check(value, array, index)
                found[value].add(array, axes[value])
        context.progressed("calibrate", index + 1, len(feeds))
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


def numpy_taps(graph: Graph, values: Sequence[Value]) -> PreparedTaps:
    """The graph, prepared to be run by its numpy references for the arrays of `values`."""
    wanted = set(values)

    def run(feed: Feeds) -> list[np.ndarray]:
        seen: dict[Value, np.ndarray] = {}

        def tap(value: Value, array: np.ndarray) -> None:
            if value in wanted:
                seen[value] = array

        interpret(graph, feed, taps=tap)
        return [seen[value] for value in values]

    return run


def _by_channel(request: Request) -> bool:
    return request.channel_axis is not None


def _digest(feeds: Iterable[Feeds]) -> str:
    """What the data set says of itself, or a hash of all its arrays."""
    digest = getattr(feeds, "digest", None)
    if callable(digest):
        return str(digest())
    sha = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            array = np.ascontiguousarray(feed[name])
            sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
            sha.update(array.tobytes())
    return sha.hexdigest()
