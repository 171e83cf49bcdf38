"""What the result screen says of weights set to zero: how much of each layer stays, and what was tried."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from planish.passes.sparse.report import Point, PruneReport
from planish.tools.recovery.recover import Recovery
from planish.tools.titled import titled
from planish.tools.token_screen import error_cells


def summary(report: PruneReport) -> str:
    """What became of the weights, in one line."""
    sparse = sum(1 for layer in report.layers if layer.density < 1)
    return (
        f"{sparse} of {len(report.layers)} layers with zeros ({report.structure}, {report.method}),"
        f" {100 * (1 - report.density):.1f} % of their products gone ({report.budget}){trained(report)}"
    )


def trained(report: PruneReport) -> str:
    """What training did, as the end of a sentence; "" without."""
    found = report.recovery
    if not isinstance(found, Recovery):
        return ""
    return f", trained for {found.steps} steps: error {100 * found.before:.2g} % -> {100 * found.after:.2g} %"


def tables(report: PruneReport) -> Iterator[RenderableType]:
    """What stays of layers; the choices that were measured."""
    table = titled("Zeros", "layers with", "layers", "weights", "lowest dB", "without a fit")
    for share in sorted({layer.density for layer in report.layers}, reverse=True):
        found = [layer for layer in report.layers if layer.density == share]
        table.add_row(
            f"{100 * share:.1f} % left",
            str(len(found)),
            f"{sum(layer.elements for layer in found):,}",
            _lowest([layer.noise_db for layer in found]),
            _lowest([layer.masked_db for layer in found]),
        )
    yield table
    for method, points in report.curves.items():
        yield _curve(report, method, points)


def point_cells(point: Point) -> tuple[str, ...]:
    """A choice that was measured, as text."""
    return f"{100 * (1 - point.density):.1f} %", *error_cells(point.chosen)


def _curve(report: PruneReport, method: str, points: tuple[Point, ...]) -> Table:
    table = titled(f"Zeros against error, {method} ({report.budget})")
    for name in ("products gone", "of outputs", "metric"):
        table.add_column(name, justify="right")
    for point in points:
        table.add_row(*point_cells(point), style="bold" if point.taken else "")
    if method == report.method:
        table.add_row("unseen", *error_cells(report.reported), style="bold")
    return table


def _lowest(found: list[float | None]) -> str:
    known = [value for value in found if value is not None]
    return f"{min(known):.1f}" if known else ""
