"""The passes, recipes and rules that there are, as tables or data."""

from __future__ import annotations

import json

from rich.console import Console

from planish.passes.base import pipeline_exactness
from planish.passes.pipelines import PASSES, RECIPES
from planish.tools.titled import titled


def print_passes(as_json: bool) -> None:
    """Passes and recipes on standard output."""
    rows = [
        {
            "name": kind.name,
            "exactness": str(pipeline_exactness(kind())),
            "needs": "calibration" if kind.needs_calibration else "",
            "summary": kind().summary,
            "rules": {r.name: r.doc for r in kind().rules},
        }
        for kind in PASSES
    ]
    if as_json:
        recipes = {name: {"summary": text, "pipeline": str(p)} for name, (text, p) in RECIPES.items()}
        print(json.dumps({"passes": rows, "recipes": recipes}, indent=2))
        return
    console = Console()
    for title, columns, lines in (
        ("Passes", ("pass", "exactness", "does"), [(r["name"], r["exactness"], r["summary"]) for r in rows]),
        ("Recipes", ("recipe", "", "does"), [(n, "", f"{text}\n[dim]{p}[/dim]") for n, (text, p) in RECIPES.items()]),
    ):
        table = titled(title)
        for column in columns:
            table.add_column(column, overflow="fold")
        for line in lines:
            table.add_row(*map(str, line))
        console.print(table)


def print_rules() -> None:
    """The rules of each pass on standard output."""
    table = titled("Rules")
    for column in ("pass", "rule", "does"):
        table.add_column(column, overflow="fold")
    for kind in PASSES:
        for rule in kind().rules:
            table.add_row(kind.name, rule.name, rule.doc)
    Console().print(table)
