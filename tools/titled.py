"""Tables as all screens have them."""

from __future__ import annotations

from rich.table import Table


def titled(title: str, first: str = "", *numbers: str) -> Table:
    """A table without lines under a bold title: a first column of names that may wrap, then columns of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    if first:
        table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table
