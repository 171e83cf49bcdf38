"""The comparison of number formats as a table, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from planish.tools.forms import FormRow, FormsReport, OnRuntime
from planish.tools.titled import titled

COLUMNS = (
    "bits per weight",
    *("KiB, ORT", "top-1, ORT", "speed, ORT"),
    *("KiB, TVM", "top-1, TVM", "speed, TVM"),
    *("µJ, operations", "µJ, with traffic"),
)


def tables(report: FormsReport) -> Iterator[Table]:
    """One row per form."""
    made = titled("Number formats")
    made.add_column("form", overflow="fold")
    for name in COLUMNS:
        made.add_column(name, justify="right")
    for row in report.rows:
        made.add_row(row.name, *cells(row))
    made.caption = caption(report)
    made.caption_justify = "left"
    yield made


def cells(row: FormRow) -> tuple[str, ...]:
    """A row as text, without its name."""
    energies = ("" if energy is None else _short(energy) for energy in (row.operations, row.total))
    return f"{row.bits:.2f}", *_on(row.ort), *_on(row.tvm), *energies


def caption(report: FormsReport) -> str:
    """What the columns mean."""
    return (
        "Speed: times as fast as the original on ONNX Runtime, in turns, batch 1, "
        f"{report.threads or 'all'} thread(s). On ONNX Runtime activations are floats (int8: bytes), on TVM all is"
        f" integers (fp32: floats). Energy: products of one inference in a model of chips ({report.model}), not of this"
        " machine."
    )


def _short(energy: float) -> str:
    return f"{energy:,.0f}" if energy >= 100 else f"{energy:.3g}"


def _on(figures: OnRuntime | None) -> tuple[str, str, str]:
    if figures is None:
        return "", "", ""
    accuracy = "" if figures.accuracy is None else f"{100 * figures.accuracy:.2f} %"
    return f"{figures.bytes / 1024:,.0f}", accuracy, f"{figures.speed:.2f}x"
