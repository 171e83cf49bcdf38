"""The page: what the result screen says, with the pictures that a terminal can't show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from planish.passes.norms.unify_report import UnifyReport
from planish.passes.shiftadd.report import ShiftAddReport
from planish.passes.sparse.report import PruneReport
from planish.passes.tokens.report import CompressReport, Point
from planish.tools import codebook_screen, forms_screen, pass_screens, pruning_screen, token_screen
from planish.tools.agreement import agreement
from planish.tools.compiling import Outcome
from planish.tools.forms import FormsReport
from planish.tools.recovery.recover import Recovery
from planish.tools.report.codebook_curve import bits_curve, layer_picture
from planish.tools.report.curve import error_curve, training_curve
from planish.tools.report.pruning_curve import density_picture, sparsity_curve
from planish.tools.report.token_curve import block_picture, speed_curve
from planish.tools.screen import mib, pass_rows, speed_line
from planish.tools.token_screen import error_cells

FILE = "report.html"


def write_report(folder: Path, outcome: Outcome) -> None:
    """Write report.html into an artifact folder."""
    import jinja2

    source = (Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    before, after = Counter(outcome.before.ops), Counter(outcome.after.ops)
    ops = sorted(set(before) | set(after), key=lambda op: (-max(before[op], after[op]), op))
    text = page.render(
        model=outcome.job.source.name,
        target=outcome.job.target.name,
        summary=_summary(outcome),
        unified=[_norms(report) for report in outcome.context.reports if isinstance(report, UnifyReport)],
        compressed=[_tokens(report) for report in outcome.context.reports if isinstance(report, CompressReport)],
        coded=[_codebooks(report) for report in outcome.context.reports if isinstance(report, ShiftAddReport)],
        pruned=[_zeros(report) for report in outcome.context.reports if isinstance(report, PruneReport)],
        forms=[_forms(report) for report in outcome.context.reports if isinstance(report, FormsReport)],
        tables=[_table(table) for report in outcome.context.reports for table in pass_screens.others(report)],
        refused=[str(refused) for refused in token_screen.refusals(outcome.context.records)],
        ops=[(op, before[op], after[op]) for op in ops] + [("all", outcome.before.nodes, outcome.after.nodes)],
        passes=[_pass(row) for row in pass_rows(outcome)],
    )
    (folder / FILE).write_text(text, encoding="utf-8")


def _summary(outcome: Outcome) -> list[tuple[str, str]]:
    verified = outcome.verification
    rows = [
        ("pipeline", str(outcome.job.pipeline)),
        ("size", f"{mib(outcome.before.bytes)} → {mib(outcome.after.bytes)}"),
        ("nodes", f"{outcome.before.nodes} → {outcome.after.nodes}"),
        ("agreement", f"not verified: {outcome.unverified}" if verified is None else agreement(verified)),
    ]
    if outcome.written.sparsity is not None:
        rows.append(("zeros", str(outcome.written.sparsity)))
    if outcome.measurements is not None:
        rows.append(("speed", speed_line(outcome.measurements).plain))
    return rows


def _norms(report: UnifyReport) -> dict[str, Any]:
    training = report.recovery if isinstance(report.recovery, Recovery) else None
    return {
        "budget": report.budget,
        "curve": error_curve(report),
        "training": None if training is None else training_curve(training),
        "steps": 0 if training is None else training.steps,
        "rows": [
            (
                row.name,
                "" if row.state == "kept" else row.variant,
                row.state,
                f"{100 * row.deviations.variation:.0f} %",
                f"{row.deviations.peak:.1f}",
                f"{100 * row.local_nmse:.2g} %",
                *error_cells(row.alone),
                row.note,
            )
            for row in report.norms
        ],
    }


def _tokens(report: CompressReport) -> dict[str, Any]:
    points = [(method, point) for method, curve in report.curves.items() for point in curve]
    return {
        "summary": token_screen.summary(report),
        "order_error": None if report.order_error is None else f"{report.order_error:.1g}",
        "curve": speed_curve(report) if points else None,
        "points": [(point is report.result, _point(method, point)) for method, point in points],
        "blocks": block_picture(report),
        "rows": token_screen.block_rows(report),
        "refused": list(report.refused.items()),
    }


def _codebooks(report: ShiftAddReport) -> dict[str, Any]:
    return {
        "summary": codebook_screen.summary(report),
        "curve": bits_curve(report) if len(report.curve) > 1 else None,
        "points": [(point.taken, codebook_screen.point_cells(point)) for point in report.curve],
        "unseen": error_cells(report.reported),
        "picture": layer_picture(report),
        "rows": [
            (
                layer.name,
                layer.codebook or codebook_screen.FLOATS,
                f"{layer.elements:,}",
                f"{layer.bits:.2f}",
                f"{layer.digits:.2f}" if layer.codebook else "",
                "" if layer.noise_db is None else f"{layer.noise_db:.1f}",
            )
            for layer in report.layers
        ],
    }


def _zeros(report: PruneReport) -> dict[str, Any]:
    return {
        "summary": pruning_screen.summary(report),
        "curve": sparsity_curve(report),
        "points": [
            (method, point.taken, pruning_screen.point_cells(point))
            for method, points in report.curves.items()
            for point in points
        ],
        "unseen": error_cells(report.reported),
        "picture": density_picture(report),
        "rows": [
            (
                layer.name,
                f"{layer.elements:,}",
                f"{100 * layer.density:.1f} %",
                "" if layer.noise_db is None else f"{layer.noise_db:.1f}",
                "" if layer.masked_db is None else f"{layer.masked_db:.1f}",
            )
            for layer in report.layers
        ],
    }


def _forms(report: FormsReport) -> dict[str, Any]:
    return {
        "columns": forms_screen.COLUMNS,
        "rows": [(row.name, forms_screen.cells(row)) for row in report.rows],
        "caption": forms_screen.caption(report),
    }


def _table(table: Table) -> dict[str, Any]:
    """A table of the terminal."""
    return {
        "title": table.title,
        "columns": [column.header for column in table.columns],
        "rows": list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)),
    }


def _point(method: str, point: Point) -> tuple[str, ...]:
    _, *figures = token_screen.point_cells(point)
    removed = " ".join(str(count) for count in point.choice.removed)
    return (method, *figures, removed)


def _pass(row: dict[str, Any]) -> tuple[str, int, str, list[str]]:
    what = ", ".join(f"{rule} {n}" for rule, n in row["rules"].items() if rule != row["name"])
    return row["name"], row["rewrites"], what, [f"left alone, {n}: {reason}" for reason, n in row["skipped"].items()]
