"""What `unify-norms` found out: each norm, and the error after each one that was replaced."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planish.passes.judging import Distance
from planish.passes.norms.fit import Deviations


@dataclass(frozen=True)
class NormFinding:
    """One norm. state: "folded" (nothing is left), "product and sum", or "kept"; note: why.

    local_nmse: error of the map at the norm itself, relative. alone: error of the outputs with only it replaced.
    """

    name: str
    variant: str
    state: str
    note: str
    deviations: Deviations
    local_nmse: float
    alone: Distance


@dataclass(frozen=True)
class Step:
    """Error of the outputs, on the set that norms are chosen on, with so many norms replaced."""

    count: int
    norm: str
    distance: Distance
    accepted: bool


@dataclass(frozen=True)
class UnifyReport:
    """The run of one `unify-norms`. chosen, reported: errors of the result on the sets to choose and to report on."""

    norms: tuple[NormFinding, ...]
    curve: tuple[Step, ...]
    budget: str
    chosen: Distance
    reported: Distance
    recovery: object = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)
