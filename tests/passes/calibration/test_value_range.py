"""Ranges are what their method says: exact for extremes and percentiles, near the best possible for squared error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from planish.ir.errors import UsageError
from planish.passes.calibration import ValueStatistics, value_range
from planish.passes.calibration.histogram import BINS

METHODS = ("minmax", "ema", "percentile", "mse", "entropy")
COUNT = 20_000


def statistics(numbers: np.ndarray, parts: int = 4) -> ValueStatistics:
    stats = ValueStatistics()
    for part in np.array_split(numbers.astype(np.float32), parts):
        stats.add(part, None)
    return stats


def sample(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=COUNT)
    return {
        "normal": normal,
        "heavy": rng.standard_t(3, COUNT),
        "laplace": rng.laplace(size=COUNT),
        "half": np.maximum(normal, 0),
        "shifted": normal + 5,
        "negative": -rng.exponential(size=COUNT),
        "outlier": np.append(normal, 40.0),
    }[kind]


def squared_error(numbers: np.ndarray, lo: float, hi: float, bits: int, symmetric: bool) -> float:
    """Mean squared error of quantizing, with a code for zero."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step = hi / top
        return float(np.mean((numbers - np.clip(np.round(numbers / step), -top, top) * step) ** 2))
    step = (hi - lo) / (2**bits - 1)
    zero = np.round(-lo / step)
    codes = np.clip(np.round(numbers / step) + zero, 0, 2**bits - 1)
    return float(np.mean((numbers - (codes - zero) * step) ** 2))


def least_squared_error(numbers: np.ndarray, bits: int, symmetric: bool) -> float:
    """The error of the best of many ranges, tried one by one."""
    shares = np.geomspace(1 / 64, 1, 36)
    lo, hi = min(numbers.min(), 0.0), max(numbers.max(), 0.0)
    if symmetric:
        top = max(-lo, hi)
        return min(squared_error(numbers, -top * s, top * s, bits, True) for s in shares)
    ends = itertools.product(lo * shares if lo < 0 else [0.0], hi * shares if hi > 0 else [0.0])
    return min(squared_error(numbers, a, b, bits, False) for a, b in ends)


def test_minmax_is_the_extremes():
    numbers = sample("shifted").astype(np.float32)
    assert value_range(statistics(numbers), "minmax") == (numbers.min(), numbers.max())


def test_ema_is_the_moving_averages_of_extremes():
    stats = statistics(sample("normal"))
    assert value_range(stats, "ema") == (stats.ema_lo, stats.ema_hi)
    assert stats.lo < stats.ema_lo < 0 < stats.ema_hi < stats.hi


@pytest.mark.parametrize("percent", [90, 99, 99.9])
@pytest.mark.parametrize("kind", ["normal", "heavy", "half", "negative"])
def test_percentiles_are_within_a_bin_of_the_exact_ones(kind, percent):
    numbers, stats = sample(kind), statistics(sample(kind))
    lo, hi = value_range(stats, f"percentile:{percent}")
    margin = (100 - percent) / 2
    exact = np.percentile(numbers, [margin, 100 - margin], method="inverted_cdf")
    assert abs(lo - exact[0]) <= stats.histogram.width
    assert abs(hi - exact[1]) <= stats.histogram.width


def test_the_hundredth_percentile_is_the_extremes():
    stats = statistics(sample("heavy"))
    assert value_range(stats, "percentile:100") == (stats.lo, stats.hi)


def test_a_percentile_without_number_is_9999_hundredths():
    stats = statistics(sample("heavy"))
    assert value_range(stats, "percentile") == value_range(stats, "percentile:99.99") != (stats.lo, stats.hi)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy", "laplace", "half", "shifted", "negative"])
def test_mse_is_within_a_tenth_of_the_least_squared_error(kind, bits, symmetric):
    numbers = sample(kind)
    lo, hi = value_range(statistics(numbers), "mse", bits, symmetric)
    assert squared_error(numbers, lo, hi, bits, symmetric) <= 1.1 * least_squared_error(numbers, bits, symmetric)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_mse_gives_up_a_lonely_outlier_where_codes_are_few(symmetric):
    numbers = sample("outlier")
    lo, hi = value_range(statistics(numbers), "mse", 4, symmetric)
    assert squared_error(numbers, lo, hi, 4, symmetric) <= 1.1 * least_squared_error(numbers, 4, symmetric)


def test_mse_shrinks_the_two_ends_apart():
    numbers = np.append(np.abs(sample("normal")), -0.2)
    lo, hi = value_range(statistics(numbers), "mse", 4)
    assert -0.2 <= lo < 0 < hi < 0.9 * numbers.max()


def test_mse_with_many_bits_keeps_the_whole_range():
    stats = statistics(sample("normal"))
    lo, hi = value_range(stats, "mse", 16)
    assert lo == pytest.approx(stats.lo, rel=0.02)
    assert hi == pytest.approx(stats.hi, rel=0.02)


@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_drops_a_lonely_outlier_and_keeps_the_bulk(bits):
    numbers = sample("outlier")
    lo, hi = value_range(statistics(numbers), "entropy", bits)
    assert np.mean((numbers >= lo) & (numbers <= hi)) > 0.95
    assert hi < 10


def test_entropy_does_not_clip_because_many_numbers_are_zero():
    _, hi = value_range(statistics(sample("half")), "entropy", 8)
    assert hi > 3


def test_entropy_keeps_a_range_that_has_no_tail():
    stats = statistics(np.linspace(-1, 1, BINS * 16))
    assert value_range(stats, "entropy", 8) == pytest.approx((-1, 1), abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["normal", "heavy", "half", "shifted", "negative"])
def test_every_range_is_ordered_and_symmetric_if_asked(kind, method):
    stats = statistics(sample(kind))
    lo, hi = value_range(stats, method, 8)
    assert min(stats.lo, 0) <= lo < hi <= max(stats.hi, 0)
    lo, hi = value_range(stats, method, 8, symmetric=True)
    assert -lo == hi > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constant", [0.0, 2.5, -3.0])
def test_a_constant_value_has_a_range_that_holds_it(constant, method):
    lo, hi = value_range(statistics(np.full(64, constant)), method)
    assert lo <= constant <= hi


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_the_same_on_every_run(method):
    first, second = (value_range(statistics(sample("heavy")), method) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("method", ["best", "", "MSE", "kl:3"])
def test_an_unknown_method_is_refused_with_a_list_of_the_known(method):
    with pytest.raises(UsageError, match="no calibration method") as caught:
        value_range(statistics(sample("normal")), method)
    assert all(name in caught.value.remedy for name in METHODS)


@pytest.mark.parametrize("percent", ["50", "100.1", "many", "nan", "-1"])
def test_a_percentile_that_is_none_is_refused(percent):
    with pytest.raises(UsageError, match="is no percentile"):
        value_range(statistics(sample("normal")), f"percentile:{percent}")
