"""Neurons that kernels leave out, as a table for the terminal."""

from __future__ import annotations

from rich.table import Table

from planish.passes.sparse.skip_inactive import SkipReport


def table(report: SkipReport) -> Table:
    """Each feed-forward layer: how many neurons give 0, how many can be proved to, and the time that is expected."""
    made = Table(title="Inactive neurons", title_justify="left", title_style="bold", box=None, pad_edge=False)
    made.add_column("layer", overflow="fold")
    for name in ("neurons", "inactive", "proved", "expected time"):
        made.add_column(name, justify="right")
    for row in report.layers:
        expected = f"{100 * row.cost:.0f} %" + ("" if row.taken else ", left dense")
        made.add_row(row.name, f"{row.neurons}", f"{100 * row.inactive:.1f} %", f"{100 * row.proved:.1f} %", expected)
    return made
