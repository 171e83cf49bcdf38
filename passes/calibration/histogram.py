"""Histogram of a stream of numbers, of fixed size: bins merge two by two when the range grows."""

from __future__ import annotations

import math

import numpy as np

BINS = 4096


class Histogram:
    """Counts of numbers in `BINS` bins of equal width, symmetric about 0; the width is a power of two.

    Memory is constant. The same numbers in the same feeds give the same histogram on every run.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.exponent: int | None = None  # the range is (-2**exponent, 2**exponent)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0 ** ((self.exponent or 0) + 1) / BINS

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64[BINS]."""
        return (np.arange(BINS) + 0.5 - BINS // 2) * self.width

    def add(self, numbers: np.ndarray) -> None:
        """Count finite numbers."""
        flat = numbers.reshape(-1)
        if flat.size == 0:
            return
        top = max(float(np.max(flat)), -float(np.min(flat)))
        self._reach(top)
        places = np.floor(flat * np.float32(1 / self.width) if flat.dtype == np.float32 else flat / self.width)
        index = np.clip(places.astype(np.int64) + BINS // 2, 0, BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)

    def _reach(self, top: float) -> None:
        """Widen the range until it holds `top`."""
        needed = math.frexp(top)[1] if top > 0 else -100
        if self.exponent is None:
            self.exponent = max(needed, -100)
        while self.exponent < needed:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.exponent += 1
