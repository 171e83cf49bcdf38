"""Sparse weights between block-diagonal factors, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from planish.passes.sparse.armor_prune import ArmorReport
from planish.tools.titled import titled


def tables(report: ArmorReport) -> Iterator[Table]:
    """Each layer: what stays of its core, what the factors cost, and its noise with and without them."""
    table = titled("Weights between factors", "layer", "left", "more products", "noise", "without factors")
    for row in report.layers:
        shown = ("" if n is None else f"{n:.1f} dB" for n in (row.noise_db, row.plain_db))
        table.add_row(row.name, f"{100 * row.density:.1f} %", f"{100 * row.extra:.1f} %", *shown)
    yield table
