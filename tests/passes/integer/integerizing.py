"""A graph in text, integerized on random samples, beside what it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.parser import parse_graph
from planish.ir.text import print_graph
from planish.ir.types import TensorType
from planish.passes.base import Context, Pass, Pipeline
from planish.passes.cleanup import CLEANUP
from planish.passes.integer import Integerize
from planish.passes.observers import VerifyEach
from planish.passes.rewrite import Changes

SAMPLES = 64


@dataclass(frozen=True)
class Result:
    """The graph before and after, what the passes changed, and how close the outputs are."""

    before: Graph
    graph: Graph
    changes: Changes
    sqnr_db: float
    outputs: Mapping[str, np.ndarray]

    @property
    def text(self) -> str:
        return print_graph(self.graph)

    @property
    def ops(self) -> list[str]:
        return [node.op.name for node in self.graph if node.op.name not in ("Const", "Return")]


def feeds_for(graph: Graph, count: int = SAMPLES, seed: int = 0, high: int = 8) -> list[dict[str, np.ndarray]]:
    """Normal floats, small non-negative integers, masks of ones with zeros at the end."""
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        feed = {}
        for value in graph.inputs:
            assert isinstance(value.type, TensorType)
            shape = [2 if isinstance(dim, str) else dim for dim in value.type.dims]
            if value.hint == "mask":
                array = (np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, (*shape[:-1], 1))).astype(np.int64)
            elif value.type.dtype.is_float:
                array = rng.normal(size=shape)
            else:
                array = rng.integers(0, 256 if value.type.dtype.bits == 8 else high, shape)
            feed[value.hint] = np.asarray(array).astype(value.type.dtype.storage)
        feeds.append(feed)
    return feeds


def encoded(graph: Graph, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feed with codes for the inputs that take codes, as the metadata says."""
    metadata = graph.extras.get("metadata") or {}
    assert isinstance(metadata, dict)
    made = dict(feed)
    for name, array in feed.items():
        if f"planish.scale.{name}" in metadata:
            scale, zero = np.float32(metadata[f"planish.scale.{name}"]), int(metadata[f"planish.zero.{name}"])
            made[name] = np.clip(np.rint(array / scale) + zero, 0, 255).astype(np.uint8)
    return made


def integerized(text: str, *after: Pass, samples: int = SAMPLES, **options: object) -> Result:
    """Integerize the graph, then run the passes `after`; compare outputs on feeds that calibration didn't see."""
    before = parse_graph(text)
    graph, _ = before.clone()
    context = Context(calibration=feeds_for(graph, samples), observers=(VerifyEach(),))
    changes = Pipeline(Integerize(**options), *(after or [kind() for kind in CLEANUP])).run(graph, context)  # type: ignore[arg-type]
    signal = noise = 0.0
    outputs: dict[str, np.ndarray] = {}
    for feed in feeds_for(before, 4, seed=1):
        true = interpret(before, feed)
        outputs = interpret(graph, encoded(graph, feed))
        for name, array in true.items():
            if outputs[name].dtype == array.dtype:
                signal += float(np.sum(array.astype(np.float64) ** 2))
                noise += float(np.sum((outputs[name].astype(np.float64) - array) ** 2))
    db = np.inf if noise == 0 else 10 * np.log10(signal / noise)
    return Result(before, graph, changes, float(db), outputs)
