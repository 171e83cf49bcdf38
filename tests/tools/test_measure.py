"""Measurements take turns, give the right statistics, and say plainly what is faster; no test asserts a time."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from planish.backends.ort.session import open_session
from planish.ir.errors import LoweringError, UsageError
from planish.tools.measure import cpu_name, measure, measure_in_processes, measure_models, summarize, verdict_of

FEED = {"x": np.ones((2, 4), np.float32)}


@pytest.fixture
def model(tmp_path):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 4))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4))]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


class Recorder:
    """Stands for a session and writes down when it ran."""

    def __init__(self, name, log):
        self.name, self.log, self.threads, self.metadata = name, log, 1, {}

    def run(self, feeds):
        self.log.append(self.name)


def test_every_round_runs_every_session_in_alternating_order():
    log: list[str] = []
    result = measure({n: Recorder(n, log) for n in "abc"}, FEED, seconds=0, min_rounds=4, max_rounds=4, warmup=0)
    assert "".join(log) == "abccbaabccba"
    assert result.rounds == 4


def test_the_number_of_rounds_is_bounded_and_warm_up_is_not_counted():
    log: list[str] = []
    result = measure({"a": Recorder("a", log)}, FEED, seconds=60, min_rounds=2, max_rounds=7, warmup=2)
    assert result.rounds == 7
    assert len(log) == 9


def test_statistics_come_from_the_rounds():
    base = np.arange(1, 12) * 1e-3
    result = summarize({"raw": base, "new": base / 2, "old": base * 2}, baseline=None, threads=1, processes=False)
    raw = result.row("raw")
    assert (raw.median_ms, raw.p10_ms, raw.p90_ms) == pytest.approx((6, 2, 10))
    assert (result.ratio("raw"), result.ratio("new"), result.ratio("old")) == pytest.approx((1, 2, 0.5))
    assert [result.verdict(name) for name in ("raw", "new", "old")] == ["equal", "faster", "slower"]
    assert result.median_ms("new") == pytest.approx(3)


def test_ratios_refer_to_the_named_baseline():
    times = {"a": [1.0] * 5, "b": [2.0] * 5}
    assert summarize(times, baseline="b", threads=1, processes=False).ratio("a") == pytest.approx(2)
    with pytest.raises(UsageError, match="no model 'c'"):
        summarize(times, baseline="c", threads=1, processes=False)
    with pytest.raises(UsageError, match="nothing to measure"):
        summarize({}, baseline=None, threads=1, processes=False)


def test_paired_rounds_see_a_difference_that_drifts_hide():
    drift = np.linspace(1, 3, 40)
    result = summarize({"raw": drift, "new": drift / 1.1}, baseline="raw", threads=1, processes=False)
    assert result.verdict("new") == "faster"
    assert result.row("new").ratio_low == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict"),
    [
        (1.10, 1.05, 1.15, "faster"),
        (1.10, 0.95, 1.30, "equal"),
        (1.01, 1.005, 1.015, "equal"),
        (0.99, 0.985, 0.995, "equal"),
        (0.90, 0.85, 0.95, "slower"),
        (0.90, 0.70, 1.05, "equal"),
    ],
)
def test_a_verdict_needs_more_than_noise(ratio, low, high, verdict):
    assert verdict_of(ratio, low, high) == verdict


def test_sessions_are_measured_and_described(model):
    calls = []
    sessions = {name: open_session(model, threads=1) for name in ("raw", "new")}
    result = measure(
        sessions, FEED, seconds=0, min_rounds=3, on_progress=lambda done, total: calls.append((done, total))
    )
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [row["name"] for row in data["rows"]] == ["raw", "new"]
    assert (data["rounds"], data["threads"], data["processes"], data["baseline"]) == (3, 1, False, "raw")
    assert data["cpu"] == cpu_name() != ""
    assert calls == [(100, 100)] * 3


def test_files_at_one_thread_are_measured_in_this_process(model):
    assert measure_models({"raw": model}, FEED, threads=1, seconds=0.01).processes is False


def test_each_process_measures_its_own_model(model, tmp_path, monkeypatch):
    (tmp_path / "planish").mkdir()
    (tmp_path / "planish" / "__init__.py").write_text("raise RuntimeError('the wrong planish')")
    monkeypatch.chdir(tmp_path)
    result = measure_models({"raw": model, "new": model}, FEED, threads=2, seconds=0)
    assert result.processes
    assert result.threads == 2
    assert result.rounds == 5
    assert all(row.median_ms > 0 for row in result.rows)


def test_a_process_that_cannot_load_its_model_says_why(model, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    with pytest.raises(LoweringError, match="can't measure 'bad': ONNX Runtime can't load"):
        measure_in_processes({"raw": model, "bad": tmp_path / "bad.onnx"}, FEED, threads=1, seconds=0)
