"""Accuracy as a bar: quantize, measure, and where it falls short give the worst layers more bits, then floats.

The metric is a function of the user, `file.py:function`, called with the outputs of the model on all feeds (a mapping
from name to array, feeds joined along axis 0; codes already decoded) and the labels of the data (None if there are
none); higher is better. Without one, it is top-1 accuracy in percent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.backends.ort.taps import taps
from planish.frontend.calibration import CalibrationSet
from planish.frontend.user_module import load_module
from planish.ir.errors import CalibrationError, GateError, UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context, Pipeline
from planish.passes.integer.integerize import Integerize
from planish.passes.integer.sensitivity import LayerError
from planish.tools.boundary import Boundary

Outputs = Mapping[str, np.ndarray]
Metric = Callable[[Outputs, np.ndarray | None], float]

_WIDER = (0.1, 0.25, 0.5, 1.0)  # shares of the layers that get 16-bit activations, worst first
_FLOAT = (0.05, 0.15, 0.3)  # shares that then stay in floating point


@dataclass(frozen=True)
class Attempt:
    """One setting that was tried, and what the metric made of it."""

    setting: str
    metric: float


@dataclass(frozen=True)
class Controlled:
    """The graph that reached the bar, the pipeline that made it, and the way there; `reference`: the float's metric."""

    graph: Graph
    pipeline: Pipeline
    context: Context
    reference: float
    attempts: tuple[Attempt, ...]


def metric_named(spec: str | None) -> Metric:
    """The function that `file.py:function` names, or top-1. Raises UsageError if there is none."""
    if spec is None:
        return top1
    match = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", spec)
    if match is None:
        raise UsageError(f"{spec!r} names no metric", remedy="write --metric file.py:function")
    path = Path(match[1])
    try:
        function: Any = getattr(load_module(path), match[2], None)
    except Exception as error:  # whatever the user's file raises
        raise UsageError(f"the metric can't be loaded: {error}", where=str(path)) from error
    if not callable(function):
        raise UsageError(f"{path.name} has no function {match[2]!r}", where=str(path))
    return lambda outputs, labels: float(function(outputs, labels))


def top1(outputs: Outputs, labels: np.ndarray | None) -> float:
    """Share of rows whose greatest element is at their label, percent. Raises CalibrationError without labels."""
    scores = next((a for a in outputs.values() if a.ndim == 2 and labels is not None and len(a) == len(labels)), None)
    if labels is None or scores is None:
        raise CalibrationError(
            "top-1 accuracy needs data with labels, and an output with a row per sample",
            remedy="add a key labels to the data, or give a metric of your own with --metric file.py:function",
        )
    return 100 * float(np.mean(scores.argmax(axis=1) == labels))


def measured(graph: Graph, data: CalibrationSet, metric: Metric) -> float:
    """The metric of a graph on data."""
    names = getattr(graph.tail.op, "names", ()) if graph.tail is not None else ()
    metadata = graph.extras.get("metadata")
    boundary = Boundary.of(metadata if isinstance(metadata, dict) else {})
    run = taps(graph, list(graph.outputs))
    dtypes = {value.hint: value.tensor.dtype.storage for value in graph.inputs}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feed in data:
        for name, array in zip(names, run(boundary.encoded(feed, dtypes)), strict=True):
            parts[name].append(np.atleast_1d(boundary.decoded(name, array)))
    return metric({name: np.concatenate(arrays) for name, arrays in parts.items()}, data.labels)


def control(
    original: Graph,
    make_graph: Callable[[], Graph],
    make_context: Callable[[], Context],
    pipeline: Pipeline,
    data: CalibrationSet,
    metric: Metric,
    max_drop: float,
    on_attempt: Callable[[str], None],
) -> Controlled:
    """Run the pipeline with ever more careful settings until the metric falls by at most `max_drop` below `original`'s.

    Raises GateError (exit code 6) with the way there if no setting reaches that, UsageError if nothing integerizes.
    """
    if not any(isinstance(step, Integerize) for step in pipeline.leaves()):
        raise UsageError("--max-drop is for recipes that integerize", remedy="add --recipe integer")
    on_attempt("measure the original")
    reference = measured(original, data, metric)
    attempts: list[Attempt] = []
    errors: list[LayerError] = []
    for setting, options in _settings(errors):
        on_attempt(setting)
        graph, context = make_graph(), make_context()
        context.layer_errors = []
        tried = pipeline.with_options(Integerize.name, **options) if options else pipeline
        tried.run(graph, context)
        if not errors:
            errors += [error for error in context.layer_errors if isinstance(error, LayerError)]
        attempts.append(Attempt(setting, measured(graph, data, metric)))
        if reference - attempts[-1].metric <= max_drop:
            return Controlled(graph, tried, context, reference, tuple(attempts))
    best = max(attempts, key=lambda attempt: attempt.metric)
    raise GateError(
        f"the metric falls from {reference:.4g} to {best.metric:.4g} at best ({best.setting}), by more than {max_drop}",
        remedy="give more calibration samples, allow a larger --max-drop, or another recipe",
    )


def _settings(errors: list[LayerError]) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """(what it is, options of integerize), one after the other; `errors` is filled after the first."""
    yield "8-bit products", {}
    worst = [error.layer for error in sorted(errors, key=lambda error: error.activation_db)]
    worst = list(dict.fromkeys(worst))
    for share in _WIDER:
        chosen = worst[: max(1, round(share * len(worst)))]
        yield f"16-bit activations in {len(chosen)} of {len(worst)} layers", {"wide": tuple(chosen)}
    least = list(dict.fromkeys(error.layer for error in sorted(errors, key=lambda error: error.output_db)))
    for share in _FLOAT:
        kept = least[: max(1, round(share * len(least)))]
        yield f"the same, {len(kept)} layers in float", {"wide": tuple(worst), "keep": tuple(kept)}


def table_rows(errors: Sequence[object]) -> list[LayerError]:
    """Layer errors, the noisiest activations first."""
    found = [error for error in errors if isinstance(error, LayerError)]
    return sorted(found, key=lambda error: error.activation_db)
