"""Statistics in a file: the same bytes every time, read back whole, and refused for another model or other data."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from planish.backends.ort.taps import taps
from planish.ir import ops
from planish.ir.errors import CalibrationError, UsageError
from planish.ir.graph import Graph, Value
from planish.ir.text import parse_graph
from planish.passes.base import Context, Feeds
from planish.passes.calibration import Request, Statistics, collect

DIGEST = "0123"
TEXT = """
def net(x: f32[n, 5, 3]):
    factor = Const(f32, FACTOR)
    y = Mul()(x, factor)
    z = Relu()(y)
    return {'z': z}
"""


def graph(factor: float = 2.0) -> Graph:
    return parse_graph(TEXT.replace("FACTOR", str(factor)))


def product(net: Graph) -> Value:
    return net.nodes(ops.Mul)[0].result


def feeds(seed: int = 0) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(4, 5, 3)).astype(np.float32)} for _ in range(3)]


class Digested(list[Feeds]):
    """Data that says its own digest, as data sets from files do."""

    def digest(self) -> str:
        return DIGEST


def write_cache(path: Path, net: Graph | None = None) -> Statistics:
    net = net or graph()
    requests = [Request(net.inputs[0]), Request(product(net), 2)]
    return collect(net, Context(calibration=Digested(feeds()), statistics_cache=path), requests)


@pytest.mark.parametrize("evaluator", [None, taps], ids=["numpy", "ort"])
def test_two_runs_write_the_same_bytes(tmp_path, evaluator):
    for name in ("a.npz", "b.npz"):
        net = graph()
        context = Context(calibration=feeds(), statistics_cache=tmp_path / name, taps=evaluator)
        collect(net, context, [Request(net.inputs[0]), Request(product(net), 2)])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_what_is_read_back_is_what_was_kept_and_is_written_alike(tmp_path):
    net = graph()
    kept = write_cache(tmp_path / "a.npz", net)
    requests = [Request(net.inputs[0]), Request(product(net), 2)]
    (tmp_path / "a.npz").rename(tmp_path / "moved.npz")
    again = Statistics.load(tmp_path / "moved.npz", net, DIGEST, requests)
    for value in (net.inputs[0], product(net)):
        old, new = kept[value], again[value]
        assert (old.lo, old.hi, old.ema_lo, old.ema_hi) == (new.lo, new.hi, new.ema_lo, new.ema_hi)
        assert (old.feeds, old.rows, old.histogram.exponent) == (new.feeds, new.rows, new.histogram.exponent)
        assert np.array_equal(old.histogram.counts, new.histogram.counts)
    assert np.array_equal(kept[product(net)].channel_mean, again[product(net)].channel_mean)
    assert again[net.inputs[0]].channel_mean is None
    again.save(tmp_path / "b.npz", net, DIGEST)
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "moved.npz").read_bytes()


def refuse_to_run(graph, values):
    raise UsageError("the graph was run")


def test_with_a_cache_the_graph_is_not_run_again(tmp_path):
    kept = write_cache(tmp_path / "a.npz")
    net = graph()
    context = Context(calibration=Digested(feeds()), statistics_cache=tmp_path / "a.npz", taps=refuse_to_run)
    found = collect(net, context, [Request(product(net), 2)])
    assert [found[v].hi for v in found] == [kept[v].hi for v in kept]


def test_the_digest_that_data_sets_say_themselves_guards_the_cache(tmp_path):
    net, cache = graph(), tmp_path / "a.npz"
    write_cache(cache, net)
    requests = [Request(product(net))]
    assert len(Statistics.load(cache, net, DIGEST, requests)) == 2
    with pytest.raises(CalibrationError, match="of another model or of other data"):
        Statistics.load(cache, net, "0124", requests)


@pytest.mark.parametrize("other", ["data", "weights", "structure"])
def test_a_cache_of_another_model_or_other_data_is_refused(tmp_path, other):
    cache = tmp_path / "a.npz"
    collect(net := graph(), Context(calibration=feeds(), statistics_cache=cache), [Request(product(net))])
    net = graph(3.0 if other == "weights" else 2.0)
    if other == "structure":
        net = parse_graph(TEXT.replace("FACTOR", "2.0").replace("Relu", "Abs"))
    data = feeds(seed=1 if other == "data" else 0)
    with pytest.raises(CalibrationError, match="of another model or of other data") as caught:
        collect(net, Context(calibration=data, statistics_cache=cache), [Request(product(net))])
    assert caught.value.where.endswith("a.npz")
    assert "--calib-cache" in caught.value.remedy


@pytest.mark.parametrize("lacking", ["value", "channels"])
def test_a_cache_that_lacks_what_is_wanted_is_refused(tmp_path, lacking):
    net = graph()
    write_cache(tmp_path / "a.npz", net)
    request = Request(net.nodes(ops.Relu)[0].result) if lacking == "value" else Request(net.inputs[0], 2)
    with pytest.raises(CalibrationError, match="lack values of this recipe"):
        collect(net, Context(calibration=Digested(feeds()), statistics_cache=tmp_path / "a.npz"), [request])


def test_a_cut_or_damaged_cache_is_refused_wherever_the_damage_is(tmp_path):
    net, cache = graph(), tmp_path / "a.npz"
    kept = write_cache(cache, net)[product(net)]
    good = cache.read_bytes()
    refused = 0
    for place in range(0, len(good), 11):
        bad = bytearray(good)
        bad[place] ^= 0xFF
        for content in (bytes(bad), good[:place]):
            cache.write_bytes(content)
            try:
                found = Statistics.load(cache, net, DIGEST, [])[product(net)]
            except CalibrationError:
                refused += 1
            else:  # the damage is where nothing is read from, such as the date of an entry
                assert np.array_equal(found.channel_mean, kept.channel_mean)
                assert np.array_equal(found.histogram.counts, kept.histogram.counts)
    assert refused > len(good) / 11  # every cut, and some of the flips


def test_a_cache_that_can_not_be_written_is_a_usage_error_and_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="can't write calibration statistics"):
        write_cache(tmp_path / "missing" / "a.npz")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    net = graph()
    found = collect(net, Context(calibration=feeds()), [Request(product(net))])
    with pytest.raises(UsageError, match="can't write calibration statistics"):
        found.save(tmp_path / "folder", net, DIGEST)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_value_that_was_not_observed_is_named():
    net = graph()
    found = collect(net, Context(calibration=feeds()), [Request(product(net))])
    with pytest.raises(CalibrationError, match=r"^z wasn't observed"):
        found[net.nodes(ops.Relu)[0].result]
