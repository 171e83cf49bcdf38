"""How close a rewrite stays to the original: the contract that verification holds it to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exactness:
    """Bar for the outputs. Floats: |new - old| <= atol * max(1, rms(old)) + rtol * |old|, or SQNR where given.

    level orders exactness: 0 exact, 1 rounding, 2 approximate; a pipeline is as exact as its least exact pass.
    """

    name: str
    level: int
    atol: float = 0.0
    rtol: float = 0.0
    min_sqnr_db: float | None = None

    def __str__(self) -> str:
        return self.name


EXACT = Exactness("exact", 0)
"""Bit for bit the same results."""

ROUNDING = Exactness("rounding", 1, atol=1e-4, rtol=1e-4)
"""The same function over real numbers; floating-point rounding may differ."""


def approximate(min_sqnr_db: float) -> Exactness:
    """Changes the function, by no more than this signal-to-noise ratio on the outputs allows."""
    return Exactness("approximate", 2, min_sqnr_db=min_sqnr_db)


def weakest(*parts: Exactness) -> Exactness:
    """The exactness of several rewrites together."""
    return max(parts, key=lambda part: (part.level, part.atol, -(part.min_sqnr_db or 0.0)), default=EXACT)
