"""What `prune` found out: how much of each layer stays, and what pruning more or less would have done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planish.passes.judging import Distance


@dataclass(frozen=True)
class PrunedLayer:
    """One layer.

    density: share of its blocks that stays. noise_db: signal-to-noise ratio of its results on samples that nothing was
    fitted on, None where there is no noise. masked_db: the same where what stays doesn't make good what vanished.
    """

    name: str
    elements: int
    density: float
    noise_db: float | None
    masked_db: float | None


@dataclass(frozen=True)
class Point:
    """A choice for all layers: the share of products that stays, and its error."""

    density: float
    chosen: Distance
    taken: bool


@dataclass(frozen=True)
class PruneReport:
    """The run of one `prune`.

    curves: what was measured, by method, the fewest products first; method: the one that was taken. density: share of
    the products that stays. chosen, reported: errors on the sets to choose (before training) and to report on.
    recovery: what training found, None without.
    """

    layers: tuple[PrunedLayer, ...]
    curves: dict[str, tuple[Point, ...]]
    method: str
    structure: str
    budget: str
    density: float
    chosen: Distance
    reported: Distance
    recovery: object = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)
