"""Which tiling each product has: the analytical choice, or the one that was measured fastest on this CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish.backends.tvm.isa import Isa, Product, TileProduct
from planish.backends.tvm.tiles import Tiling, tiling


@dataclass(frozen=True, order=True)
class Shape:
    """A product: so many rows of codes by [depth, columns] int8. dtype: of the rows as the product takes them."""

    rows: int
    columns: int
    depth: int
    dtype: str
    tiles: bool

    def __str__(self) -> str:
        return f"{self.rows}x{self.depth}x{self.columns} {self.dtype}{' tiles' if self.tiles else ''}"


@dataclass
class Schedule:
    """Measured tilings by the text of their shape; others are chosen analytically.

    asked: shapes of products for which a tiling was asked, noted as they are.
    """

    measured: Mapping[str, Tiling] = field(default_factory=dict)
    asked: set[Shape] = field(default_factory=set)

    def tiling(self, rows: int, columns: int, depth: int, isa: Isa, product: Product | TileProduct) -> Tiling:
        """The tiling of a product."""
        shape = Shape(rows, columns, depth, product.dtype, isinstance(product, TileProduct))
        self.asked.add(shape)
        return self.measured.get(str(shape)) or tiling(rows, columns, isa, product)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in a stable order."""
        return {
            key: {"spans": [list(span) for span in plan.spans], "vectors": plan.vectors, "rows_first": plan.rows_first}
            for key, plan in sorted(self.measured.items())
        }

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Schedule:
        """What `to_dict` gave. Raises KeyError or TypeError for anything else."""
        plans = {
            key: Tiling(tuple((c, h) for c, h in entry["spans"]), entry["vectors"], entry["rows_first"])
            for key, entry in found.items()
        }
        return Schedule(plans)


def kept_schedule(path: Path | None) -> Schedule:
    """The schedule of a file; an empty one if there is none, or it can't be read."""
    try:
        return Schedule.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path else Schedule()
    except (OSError, ValueError, KeyError, TypeError):
        return Schedule()


def keep_schedule(schedule: Schedule, path: Path | None) -> None:
    """Write a schedule to its file, whole or not at all; a cache that can't be written only costs time."""
    if path is None:
        return
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(schedule.to_dict(), indent=1), encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        pass
