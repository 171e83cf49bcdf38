"""What `planish inspect --energy` shows: energy by layer and in total, and every assumption."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planish.ir.graph import Graph
from planish.tools.energy import FORMS, EnergyReport, energy_of
from planish.tools.titled import titled


def print_energy(graph: Graph, as_json: bool) -> None:
    """Print the energy of one inference of a graph."""
    report = energy_of(graph)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    console = Console()
    console.print(layer_table(report))
    console.print(total_table(report))
    for line in report.assumptions:
        console.print(Text(f"- {line}", style="dim"))
    if report.skipped:
        console.print(Text(f"not counted, though they multiply: {', '.join(report.skipped)}", style="yellow"))


def layer_table(report: EnergyReport) -> Table:
    """One row per layer, energies in nJ."""
    table = titled("Energy by layer, nJ")
    table.add_column("layer", overflow="fold")
    table.add_column("op", overflow="fold")
    for name in ("products", "digits", "bits", *(f"{column} {form}" for column in "AB" for form in FORMS)):
        table.add_column(name, justify="right")
    for row in report.layers:
        layer = row.layer
        energies = [row.forms[form].operations for form in FORMS] + [row.forms[form].total for form in FORMS]
        shown = [layer.name.split("+")[0], layer.op, f"{layer.macs:,}", f"{layer.digits:.2f}", f"{layer.bits:.3g}"]
        table.add_row(*map(Text, shown), *(f"{energy / 1e3:,.0f}" for energy in energies))
    return table


def total_table(report: EnergyReport) -> Table:
    """One row per form: energies in µJ, and how many times less than fp32."""
    table = titled("In total, µJ", "form", "A operations", "", "B with traffic", "", "C as ShiftAddViT", "")
    totals = report.totals
    for form in FORMS:
        found, base = totals[form], totals["fp32"]
        cells = []
        for energy, reference in (
            (found.operations, base.operations),
            (found.total, base.total),
            (found.published, base.published),
        ):
            cells += (
                ["-", ""] if not energy or not reference else [f"{energy / 1e6:.4g}", f"1/{reference / energy:.3g}"]
            )
        table.add_row(form, *cells)
    return table
