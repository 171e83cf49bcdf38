"""What calibration keeps equals what numpy says of all the data at once, and takes no more memory for more data."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import pytest

from planish.backends.ort.taps import taps
from planish.ir import ops
from planish.ir.errors import CalibrationError
from planish.ir.graph import Graph, Value
from planish.ir.text import parse_graph
from planish.passes.base import Context, Feeds, Observer
from planish.passes.calibration import Request, ValueStatistics, collect
from planish.passes.calibration.histogram import BINS, Histogram

TEXT = """
def net(x: f32[n, 5, 3]):
    two = Const(f32, 2.0)
    y = Mul()(x, two)
    z = Relu()(y)
    return {'z': z}
"""


def graph() -> Graph:
    return parse_graph(TEXT)


def value_of(net: Graph, kind: type) -> Value:
    (node,) = net.nodes(kind)
    return node.result


def feeds(count: int, seed: int = 0, scale: float = 1.0) -> list[Feeds]:
    """Batches of 2 and 3 in turn, of growing range."""
    rng = np.random.default_rng(seed)
    return [{"x": (rng.normal(size=(2 + i % 2, 5, 3)) * scale * (1 + i)).astype(np.float32)} for i in range(count)]


def whole(data: Sequence[Feeds]) -> np.ndarray:
    return np.concatenate([feed["x"] for feed in data]) * np.float32(2)


@pytest.mark.parametrize("evaluator", [None, taps], ids=["numpy", "ort"])
def test_extremes_are_those_of_all_the_data(evaluator):
    net, data = graph(), feeds(7)
    y, z = value_of(net, ops.Mul), value_of(net, ops.Relu)
    found = collect(net, Context(calibration=data, taps=evaluator), [Request(net.inputs[0]), Request(y), Request(z)])
    expected = whole(data)
    assert set(found) == {net.inputs[0], y, z}
    assert (found[y].lo, found[y].hi) == (expected.min(), expected.max())
    assert (found[z].lo, found[z].hi) == (0.0, expected.max())
    assert (found[net.inputs[0]].lo, found[net.inputs[0]].hi) == (expected.min() / 2, expected.max() / 2)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_have_their_own_extremes_and_means(axis):
    net = graph()
    data = [{"x": feed["x"][:2]} for feed in feeds(9)]
    y = value_of(net, ops.Mul)
    stats = collect(net, Context(calibration=data), [Request(y, axis)])[y]
    stacked = np.stack([feed["x"] * np.float32(2) for feed in data]).astype(np.float64)  # feed, n, 5, 3
    others = tuple(i for i in range(4) if i != axis % 3 + 1)
    assert np.array_equal(stats.channel_lo, stacked.min(axis=others))
    assert np.array_equal(stats.channel_hi, stacked.max(axis=others))
    assert stats.channel_mean is not None
    np.testing.assert_allclose(stats.channel_mean, stacked.mean(axis=others), rtol=0, atol=1e-12)


def test_means_weigh_every_number_alike_whatever_the_batch():
    net, data = graph(), feeds(6)
    y = value_of(net, ops.Mul)
    mean = collect(net, Context(calibration=data), [Request(y, 2)])[y].channel_mean
    np.testing.assert_allclose(mean, whole(data).astype(np.float64).mean(axis=(0, 1)), rtol=0, atol=1e-12)


def test_channels_are_left_out_unless_asked_for():
    net = graph()
    y = value_of(net, ops.Mul)
    stats = collect(net, Context(calibration=feeds(2)), [Request(y)])[y]
    assert stats.channel_lo is None
    assert stats.channel_hi is None
    assert stats.channel_mean is None


@pytest.mark.parametrize("order", [1, -1])
def test_a_value_requested_twice_keeps_its_channels(order):
    net = graph()
    y = value_of(net, ops.Mul)
    stats = collect(net, Context(calibration=feeds(2)), [Request(y, 2), Request(y)][::order])[y]
    assert stats.channel_lo is not None
    assert stats.channel_lo.shape == (3,)


def test_moving_averages_start_at_the_first_feed_and_follow_with_a_twentieth():
    stats = ValueStatistics()
    for lo, hi in ((-1.0, 4.0), (-3.0, 2.0), (-2.0, 10.0)):
        stats.add(np.array([lo, 0.0, hi]), None)
    assert stats.ema_lo == pytest.approx(0.95 * (0.95 * -1 + 0.05 * -3) + 0.05 * -2, abs=1e-15)
    assert stats.ema_hi == pytest.approx(0.95 * (0.95 * 4 + 0.05 * 2) + 0.05 * 10, abs=1e-15)


@pytest.mark.parametrize("size", [1, 7, 7 << 15, (7 << 15) + 7, 100_000])
def test_a_histogram_counts_every_number_in_its_bin(size):
    numbers = np.random.default_rng(0).normal(size=size).astype(np.float32)
    histogram = Histogram()
    for part in np.array_split(numbers, 7):
        histogram.add(part)
    edges = (np.arange(BINS + 1) - BINS // 2) * histogram.width
    assert np.array_equal(histogram.counts, np.histogram(numbers, edges)[0])
    assert histogram.counts.sum() == numbers.size


def test_a_histogram_that_grew_equals_one_that_knew_the_range():
    rng = np.random.default_rng(1)
    parts = [(rng.normal(size=5000) * 10.0**k).astype(np.float32) for k in (-3, 0, 2, 1)]
    grown, known = Histogram(), Histogram()
    for part in parts:
        grown.add(part)
    known.add(np.concatenate(parts))
    assert grown.exponent == known.exponent
    assert np.array_equal(grown.counts, known.counts)


def test_a_histogram_stays_fine_when_smaller_numbers_follow():
    histogram = Histogram()
    histogram.add(np.array([3.0]))
    width = histogram.width
    histogram.add(np.array([0.001, -0.001]))
    assert histogram.width == width == 8 / BINS
    assert histogram.counts[BINS // 2] == histogram.counts[BINS // 2 - 1] == 1


@pytest.mark.parametrize(
    "numbers",
    [
        np.array([1e-6, -5e-7], np.float16),
        np.array([1.0, -2.5], ml_dtypes.bfloat16),
        np.array([3.4e38, -1e30], np.float32),
        np.array([1e-300, 0.0]),
        np.array([2**40, -3]),
        np.array([0.0, -0.0], np.float32),
    ],
    ids=["f16 subnormal", "bf16", "f32 large", "f64 tiny", "i64", "zeros"],
)
def test_a_histogram_bins_numbers_of_any_type_and_size(numbers):
    histogram = Histogram()
    histogram.add(numbers)
    places = np.floor(numbers.astype(np.float64) / histogram.width).astype(int) + BINS // 2
    assert np.array_equal(histogram.counts, np.bincount(places, minlength=BINS))


class Progress(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def progressed(self, stage: str, done: int, total: int) -> None:
        self.seen.append((stage, done, total))


def test_observers_are_told_of_each_feed():
    net, progress = graph(), Progress()
    collect(net, Context(calibration=feeds(3), observers=(progress,)), [Request(value_of(net, ops.Mul))])
    assert progress.seen == [("calibrate", 1, 3), ("calibrate", 2, 3), ("calibrate", 3, 3)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("evaluator", [None, taps], ids=["numpy", "ort"])
def test_a_value_that_is_not_finite_is_named_with_its_sample(bad, evaluator):
    net, data = graph(), feeds(3)
    data[1]["x"][0, 0, 0] = bad
    y = value_of(net, ops.Mul)
    with pytest.raises(CalibrationError, match=rf"^{y.hint} holds NaN or infinity for calibration sample 1") as caught:
        collect(net, Context(calibration=data, taps=evaluator), [Request(y)])
    assert caught.value.remedy


@pytest.mark.parametrize("nothing", [None, []])
def test_calibration_without_data_is_refused(nothing):
    net = graph()
    with pytest.raises(CalibrationError, match="no calibration data"):
        collect(net, Context(calibration=nothing), [Request(value_of(net, ops.Mul))])


class Stream(Sequence[Feeds]):
    """Feeds that are made when they are read, and kept by nobody."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return {"x": np.random.default_rng(index).normal(size=(64, 5, 3)).astype(np.float32)}

    def __iter__(self) -> Iterator[Feeds]:
        return (self[i] for i in range(self.count))


def peak_memory(count: int) -> int:
    net = graph()
    requests = [Request(value_of(net, ops.Mul), 2), Request(value_of(net, ops.Relu))]
    tracemalloc.start()
    collect(net, Context(calibration=Stream(count)), requests)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_feeds():
    peak_memory(2)  # what is imported and cached at first use is not of this matter
    few, many = peak_memory(16), peak_memory(128)
    assert many < few + 16_384  # the further 112 feeds alone hold 430,080 bytes
