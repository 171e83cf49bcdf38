"""Sharing a budget out among layers: all best trade-offs between what options cost and how much they harm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Option = tuple[float, float, Item]
"""What an option costs, the error that it causes, and the option; costs and errors of layers add up."""


def tradeoffs(table: Sequence[Sequence[Option[Item]]]) -> list[tuple[Item, ...]]:
    """Choices of one option per layer, the cheapest first: each minimises cost + multiplier * error for a multiplier.

    They are the corners of the lower convex hull of all choices (Everett 1963), so that no other choice costs less and
    errs less than one of them. An option may be met again and again from one choice to the next.
    """
    exchanges = {
        (dear[0] - cheap[0]) / (cheap[1] - dear[1])
        for options in table
        for cheap in options
        for dear in options
        if cheap[0] < dear[0] and cheap[1] > dear[1]
    }
    made: list[tuple[Item, ...]] = []
    best = [_Options(options) for options in table]
    previous: list[int] = []
    for multiplier in [0.0, *(1.0000001 * exchange for exchange in sorted(exchanges))]:
        places = [options.cheapest(multiplier) for options in best]
        if places != previous:
            made.append(tuple(options[place][2] for options, place in zip(table, places, strict=True)))
            previous = places
    return made


class _Options:
    def __init__(self, options: Sequence[Option[Item]]):
        self.costs = np.array([option[0] for option in options])
        self.errors = np.array([option[1] for option in options])

    def cheapest(self, multiplier: float) -> int:
        """The place of the best option; of equal ones that of the least error."""
        totals = self.costs + multiplier * self.errors
        return int(np.lexsort((self.errors, totals))[0])


def spread(count: int, most: int) -> list[int]:
    """At most so many of 0 to count - 1, evenly, the first and the last among them."""
    places = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return [int(place) for place in np.unique(places)]
