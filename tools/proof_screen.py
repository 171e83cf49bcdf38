"""What `planish inspect` shows of proofs: that a model is integer-only, and that it doesn't multiply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planish.ir.errors import UnsupportedOp
from planish.tools.integer_only import Offender, inspect_integers
from planish.tools.no_multiply import inspect_no_multiply

_SHOWN = 20  # offenders on the screen


def print_integers(model: Path, no_boundary: bool, as_json: bool) -> None:
    """Whether a model is integer-only. Raises UnsupportedOp (exit code 4) if it isn't."""
    found = inspect_integers(model)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print_verdict(model, found.verdict, found.boundary, found.offenders)
    _refuse(model, found.verdict, found.boundary if no_boundary else (), found.offenders, "integer-only")


def print_certificate(model: Path, no_boundary: bool, as_json: bool) -> None:
    """Whether a model doesn't multiply, and the ops it consists of. Raises UnsupportedOp (exit code 4) if it may."""
    found = inspect_no_multiply(model)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print_verdict(model, found.verdict, found.boundary, found.offenders)
        table = Table(box=None, pad_edge=False)
        table.add_column("kind")
        table.add_column("nodes", justify="right")
        table.add_column("ops", overflow="fold")
        for kind, ops in found.counts.items():
            shown = ", ".join(f"{op} {n}" for op, n in sorted(ops.items(), key=lambda item: (-item[1], item[0])))
            table.add_row(kind, f"{sum(ops.values()):,}", shown)
        Console().print(table)
    boundary = found.boundary if no_boundary else ()
    _refuse(model, found.verdict, boundary, found.offenders, "integer-only --no-multiply")


def _print_verdict(model: Path, verdict: str, boundary: Sequence[str], offenders: Sequence[Offender]) -> None:
    console = Console()
    console.print(Text(f"{model.name}: {verdict}", style="bold"))
    if boundary:
        console.print(Text(f"float at the border, codes inside: {', '.join(boundary)}"))
    if not offenders:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("node", "op", "tensor", "why"):
        table.add_column(column, overflow="fold")
    for row in offenders[:_SHOWN]:
        table.add_row(Text(row.where), row.op, Text(row.tensor), row.reason)
    console.print(table)
    if len(offenders) > _SHOWN:
        console.print(f"and {len(offenders) - _SHOWN} more; --json lists all")


def _refuse(model: Path, verdict: str, boundary: Sequence[str], offenders: Sequence[Offender], recipe: str) -> None:
    """Raise UnsupportedOp if there are offenders, or a border where none is wanted."""
    if offenders:
        text = verdict if verdict == "multiplies" else f"is {verdict}"
        count = len(offenders)
    elif boundary:
        text, count = "is float at its border", len(boundary)
    else:
        return
    remedy = f"planish optimize --recipe {recipe}, and look at what it skipped"
    raise UnsupportedOp(f"{model.name} {text}: {count} offenders", remedy=remedy)
