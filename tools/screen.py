"""The result screen: what changed, what it costs, whether it still works, how much faster it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from planish.tools import pass_screens, token_screen
from planish.tools.accuracy_control import Controlled, table_rows
from planish.tools.agreement import agreement
from planish.tools.compiling import Outcome
from planish.tools.measure import Measurements
from planish.tools.titled import titled
from planish.tools.verify import Verification

SHOWN_LAYERS = 10  # rows of the table of sensitive layers
SHOWN_OPS = 16  # rows of the op table; the rest is summed up


class Bars:
    """Progress on a terminal: a spinner per stage, a bar where steps can be counted. Silent in a pipe."""

    def __init__(self, console: Console):
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bars.add_task("start", total=None)

    def stage(self, name: str) -> None:
        self.bars.reset(self.task, description=name, total=None)

    def advance(self, done: int, total: int) -> None:
        self.bars.update(self.task, completed=done, total=total or None)


def render(outcome: Outcome, *, times: bool = False) -> Group:
    """The whole screen."""
    parts: list[RenderableType] = [_ops_table(outcome), _pass_table(outcome, times)]
    if times:
        parts.append(_stage_table(outcome))
    if outcome.controlled is not None:
        parts += [_sensitivity_table(outcome.controlled), _attempt_table(outcome.controlled)]
    for report in outcome.context.reports:
        parts += pass_screens.tables(report)
    parts.append(_summary(outcome))
    return Group(*parts)


def _ops_table(outcome: Outcome) -> Table:
    before, after = Counter(outcome.before.ops), Counter(outcome.after.ops)
    table = titled("Nodes", "op", "before", "after", "change")
    rows = sorted(set(before) | set(after), key=lambda op: (-max(before[op], after[op]), op))
    for op in rows[:SHOWN_OPS]:
        table.add_row(op, *_counts(before[op], after[op]))
    if rest := rows[SHOWN_OPS:]:
        table.add_row(f"{len(rest)} others", *_counts(sum(before[o] for o in rest), sum(after[o] for o in rest)))
    table.add_row(Text("all", style="bold"), *_counts(outcome.before.nodes, outcome.after.nodes))
    return table


def _counts(before: int, after: int) -> tuple[str, str, Text]:
    change = after - before
    return (
        str(before or ""),
        str(after or ""),
        Text(f"{change:+d}" if change else "", style="green" if change < 0 else ""),
    )


def _pass_table(outcome: Outcome, times: bool) -> Table:
    table = titled("Passes")
    table.add_column("pass")
    table.add_column("applied", justify="right")
    if times:
        table.add_column("ms", justify="right")
    table.add_column("what", overflow="fold")
    for row in pass_rows(outcome):
        cells = [row["name"], str(row["rewrites"])]
        if times:
            cells.append(f"{1000 * row['seconds']:.1f}")
        what = ", ".join(f"{rule} {n}" for rule, n in row["rules"].items() if rule != row["name"])
        skipped = "; ".join(f"skipped {n}: {reason}" for reason, n in row["skipped"].items())
        table.add_row(*cells, Text(what).append(("\n" if what and skipped else "") + skipped, style="yellow"))
    return table


def pass_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per pass, repeated runs summed: rewrites by rule, reasons for skipping, seconds."""
    rows: dict[str, dict[str, Any]] = {}
    for record in outcome.context.records:
        row = rows.setdefault(
            record.name, {"name": record.name, "rewrites": 0, "seconds": 0.0, "rules": Counter(), "skipped": Counter()}
        )
        row["rewrites"] += record.changes.count
        row["seconds"] += record.seconds
        row["rules"].update(record.changes.rewrites)
        row["skipped"] = Counter(reason for _, reason in record.changes.skipped) or row["skipped"]
    return list(rows.values())


def _sensitivity_table(controlled: Controlled) -> Table:
    table = titled("Most sensitive layers")
    table.add_column("layer", overflow="fold")
    table.add_column("op")
    for name in ("bits", "8-bit activations dB", "result dB"):
        table.add_column(name, justify="right")
    for row in table_rows(controlled.context.layer_errors or ())[:SHOWN_LAYERS]:
        table.add_row(row.layer, row.op, str(row.bits), f"{row.activation_db:.1f}", f"{row.output_db:.1f}")
    return table


def _attempt_table(controlled: Controlled) -> Table:
    table = titled("Accuracy")
    table.add_column("setting", overflow="fold")
    table.add_column("metric", justify="right")
    table.add_column("change", justify="right")
    table.add_row("original", f"{controlled.reference:.4g}", "")
    for attempt in controlled.attempts:
        table.add_row(attempt.setting, f"{attempt.metric:.4g}", f"{attempt.metric - controlled.reference:+.3g}")
    return table


def _stage_table(outcome: Outcome) -> Table:
    table = titled("Stages")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for stage, seconds in outcome.seconds.items():
        table.add_row(stage, f"{1000 * seconds:.0f}")
    return table


def _summary(outcome: Outcome) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("size", f"{mib(outcome.before.bytes)} -> {mib(outcome.after.bytes)}")
    if outcome.written.opset is None:
        grid.add_row("code", outcome.written.note)
    else:
        grid.add_row("opset", f"{outcome.written.opset} ({outcome.written.note})")
    if outcome.written.sparsity is not None:
        grid.add_row("zeros", str(outcome.written.sparsity))
    for refused in token_screen.refusals(outcome.context.records):
        grid.add_row("tokens", Text(str(refused), style="yellow"))
    for report in outcome.context.reports:
        if (line := pass_screens.summary(report)) is not None:
            grid.add_row(*line)
    grid.add_row("agreement", _agreement(outcome.verification, outcome.unverified))
    if outcome.measurements is not None:
        grid.add_row("speed", speed_line(outcome.measurements))
    grid.add_row("artifact", Text(str(outcome.job.out)))
    title = Text(f"{outcome.job.source.name} -> {outcome.job.target.name}")
    return Panel(grid, title=title, title_align="left", expand=False)


def _agreement(verification: Verification | None, unverified: str) -> Text:
    if verification is None:
        return Text(f"not verified: {unverified}", style="yellow")
    text = Text(agreement(verification), style="green" if verification.passed else "red")
    return text.append(f"\n{unverified}", style="yellow") if unverified else text


def speed_line(measurements: Measurements) -> Text:
    """How the artifact compares with the original, said plainly."""
    ratio, verdict = measurements.ratio("artifact"), measurements.verdict("artifact")
    old, new = measurements.median_ms("original"), measurements.median_ms("artifact")
    word = {"faster": "times as fast as", "slower": "times as fast (SLOWER) as", "equal": "times as fast (no gain) as"}
    style = {"faster": "green", "slower": "red", "equal": "yellow"}[verdict]
    text = f"{ratio:.2f} {word[verdict]} the original under ORT_ENABLE_ALL, {measurements.threads} thread(s)"
    return Text(text, style=style).append(
        f"\nmedian {old:.2f} ms -> {new:.2f} ms, interleaved, batch as fed", style="dim"
    )


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.2f} MiB" if count >= 2**19 else f"{count / 2**10:.1f} KiB"


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The screen as data, for --json."""
    job = outcome.job
    return {
        "model": str(job.source),
        "artifact": str(job.out),
        "target": job.target.name,
        "pipeline": str(job.pipeline),
        "opset": outcome.written.opset,
        "opset_reason": outcome.written.note,
        "sparsity": None if outcome.written.sparsity is None else outcome.written.sparsity.to_dict(),
        "nodes": {"before": outcome.before.nodes, "after": outcome.after.nodes},
        "ops": {"before": dict(outcome.before.ops), "after": dict(outcome.after.ops)},
        "understood": dict(outcome.understood),
        "bytes": {"before": outcome.before.bytes, "after": outcome.after.bytes},
        "passes": pass_rows(outcome),
        "verification": None if outcome.verification is None else outcome.verification.to_dict(),
        "unverified": outcome.unverified,
        **pass_screens.to_json(outcome.context.reports),
        "tokens_refused": [asdict(refused) for refused in token_screen.refusals(outcome.context.records)],
        "accuracy": None if outcome.controlled is None else _accuracy(outcome.controlled),
        "measurements": None if outcome.measurements is None else outcome.measurements.to_dict(),
        "seconds": dict(outcome.seconds),
    }


def _accuracy(controlled: Controlled) -> dict[str, Any]:
    return {
        "original": controlled.reference,
        "attempts": [asdict(attempt) for attempt in controlled.attempts],
        "layers": [asdict(row) for row in table_rows(controlled.context.layer_errors or ())],
    }
