"""Histogram of a stream of numbers, of fixed size: bins merge two by two when the range grows."""

from __future__ import annotations

import math

import numpy as np

BINS = 4096
_CHUNK = 1 << 15  # numbers binned at a time: temporaries stay in the cache, whatever the size of a feed


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
        self._reach(max(float(np.max(flat)), -float(np.min(flat))))
        kind = np.float32 if flat.dtype == np.float32 else np.float64
        scale = kind(1 / self.width)  # a power of two, and exact in either kind
        for start in range(0, flat.size, _CHUNK):
            places = flat[start : start + _CHUNK].astype(kind)
            np.multiply(places, scale, out=places)
            np.floor(places, out=places)
            self.counts += np.bincount(places.astype(np.intp) + BINS // 2, minlength=BINS)

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
