"""What `shift-add` found out: the codebook of each layer, and what cheaper and dearer choices would have done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planish.passes.judging import Distance


@dataclass(frozen=True)
class LayerFinding:
    """One layer. codebook: "" if its weights stay floats. elements: of its weights. digits: signed powers of two per
    weight, on average. noise_db: signal-to-noise ratio of its results on samples that nothing was fitted on; None where
    there is no noise.
    """

    name: str
    codebook: str
    elements: int
    bits: float
    digits: float
    noise_db: float | None


@dataclass(frozen=True)
class Point:
    """A choice for all layers: average stored bits per weight, operation energy over that of int8, its error."""

    bits: float
    energy: float
    chosen: Distance
    taken: bool


@dataclass(frozen=True)
class ShiftAddReport:
    """The run of one `shift-add`. chosen, reported: errors on the sets to choose and to report on."""

    layers: tuple[LayerFinding, ...]
    curve: tuple[Point, ...]
    budget: str
    bits: float
    energy: float
    chosen: Distance
    reported: Distance

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)
