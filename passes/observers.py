"""Observers of a pipeline: verification, text dumps, numerics."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from planish.ir.errors import MismatchError, PlanishError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.text import print_graph
from planish.ir.verify import verify
from planish.passes.base import Feeds, Observer, OpaqueEvaluator, Pass
from planish.passes.exactness import Exactness, weakest
from planish.passes.rewrite import Changes


class VerifyEach(Observer):
    """Check every invariant of the IR after each pass that changed something. On by default."""

    def after(self, step: Pass, graph: Graph, changes: Changes) -> None:
        if changes:
            verify(graph)


@dataclass
class DumpText(Observer):
    """Write the text IR after each pass that changed the graph to `folder/NN-pass.txt`; 00 is the input."""

    folder: Path
    count: int = 0

    def before(self, step: Pass, graph: Graph) -> None:
        if self.count == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write("input", graph)

    def after(self, step: Pass, graph: Graph, changes: Changes) -> None:
        if changes:
            self._write(step.name, graph)

    def failed(self, step: Pass, graph: Graph, error: PlanishError) -> None:
        self._write(f"{step.name}-failed", graph)

    def _write(self, label: str, graph: Graph) -> None:
        (self.folder / f"{self.count:02d}-{label}.txt").write_text(print_graph(graph, locs=True) + "\n")
        self.count += 1


@dataclass
class PrintAfter(Observer):
    """Print the text IR after the passes of the given names ("all": after each that changed something)."""

    names: frozenset[str]
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def after(self, step: Pass, graph: Graph, changes: Changes) -> None:
        if step.name in self.names or ("all" in self.names and changes):
            print(f"# after {step}\n{print_graph(graph, locs=True)}\n", file=self.stream)


@dataclass
class NumericsCheck(Observer):
    """Evaluate the graph on sample inputs after each pass and hold it to the pass's declared exactness.

    Raises MismatchError naming the pass and the output. Evaluates with numpy: for tests and for finding faults.
    """

    samples: tuple[Feeds, ...]
    evaluate_opaque: OpaqueEvaluator | None = None
    expected: list[dict[str, np.ndarray]] | None = None

    def before(self, step: Pass, graph: Graph) -> None:
        if self.expected is None:
            self.expected = self._results(graph)

    def after(self, step: Pass, graph: Graph, changes: Changes) -> None:
        if not changes or self.expected is None:
            return
        bar = weakest(step.exactness, *(r.exactness for r in step.rules))
        for old, new in zip(self.expected, self._results(graph), strict=True):
            for name in old:
                fault = difference(old[name], new[name], bar)
                if fault:
                    raise MismatchError(f"{step.name} changed output {name!r}: {fault}", who=step.name)

    def _results(self, graph: Graph) -> list[dict[str, np.ndarray]]:
        return [interpret(graph, feeds, opaque=self.evaluate_opaque) for feeds in self.samples]


def difference(old: np.ndarray, new: np.ndarray, bar: Exactness) -> str:
    """How `new` falls short of `bar` against `old`, "" if it doesn't."""
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"{old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}"
    if old.dtype.kind not in "fc" and old.dtype.name != "bfloat16":
        return "" if np.array_equal(old, new) else "values differ"
    wide = np.complex128 if old.dtype.kind == "c" else np.float64
    a, b = old.astype(wide), new.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "NaN or infinity in other places"
    a, b = a[finite], b[finite]
    error = np.abs(a - b)
    if bar.min_sqnr_db is not None:
        noise, signal = float((error**2).sum()), float((np.abs(a) ** 2).sum())
        sqnr = np.inf if noise == 0 else 10 * np.log10(max(signal, 1e-300) / noise)
        return "" if sqnr >= bar.min_sqnr_db else f"SQNR {sqnr:.1f} dB is below {bar.min_sqnr_db} dB"
    rms = float(np.sqrt(np.mean(np.abs(a) ** 2))) if a.size else 0.0
    excess = error - (bar.atol * max(1.0, rms) + bar.rtol * np.abs(a))
    return "" if not a.size or excess.max() <= 0 else f"max abs difference {error.max():.3g}"
