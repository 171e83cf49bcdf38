"""What `prune-units` found out: how many units each layer keeps, and what fewer or more would have done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planish.passes.judging import Distance
from planish.passes.sparse.report import Point


@dataclass(frozen=True)
class PrunedUnits:
    """A layer that sums units up: neurons of an MLP, or heads of attention.

    kind: "neurons" or "heads". noise_db: signal-to-noise ratio of its results on samples that nothing was fitted on,
    None where there is no noise. masked_db: the same where only the mean makes good what vanished.
    """

    name: str
    kind: str
    units: int
    kept: int
    noise_db: float | None
    masked_db: float | None


@dataclass(frozen=True)
class UnitsReport:
    """The run of one `prune-units`. density: share of the products of all these layers that stays, attention included.

    chosen, reported: errors on the sets to choose and to report on.
    """

    layers: tuple[PrunedUnits, ...]
    curve: tuple[Point, ...]
    budget: str
    density: float
    chosen: Distance
    reported: Distance

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)
