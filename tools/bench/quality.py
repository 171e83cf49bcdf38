"""How close contenders stay to the model they were made from, on data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from planish.frontend.calibration import CalibrationSet
from planish.tools.boundary import Boundary
from planish.tools.comparison import EXACT, Difference
from planish.tools.sessions import Model, open_model

Figures = dict[str, float | None]


def quality_of(model: Path, files: Mapping[str, Path], data: CalibrationSet) -> dict[str, Figures]:
    """Figures per file: `accuracy`, `accuracy_original` and `top1_agreement`, all fractions, and `sqnr_db`.

    They are of the model's first output; None where they make no sense (no labels, no classes, equal results).
    The model runs once per feed, one feed is in memory at a time.
    """
    original = open_model(model, threads=0, what="the original model")
    sessions = {name: open_model(path, threads=0, what=f"the model '{name}'") for name, path in files.items()}
    output = original.outputs[0].name
    differences = {name: Difference(EXACT) for name in files}
    start = 0
    for feed in data:
        expected = original.run(feed)[output]
        stop = start + (len(expected) if expected.ndim == 2 else 0)
        labels = None if data.labels is None else data.labels[start:stop]
        for name, session in sessions.items():
            differences[name].add(expected, _run(session, feed, output), labels)
        start = stop
    labelled = data.labels is not None and start == len(data.labels)
    return {name: _figures(found, labelled) for name, found in differences.items()}


def _run(session: Model, feed: Mapping[str, np.ndarray], output: str) -> np.ndarray:
    boundary = Boundary.of_session(session)
    result: np.ndarray = boundary.decoded(output, session.run(boundary.encoded_for(session, feed))[output])
    return result


def _figures(found: Difference, labelled: bool) -> Figures:
    classes = found.rows > 0
    return {
        "accuracy": found.hits[1] / found.rows if classes and labelled else None,
        "accuracy_original": found.hits[0] / found.rows if classes and labelled else None,
        "top1_agreement": found.same_top1 / found.rows if classes else None,
        "sqnr_db": found.sqnr_db if math.isfinite(found.sqnr_db) else None,
    }
