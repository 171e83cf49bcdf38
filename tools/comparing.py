"""Comparison of two model files on the same data."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from planish.frontend.calibration import InputSpec, open_calibration
from planish.ir.errors import UnsupportedOp, UsageError
from planish.tools.compiling import VERIFY_BATCH
from planish.tools.samples import RANDOM_SAMPLES
from planish.tools.verify import EXACT, ROUNDING, Tolerance, Verification, verify


def compare_files(
    original: Path, candidate: Path, data: str | None, tolerance: str, seed: int
) -> tuple[Verification, str]:
    """Compare what two models return, and a note on the data used.

    tolerance: "exact", "rounding", or a least SQNR in dB. Raises UsageError for another text.
    """
    from planish.tools.sessions import open_model

    bar = _tolerance(tolerance)
    first = open_model(original, what="the original model")
    specs: dict[str, InputSpec] = {}
    for info in first.inputs:
        if info.dtype is None:
            raise UnsupportedOp(
                f"input {info.name!r} is a {info.type}, not a tensor", remedy="compare such models in Python"
            )
        specs[info.name] = InputSpec(info.dtype, info.shape)
    source = data or f"random:{RANDOM_SAMPLES}"
    feeds = open_calibration(source, specs, seed=seed, batch=VERIFY_BATCH)
    note = f"compared on {feeds.source}" if data else f"compared on {feeds.source}; give real data with --calib"
    return verify(first, candidate, feeds, tolerance=bar, labels=feeds.labels), note


def comparison_table(verification: Verification) -> Table:
    """One row per output."""
    table = Table(box=None, pad_edge=False)
    table.add_column("output")
    for name in ("max abs", "max rel", "cosine", "SQNR dB", "same top-1", "accuracy", "verdict"):
        table.add_column(name, justify="right")
    for row in verification.rows:
        top1 = "" if row.top1_agreement is None else f"{100 * row.top1_agreement:.2f} %"
        accuracy = ""
        if row.accuracy_original is not None and row.accuracy_artifact is not None:
            accuracy = f"{100 * row.accuracy_original:.2f} -> {100 * row.accuracy_artifact:.2f} %"
        verdict = escape(row.problem or row.note) or ("[green]same[/green]" if row.passed else "[red]differs[/red]")
        figures = (f"{row.max_abs:.3g}", f"{row.max_rel:.3g}", f"{row.cosine:.6f}", f"{row.sqnr_db:.1f}")
        table.add_row(Text(row.name), *figures, top1, accuracy, verdict)
    for problem in verification.problems:
        table.add_row(Text(problem), *[""] * 6, "[red]differs[/red]")
    return table


def _tolerance(text: str) -> Tolerance:
    named = {"exact": EXACT, "rounding": ROUNDING}
    if text in named:
        return named[text]
    try:
        return Tolerance(min_sqnr_db=float(text))
    except ValueError:
        raise UsageError(
            f"{text!r} is no tolerance", remedy='give "exact", "rounding", or a least SQNR in dB such as 30'
        ) from None
