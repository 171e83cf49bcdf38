"""Norms that maps stand for, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from planish.passes.norms.unify_report import UnifyReport
from planish.tools.recovery.recover import Recovery
from planish.tools.titled import titled
from planish.tools.token_screen import error_cells


def tables(report: UnifyReport) -> Iterator[Table]:
    """Each norm, and the error against how many of them are replaced."""
    yield _norms(report)
    yield _curve(report)


def _norms(report: UnifyReport) -> Table:
    table = titled("Norms")
    table.add_column("norm", overflow="fold")
    table.add_column("map")
    table.add_column("now")
    for name in ("spread", "peak", "error here", "of outputs", "metric"):
        table.add_column(name, justify="right")
    for row in report.norms:
        table.add_row(
            row.name,
            row.variant if row.state != "kept" else "",
            Text(row.state, style="" if row.state == "kept" else "green"),
            f"{100 * row.deviations.variation:.0f} %",
            f"{row.deviations.peak:.1f}",
            f"{100 * row.local_nmse:.2g} %",
            *error_cells(row.alone),
        )
    return table


def _curve(report: UnifyReport) -> Table:
    title = f"Error against norms replaced ({report.budget})"
    table = titled(title)
    table.add_column("norms", justify="right")
    table.add_column("the last", overflow="fold")
    for name in ("of outputs", "metric"):
        table.add_column(name, justify="right")
    for step in report.curve:
        note = "" if step.accepted else " (too much)"
        table.add_row(str(step.count), step.norm + note, *error_cells(step.distance))
    replaced = sum(row.state != "kept" for row in report.norms)
    if isinstance(report.recovery, Recovery):
        training = f"trained for {report.recovery.steps} steps, "
    else:
        training = ""
    table.add_row(str(replaced), f"{training}on the samples to choose by", *error_cells(report.chosen), style="bold")
    table.add_row(str(replaced), f"{training}on samples seen only now", *error_cells(report.reported), style="bold")
    return table
