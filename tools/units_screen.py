"""Fewer neurons and heads in the terminal: what each layer keeps, and what keeping more or fewer would have done."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from planish.passes.sparse.units_report import UnitsReport
from planish.tools.titled import titled
from planish.tools.token_screen import error_cells


def summary(report: UnitsReport) -> str:
    """One line: how much of the layers stays, and what that costs on samples that had no part in the choice."""
    kept = [
        f"{sum(row.kept for row in rows):,} of {sum(row.units for row in rows):,} {kind}"
        for kind in ("neurons", "heads")
        if (rows := [row for row in report.layers if row.kind == kind])
    ]
    error, metric = error_cells(report.reported)
    judged = f"outputs err by {error} of their variance" + (f", metric {metric}" if metric else "")
    return f"{' and '.join(kept)} stay, {100 * report.density:.0f} % of their products; {judged}"


def tables(report: UnitsReport) -> Iterator[RenderableType]:
    """Layers, then the choices that were measured."""
    layers = titled("Units", "layer", "units", "stay", "noise", "without a fit")
    for row in report.layers:
        shown = ("" if n is None else f"{n:.1f} dB" for n in (row.noise_db, row.masked_db))
        layers.add_row(row.name, f"{row.units:,} {row.kind}", f"{row.kept:,}", *shown)
    yield layers
    curve = titled("What narrower layers cost", "products that stay", "error of outputs", "metric")
    for point in report.curve:
        cells = (f"{100 * point.density:.0f} %", *error_cells(point.chosen))
        curve.add_row(*(Text(cell, style="bold" if point.taken else "") for cell in cells))
    yield curve
