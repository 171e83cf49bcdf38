"""Unique names for values and nodes of one written model."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """Hands out names, each once. The same requests in the same order give the same names."""

    def __init__(self, taken: Iterable[str] = ()):
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def unique(self, wish: str) -> str:
        """`wish` itself if it is free, else `wish_1`, `wish_2` and so on."""
        name, number = wish, self._next.get(wish, 0)
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._next[wish] = number
        self._taken.add(name)
        return name
