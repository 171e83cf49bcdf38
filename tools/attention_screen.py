"""What became of attention, as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from planish.passes.shiftadd.add_attention import AddAttentionReport
from planish.tools.recovery.recover import Recovery


def table(report: AddAttentionReport) -> Table:
    """Each attention that signed sums stand for, with its error before training; that of the outputs after training."""
    made = Table(title="Attention by signed sums", title_justify="left", title_style="bold", box=None, pad_edge=False)
    made.add_column("attention", overflow="fold")
    for name in ("alpha", "beta", "error"):
        made.add_column(name, justify="right")
    for row in report.attentions:
        made.add_row(row.name, f"{row.alpha:.3g}", f"{row.beta:.3g}", f"{100 * row.nmse:.0f} %")
    trained = f", trained for {report.recovery.steps} steps" if isinstance(report.recovery, Recovery) else ""
    drop = "" if report.reported.drop is None else f", metric {-report.reported.drop:+.3g}"
    made.add_row(f"outputs{trained}", "", "", f"{100 * report.reported.nmse:.2g} %{drop}", style="bold")
    return made
