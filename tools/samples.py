"""Inputs that a job runs a model on: what it accepts, one sample of a feed, random feeds where the user gives none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planish.frontend.calibration import CalibrationSet, InputSpec, open_calibration
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph
from planish.ir.types import TensorType
from planish.passes.base import Feeds

RANDOM_SAMPLES = 3  # feeds drawn for verification when the user gives none


def input_specs(graph: Graph) -> dict[str, InputSpec]:
    """What the inputs of a graph accept. Raises UnsupportedOp for inputs that are no tensors."""
    specs: dict[str, InputSpec] = {}
    for value in graph.inputs:
        if not isinstance(value.type, TensorType):
            raise UnsupportedOp(
                f"input {value.hint!r} is a {value.type}, not a tensor", remedy="run with --no-verify --no-bench"
            )
        specs[value.hint] = InputSpec(value.type.dtype.storage, value.type.shape)
    return specs


def single_sample(feed: Feeds, inputs: Mapping[str, InputSpec]) -> dict[str, np.ndarray]:
    """The first sample of a feed, for timing at batch 1: symbolic leading dimensions are cut to 1."""
    batched = {n: s.shape is not None and len(s.shape) > 0 and isinstance(s.shape[0], str) for n, s in inputs.items()}
    return {name: array[:1] if batched[name] else array for name, array in feed.items()}


def random_feeds(inputs: Mapping[str, InputSpec], seed: int) -> tuple[CalibrationSet | None, str]:
    """Seeded random feeds for a model whose user gave no data, and what to say about them."""
    if not inputs:
        return None, "the model has no inputs"
    drawn = open_calibration(f"random:{RANDOM_SAMPLES}", inputs, seed=seed)
    return drawn, f"on {RANDOM_SAMPLES} random inputs (seed {seed}); give real ones with --calib"
