"""What the result screen says of weights in codebooks: how many bits and shifts they take, and what was tried."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from planish.ir.codebooks import CODEBOOKS
from planish.passes.shiftadd.report import LayerFinding, Point, ShiftAddReport
from planish.tools.titled import titled
from planish.tools.token_screen import error_cells

FLOATS = "floats"


def summary(report: ShiftAddReport) -> str:
    """What became of the weights, in one line."""
    coded = sum(1 for layer in report.layers if layer.codebook)
    return (
        f"{coded} of {len(report.layers)} layers as shifts and additions, {report.bits:.2f} bits per weight with"
        f" scales, operations take {100 * report.energy:.0f} % of the energy of int8 ({report.budget})"
    )


def tables(report: ShiftAddReport) -> Iterator[RenderableType]:
    """Layers by codebook; the choices that were measured."""
    table = titled("Codebooks", "codebook", "layers", "weights", "bits", "shifts per weight", "lowest dB")
    table.add_column("what", overflow="fold")
    for name, layers in by_codebook(report).items():
        count = sum(layer.elements for layer in layers)
        table.add_row(
            name,
            str(len(layers)),
            f"{count:,}",
            f"{sum(layer.bits * layer.elements for layer in layers) / count:.2f}",
            f"{sum(layer.digits * layer.elements for layer in layers) / count:.2f}" if name != FLOATS else "",
            _lowest(layers),
            CODEBOOKS[name].summary if name in CODEBOOKS else "",
        )
    yield table
    if len(report.curve) > 1:
        yield _curve(report)


def _lowest(layers: list[LayerFinding]) -> str:
    found = [layer.noise_db for layer in layers if layer.noise_db is not None]
    return f"{min(found):.1f}" if found else ""


def by_codebook(report: ShiftAddReport) -> dict[str, list[LayerFinding]]:
    """Layers of each codebook that occurs, the most exact one first."""
    names = [FLOATS, *CODEBOOKS]
    found = {name: [layer for layer in report.layers if (layer.codebook or FLOATS) == name] for name in names}
    return {name: layers for name, layers in found.items() if layers}


def _curve(report: ShiftAddReport) -> Table:
    table = titled(f"Bits against error ({report.budget})")
    for name in ("bits per weight", "energy", "of outputs", "metric"):
        table.add_column(name, justify="right")
    for point in report.curve:
        table.add_row(*point_cells(point), style="bold" if point.taken else "")
    table.add_row(f"{report.bits:.2f}", "unseen", *error_cells(report.reported), style="bold")
    return table


def point_cells(point: Point) -> tuple[str, ...]:
    """A choice that was measured, as text."""
    return f"{point.bits:.2f}", f"{100 * point.energy:.0f} %", *error_cells(point.chosen)
