"""What `compress-tokens` found out: tokens of each block, and speed against error for what was tried."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planish.passes.judging import Distance
from planish.passes.tokens.methods import Choice


@dataclass(frozen=True)
class Point:
    """One choice that was tried. counts: tokens behind the attention of each block.

    speed: times as fast as without, measured or (`measured` False) by the model of the search. chosen: error on the
    samples that choices are made on; reported: on others, None if it wasn't measured.
    """

    choice: Choice
    counts: tuple[int, ...]
    speed: float
    measured: bool
    chosen: Distance
    reported: Distance | None = None


@dataclass(frozen=True)
class CompressReport:
    """The run of one `compress-tokens`. blocks: names of the attentions; counts: tokens behind each.

    curves: what was tried, by method. refused: methods that aren't legal here, with the reason. budget: in words.
    order_error: relative error of the outputs when tokens are reordered; None if that wasn't tried.
    """

    choice: Choice
    tokens: int
    blocks: tuple[str, ...]
    counts: tuple[int, ...]
    budget: str
    curves: dict[str, tuple[Point, ...]]
    refused: dict[str, str]
    order_error: float | None
    result: Point | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)
