"""What became of attention, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from planish.passes.shiftadd.add_attention import AddAttentionReport
from planish.passes.sparse.sparsify_attention import SparseAttentionReport
from planish.tools.recovery.recover import Recovery
from planish.tools.titled import titled


def by_sums(report: AddAttentionReport) -> Iterator[Table]:
    """Each attention that signed sums stand for, with its error before training; that of the outputs after training."""
    made = titled("Attention by signed sums", "attention", "alpha", "beta", "error")
    for row in report.attentions:
        made.add_row(row.name, f"{row.alpha:.3g}", f"{row.beta:.3g}", f"{100 * row.nmse:.0f} %")
    trained = f", trained for {report.recovery.steps} steps" if isinstance(report.recovery, Recovery) else ""
    drop = "" if report.reported.drop is None else f", metric {-report.reported.drop:+.3g}"
    made.add_row(f"outputs{trained}", "", "", f"{100 * report.reported.nmse:.2g} %{drop}", style="bold")
    yield made


def sparse(report: SparseAttentionReport) -> Iterator[Table]:
    """What the heads of each attention look at, and the estimated time of it over that of all keys."""
    made = titled("Sparse attention")
    made.add_column("attention", overflow="fold")
    made.add_column("heads", overflow="fold")
    made.add_column("time", justify="right")
    for row in report.attentions:
        made.add_row(row.name, "; ".join(row.heads), f"{100 * row.cost:.0f} %")
    drop = "" if report.reported.drop is None else f", metric {-report.reported.drop:+.3g}"
    error = f"error {100 * report.reported.nmse:.2g} % of the variance{drop}"
    made.add_row("outputs", error, "", style="bold")
    yield made
