"""What the result screen says of compressed tokens: how many each block has, what was tried, and what refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from planish.passes.base import PassRecord
from planish.passes.judging import Distance
from planish.passes.tokens import CompressTokens
from planish.passes.tokens.report import CompressReport, Point
from planish.tools.titled import titled

_DONE = {"merge": "merged", "fuse": "fused", "eliminate": "eliminated", "route": "routed"}
_REMEDIES = {
    "T3": "another --tokens method may do: eliminate takes positions and masks along",
    "T5": "another --tokens method may do: eliminate takes positions and masks along",
    "T9": "give a --schedule in which fewer tokens go",
}


@dataclass(frozen=True)
class Refused:
    """Why a model was left as it was. where: the node at fault, "" for none."""

    reason: str
    where: str

    def __str__(self) -> str:
        at = f" (at {self.where})" if self.where else ""
        remedy = _REMEDIES.get(self.reason.partition(":")[0])
        return f"no tokens were compressed, the model was left as it was. {self.reason}{at}" + (
            f". {remedy[0].upper()}{remedy[1:]}" if remedy else ""
        )


def refusals(records: Sequence[PassRecord]) -> list[Refused]:
    """What kept the pass from doing anything at all."""
    return [
        Refused(reason, where)
        for record in records
        if record.name == CompressTokens.name and not record.changes.rewrites
        for where, reason in record.changes.skipped
    ]


def summary(report: CompressReport) -> str:
    """What became of the tokens, in one line."""
    cuts = sum(1 for removed in report.choice.removed if removed)
    if not cuts:
        return f"all {report.tokens} kept: no schedule is faster within the bars ({report.budget})"
    where = "1 block" if cuts == 1 else f"{cuts} blocks"
    return f"{_DONE[report.choice.method]} in {where}, {report.tokens} -> {min(report.counts)} ({report.budget})"


def tables(report: CompressReport) -> Iterator[RenderableType]:
    """Tokens by block; the points that were measured, of the method that was taken; methods that were refused."""
    yield _blocks(report)
    if report.curves:
        yield _curve(report)
        others = [
            f"{method} ({len(points)} points)"
            for method, points in report.curves.items()
            if method != report.choice.method
        ]
        if others:
            yield Text(f"tried too, see report.html: {', '.join(others)}", style="dim")
    for reason in report.refused.items():
        yield Text(": ".join(("refused", *reason)), style="yellow")


def _blocks(report: CompressReport) -> Table:
    table = titled("Tokens", "block", "before", "go", "left")
    for name, before, removed, left in block_rows(report):
        table.add_row(Text(name), str(before), str(removed or ""), Text(str(left), style="green" if removed else ""))
    return table


def block_rows(report: CompressReport) -> list[tuple[str, int, int, int]]:
    """Name of each attention, tokens that it sees, that go behind it, and that are left for the MLP."""
    seen = report.choice.tokens_by_block(report.tokens)
    return [(name, b, b - left, left) for name, (b, left) in zip(report.blocks, seen, strict=True)]


def _curve(report: CompressReport) -> Table:
    table = titled(f"Speed against error: {report.choice.method}, {report.budget}")
    for name in ("left", "times as fast", "of outputs", "metric", "on unseen", "metric"):
        table.add_column(name, justify="right")
    for point in report.curves.get(report.choice.method, ()):
        table.add_row(*point_cells(point), style="bold" if point is report.result else "")
    return table


def point_cells(point: Point) -> tuple[str, ...]:
    """A point that was tried, as text: speeds by the search's own model of time are marked."""
    speed = f"{point.speed:.2f}" + ("" if point.measured else " (estimated)")
    unseen = ("", "") if point.reported is None else error_cells(point.reported)
    return (str(min(point.counts)), speed, *error_cells(point.chosen), *unseen)


def error_cells(distance: Distance) -> tuple[str, str]:
    """Error of the outputs, and change of the metric, as text."""
    return f"{100 * distance.nmse:.2g} %", "" if distance.drop is None else f"{0 - distance.drop:+.3g}"
