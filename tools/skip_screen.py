"""Neurons that kernels leave out, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from planish.passes.sparse.skip_inactive import SkipReport
from planish.tools.titled import titled


def tables(report: SkipReport) -> Iterator[Table]:
    """Each feed-forward layer: how many neurons give 0, how many can be proved to, and the time that is expected."""
    made = titled("Inactive neurons", "layer", "neurons", "inactive", "proved", "expected time")
    for row in report.layers:
        expected = f"{100 * row.cost:.0f} %" + ("" if row.taken else ", left dense")
        made.add_row(row.name, f"{row.neurons}", f"{100 * row.inactive:.1f} %", f"{100 * row.proved:.1f} %", expected)
    yield made
