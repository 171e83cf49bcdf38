"""Verification: the artifact computes what the untouched model computes, on every feed, within a declared tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.ir.errors import CalibrationError, FrontendError, LoweringError
from planish.tools.boundary import Boundary
from planish.tools.comparison import EXACT, ROUNDING, Difference, Tolerance
from planish.tools.divergence import Divergence, correspondence, first_divergence
from planish.tools.sessions import Model, open_model

__all__ = [
    "EXACT",
    "ROUNDING",
    "Divergence",
    "OutputRow",
    "Tolerance",
    "Verification",
    "correspondence",
    "first_divergence",
    "verify",
]

ORIGINAL, ARTIFACT = "the original model", "the artifact"


@dataclass(frozen=True)
class OutputRow:
    """One output over all feeds.

    max_rel is relative to max(|original|, RMS of the output); equal values have infinite sqnr_db and cosine 1.
    over_tolerance and nan_mismatches count elements. top1_agreement and the accuracies are fractions of the rows of a
    [rows, classes] output, None elsewhere. problem tells why an output can't be compared at all; note why it needn't.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    passed: bool
    max_abs: float
    max_rel: float
    cosine: float
    sqnr_db: float
    elements: int
    over_tolerance: int
    nan_mismatches: int
    needed_atol: float
    top1_agreement: float | None
    accuracy_original: float | None
    accuracy_artifact: float | None
    problem: str = ""
    note: str = ""

    @property
    def complaint(self) -> str:
        """Why the output failed, in one sentence."""
        if self.problem:
            return f"output '{self.name}' has {self.problem}"
        if self.nan_mismatches:
            return f"output '{self.name}' has NaN or infinity at {self.nan_mismatches} other places"
        return (
            f"output '{self.name}' differs: {self.over_tolerance} of {self.elements} elements,"
            f" max abs {self.max_abs:.3g}, SQNR {self.sqnr_db:.1f} dB"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values with six significant digits; infinite ones become None."""
        return {key: _plain(value) for key, value in vars(self).items()}


@dataclass(frozen=True)
class Verification:
    """Result of a comparison: `feeds` were compared, `worst_feed` is the index of the one with the largest difference.

    minimum_tolerance: the tightest that would pass, None where none would.
    problems: differences of the interface, each a sentence.
    """

    tolerance: Tolerance
    feeds: int
    rows: tuple[OutputRow, ...]
    problems: tuple[str, ...]
    worst_feed: int
    minimum_tolerance: Tolerance | None

    @property
    def passed(self) -> bool:
        return not self.problems and all(row.passed for row in self.rows)

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.problems:
            return "; ".join(self.problems)
        compared = [row for row in self.rows if not row.note]
        if not compared:
            return "nothing to compare: the original's own values change from run to run"
        if failed := [row for row in compared if not row.passed]:
            more = f" (and {len(failed) - 1} more outputs)" if len(failed) > 1 else ""
            return failed[0].complaint + more
        worst = max(compared, key=lambda row: row.max_abs)
        parts = [f"equal within {self.tolerance} on {self.feeds} feeds: max abs {worst.max_abs:.2g}"]
        if math.isfinite(worst.sqnr_db):
            parts.append(f"SQNR {worst.sqnr_db:.0f} dB")
        for row in compared:
            if row.top1_agreement is not None:
                parts.append(f"top-1 agreement {row.top1_agreement:.2%}")
            if row.accuracy_original is not None and row.accuracy_artifact is not None:
                parts.append(f"accuracy {row.accuracy_original:.2%} -> {row.accuracy_artifact:.2%}")
        return ", ".join(dict.fromkeys(parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest and `--json`."""
        minimum = self.minimum_tolerance
        return {
            "passed": self.passed,
            "tolerance": _bar(self.tolerance),
            "minimum_tolerance": None if minimum is None else _bar(minimum),
            "feeds": self.feeds,
            "worst_feed": self.worst_feed,
            "problems": list(self.problems),
            "outputs": [row.to_dict() for row in self.rows],
        }


def verify(
    original: Path | Model,
    artifact: Path | Model,
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    tolerance: Tolerance = ROUNDING,
    labels: np.ndarray | None = None,
    threads: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare all outputs on all feeds, one feed in memory at a time.

    labels: class numbers, one per row of the classifier output, in the order of the feeds.
    on_progress: called with (done, total) after each feed; total is 0 where `feeds` has no length.

    Raises FrontendError, LoweringError or CalibrationError where a model doesn't load or run; a difference is a result.
    """
    first = _session(original, ORIGINAL, FrontendError, threads)
    second = _session(artifact, ARTIFACT, LoweringError, threads)
    boundary = Boundary.of_session(second)
    problems = _interface_problems(first, second)
    shared = [info.name for info in first.outputs if info.name in {other.name for other in second.outputs}]
    known = {info.name for info in second.inputs}
    differences = {name: Difference(tolerance) for name in shared}
    notes: dict[str, str] = {}
    worst, worst_feed, count, row = -1.0, 0, 0, 0
    total = len(feeds) if isinstance(feeds, Sized) else 0
    for feed in feeds:
        expected = first.run(feed)
        fed = {name: array for name, array in feed.items() if name in known}
        results = second.run(boundary.encoded_for(second, fed))
        found = {name: boundary.decoded(name, array) for name, array in results.items()}
        taken = 0
        for name in shared:
            if name in notes:
                continue
            batch = _labels_of(expected[name], labels, row)
            taken = max(taken, 0 if batch is None else len(batch))
            badness = differences[name].add(expected[name], found[name], batch)
            if count == 0 and not differences[name].passed and not _repeats(first, feed, name, expected[name]):
                notes[name] = "not compared: the original's own values change from run to run"
            elif badness > worst:
                worst, worst_feed = badness, count
        row += taken
        count += 1
        if on_progress:
            on_progress(count, total)
    if count == 0:
        raise CalibrationError("there are no feeds to verify with", remedy="give data, or random:8")
    labelled = labels is not None and row == len(labels)
    rows = tuple(_row(name, differences[name], notes.get(name, ""), labelled) for name in shared)
    minimum = None if problems else _minimum(tolerance, [differences[name] for name in shared if name not in notes])
    return Verification(tolerance, count, rows, tuple(problems), worst_feed, minimum)


def _session(model: Path | Model, what: str, error: type[FrontendError | LoweringError], threads: int) -> Model:
    return open_model(model, threads=threads, what=what, error=error) if isinstance(model, Path) else model


def _interface_problems(original: Model, artifact: Model) -> list[str]:
    problems = []
    pairs = (("input", original.inputs, artifact.inputs), ("output", original.outputs, artifact.outputs))
    for kind, before, after in pairs:
        names = {info.name for info in before}
        found = {info.name for info in after}
        problems += [f"the artifact lacks {kind} '{info.name}'" for info in before if info.name not in found]
        problems += [f"the artifact has an extra {kind} '{info.name}'" for info in after if info.name not in names]
    return problems


def _labels_of(output: Any, labels: np.ndarray | None, start: int) -> np.ndarray | None:
    """Labels of the rows of a [rows, classes] output of floats."""
    if labels is None or not isinstance(output, np.ndarray) or output.ndim != 2 or output.shape[1] < 2:
        return None
    return labels[start : start + len(output)]


def _repeats(session: Model, feed: Mapping[str, np.ndarray], name: str, value: Any) -> bool:
    """Whether the original gives the same value twice; one with random operators doesn't."""
    return Difference(EXACT).add(value, session.run(feed, [name])[name]) == 0


def _row(name: str, found: Difference, note: str, labelled: bool) -> OutputRow:
    top1 = found.rows and not note
    return OutputRow(
        name=name,
        dtype=found.dtype,
        shape=found.shape,
        passed=bool(note) or found.passed,
        max_abs=found.max_abs,
        max_rel=found.max_rel,
        cosine=found.cosine,
        sqnr_db=found.sqnr_db,
        elements=found.elements,
        over_tolerance=found.over_tolerance,
        nan_mismatches=found.nan_mismatches,
        needed_atol=max(0.0, found.needed_atol),
        top1_agreement=found.same_top1 / found.rows if top1 else None,
        accuracy_original=found.hits[0] / found.rows if top1 and labelled else None,
        accuracy_artifact=found.hits[1] / found.rows if top1 and labelled else None,
        problem="" if note else found.problem,
        note=note,
    )


def _minimum(tolerance: Tolerance, differences: list[Difference]) -> Tolerance | None:
    """The tightest bar of the same kind that all outputs pass."""
    for found in differences:
        if found.problem or found.nan_mismatches or (not found.is_float and found.over_tolerance):
            return None
    floats = [found for found in differences if found.is_float]
    if tolerance.min_sqnr_db is not None:
        return replace(tolerance, min_sqnr_db=min((found.sqnr_db for found in floats), default=math.inf))
    needed = max((found.needed_atol for found in floats), default=0.0)
    return replace(tolerance, atol=max(0.0, needed))


def _bar(tolerance: Tolerance) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(tolerance).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value
