"""What passes report, each kind as its own screen shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from planish.passes.norms.unify_report import UnifyReport
from planish.passes.shiftadd.add_attention import AddAttentionReport
from planish.passes.shiftadd.report import ShiftAddReport
from planish.passes.sparse.armor_prune import ArmorReport
from planish.passes.sparse.report import PruneReport
from planish.passes.sparse.skip_inactive import SkipReport
from planish.passes.sparse.sparsify_attention import SparseAttentionReport
from planish.passes.sparse.units_report import UnitsReport
from planish.passes.tokens.report import CompressReport
from planish.tools import (
    armor_screen,
    attention_screen,
    codebook_screen,
    forms_screen,
    norm_screen,
    pruning_screen,
    skip_screen,
    token_screen,
    units_screen,
)
from planish.tools.forms import FormsReport


@dataclass(frozen=True)
class _Screen:
    """A kind of report: its name in JSON, its tables, and its line in the summary with a name before it.

    drawn: True if report.html has pictures of it in place of the tables.
    """

    key: str
    tables: Callable[[Any], Iterable[RenderableType]]
    summary: Callable[[Any], str] | None = None
    label: str = ""
    drawn: bool = False


_SCREENS: dict[type[Any], _Screen] = {
    UnifyReport: _Screen("norms", norm_screen.tables, drawn=True),
    CompressReport: _Screen("tokens", token_screen.tables, token_screen.summary, "tokens", drawn=True),
    ShiftAddReport: _Screen("codebooks", codebook_screen.tables, codebook_screen.summary, "weights", drawn=True),
    PruneReport: _Screen("zeros", pruning_screen.tables, pruning_screen.summary, "weights", drawn=True),
    UnitsReport: _Screen("units", units_screen.tables, units_screen.summary, "units"),
    FormsReport: _Screen("forms", forms_screen.tables, drawn=True),
    AddAttentionReport: _Screen("attention", attention_screen.by_sums),
    SkipReport: _Screen("inactive", skip_screen.tables),
    SparseAttentionReport: _Screen("sparse_attention", attention_screen.sparse),
    ArmorReport: _Screen("armor", armor_screen.tables),
}


def tables(report: object) -> Iterable[RenderableType]:
    """The tables of a report; none for kinds that have no screen."""
    screen = _SCREENS.get(type(report))
    return () if screen is None else screen.tables(report)


def others(report: object) -> Iterable[Table]:
    """The tables of a report that has no pictures."""
    screen = _SCREENS.get(type(report))
    return () if screen is None or screen.drawn else (t for t in screen.tables(report) if isinstance(t, Table))


def summary(report: object) -> tuple[str, str] | None:
    """The line of a report in the summary, with a name; None for kinds that have none."""
    screen = _SCREENS.get(type(report))
    return None if screen is None or screen.summary is None else (screen.label, screen.summary(report))


def to_json(reports: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """All reports as plain data, by kind."""
    return {screen.key: [r.to_dict() for r in reports if isinstance(r, kind)] for kind, screen in _SCREENS.items()}
