"""From statistics to the range that is quantized."""

from __future__ import annotations

import itertools

import numpy as np

from planish.ir.errors import UsageError
from planish.passes.calibration.histogram import Histogram
from planish.passes.calibration.statistics import ValueStatistics

METHODS = ("minmax", "ema", "percentile:P", "mse", "entropy")
_DEFAULT_PERCENTILE = 99.99
_STEPS = 48  # candidates of the entropy search
_SHARES = 2.0 ** (-np.arange(15) / 1.5)  # of each observed end that the first candidates keep: down to 1/645
_REFINEMENTS = 5  # halvings of the ratio between candidates around the best so far


def value_range(
    statistics: ValueStatistics, method: str, bits: int = 8, symmetric: bool = False
) -> tuple[float, float]:
    """The range [lo, hi] of numbers to spend the codes on.

    method: "minmax" all that was seen; "ema" moving averages of extremes; "percentile:P" all but (100 - P) percent of
    the numbers, shared by both ends; "mse" least squared error of rounding and clipping; "entropy" least divergence of
    the quantized distribution (Migacz 2017). symmetric: lo = -hi.
    Raises UsageError for an unknown method.
    """
    name, _, argument = method.partition(":")
    lo, hi = statistics.lo, statistics.hi
    match name:
        case "minmax":
            pass
        case "ema":
            lo, hi = statistics.ema_lo, statistics.ema_hi
        case "percentile":
            lo, hi = _percentile(statistics, _number(argument or str(_DEFAULT_PERCENTILE)))
        case "mse":
            lo, hi = _least_error(statistics, bits, symmetric)
        case "entropy":
            lo, hi = _least_divergence(statistics, bits)
        case _:
            raise UsageError(f"there is no calibration method {method!r}", remedy=f"known: {', '.join(METHODS)}")
    if symmetric:
        hi = max(-lo, hi)
        lo = -hi
    return float(lo), float(hi)


def _number(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 50 < percent <= 100:
        raise UsageError(f"{text!r} is no percentile", remedy="give one above 50 and up to 100, as in percentile:99.99")
    return percent


def _percentile(statistics: ValueStatistics, percent: float) -> tuple[float, float]:
    histogram = statistics.histogram
    total = np.cumsum(histogram.counts)
    if total[-1] == 0:
        return statistics.lo, statistics.hi
    share = total / total[-1]
    margin = (100 - percent) / 200
    first, last = int(np.searchsorted(share, margin, side="right")), int(np.searchsorted(share, 1 - margin))
    half = histogram.width / 2
    centres = histogram.centres
    lo = max(statistics.lo, centres[min(first, len(centres) - 1)] - half)
    hi = min(statistics.hi, centres[min(last, len(centres) - 1)] + half)
    return min(lo, hi), max(lo, hi)


def _least_error(statistics: ValueStatistics, bits: int, symmetric: bool) -> tuple[float, float]:
    """Search shrunk ends for the least expected squared error: rounding costs step**2 / 12, clipping the distance.

    First all pairs of ends on a coarse grid of ratios, as the ends depend on each other, then finer around the best.
    """
    lo, hi = min(statistics.lo, 0.0), max(statistics.hi, 0.0)
    if symmetric:
        hi = max(-lo, hi)
        lo = -hi
    levels = 2.0**bits - 1
    used = np.flatnonzero(statistics.histogram.counts)
    x = statistics.histogram.centres[used]
    weight = statistics.histogram.counts[used].astype(np.float64)

    def cost(shares: tuple[float, float]) -> float:
        return _cost(x, weight, lo * shares[0], hi * shares[1], levels)

    def best_of(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
        pairs = zip(highs, highs, strict=True) if symmetric else itertools.product(lows, highs)
        return min(((float(a), float(b)) for a, b in pairs), key=cost)

    kept = best_of(_SHARES if lo < 0 else np.ones(1), _SHARES if hi > 0 else np.ones(1))
    ratio = _SHARES[0] / _SHARES[1]
    for _ in range(_REFINEMENTS):
        ratio = np.sqrt(ratio)
        around = np.array([1.0, 1 / ratio, ratio])  # the best so far comes first, and wins ties
        kept = best_of(*(np.minimum(share * around, 1.0) for share in kept))
    return lo * kept[0], hi * kept[1]


def _cost(x: np.ndarray, weight: np.ndarray, lo: float, hi: float, levels: float) -> float:
    """Expected squared error of the numbers x with the given weights. Zero itself has a code, and no error."""
    step = (hi - lo) / levels
    outside = x - np.clip(x, lo, hi)
    inside = (outside == 0) & (np.abs(x) > step / 2)
    small = (outside == 0) & ~inside
    return float(np.sum(weight * outside**2) + np.sum(weight[inside]) * step**2 / 12 + np.sum((weight * x**2)[small]))


def _least_divergence(statistics: ValueStatistics, bits: int) -> tuple[float, float]:
    """Clip magnitudes where the histogram of magnitudes loses least when its bins are merged to the codes."""
    counts, width = _magnitudes(statistics.histogram)
    counts[0] = min(counts[0], counts[1])  # exact zeros have a code of their own, whatever is clipped
    levels = 1 << (bits - 1)
    last = int(np.max(np.flatnonzero(counts), initial=0)) + 1
    if last <= levels:
        return statistics.lo, statistics.hi
    ends = np.unique(np.linspace(levels, last, _STEPS).astype(int))
    best = min(ends, key=lambda end: _divergence(counts[:last], int(end), levels))
    top = float(best) * width
    return max(statistics.lo, -top), min(statistics.hi, top)


def _magnitudes(histogram: Histogram) -> tuple[np.ndarray, float]:
    half = len(histogram.counts) // 2
    return (histogram.counts[half:] + histogram.counts[:half][::-1]).astype(np.float64), histogram.width


def _divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """Kullback-Leibler divergence of the clipped distribution from itself after merging into `levels` bins."""
    kept = counts[:end].copy()
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    groups = np.minimum(np.arange(end) * levels // end, levels - 1)
    occupied = (kept > 0).astype(np.float64)
    total = np.bincount(groups, kept, minlength=levels)
    share = np.bincount(groups, occupied, minlength=levels)
    merged = np.where(kept > 0, total[groups] / np.maximum(share[groups], 1), 0.0)
    p, q = reference / max(reference.sum(), 1), merged / max(merged.sum(), 1)
    seen = (p > 0) & (q > 0)
    missing = float(p[(p > 0) & (q == 0)].sum())
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen]))) + missing * 20
