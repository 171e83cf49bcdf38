"""Second moments of what products read are those of the rows that their weights multiply."""

import numpy as np
import pytest

from planish.ir import ops
from planish.ir.errors import CalibrationError
from planish.ir.parser import parse_graph
from planish.passes.base import Context
from planish.passes.calibration import gram
from planish.passes.calibration.gram import collect_grams

RNG = np.random.default_rng(5)

LINEARS = """
def g(x: f32[2, 3, 4]):
    w: f32[4, 2] = Const(f32, [[1, 2], [3, 4], [5, 6], [7, 8]])
    a: f32[2, 3, 2] = Linear()(x, w)
    b: f32[2, 3, 2] = Linear()(x, w)
    return a, b
"""


def test_rows_of_a_linear_layer_are_summed_over_all_feeds(monkeypatch):
    monkeypatch.setattr(gram, "_ROWS", 4)
    graph = parse_graph(LINEARS)
    feeds = [{"x": RNG.normal(size=(2, 3, 4)).astype(np.float32)} for _ in range(5)]
    first, second = collect_grams(graph, Context(), graph.nodes(ops.Linear), feeds)
    rows = np.concatenate([feed["x"].reshape(-1, 4) for feed in feeds])
    assert first is second
    assert first.count == 30
    np.testing.assert_allclose(first.squares[0], rows.T @ rows, rtol=1e-5)
    np.testing.assert_allclose(first.mean[0], rows.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first.covariance[0], np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-5)


def test_rows_of_a_convolution_are_its_windows_by_group():
    w = RNG.normal(size=(4, 2, 3, 2)).astype(np.float32)
    graph = parse_graph(
        "def g(x: f32[2, 4, 7, 6]):\n"
        f"    w: f32[4, 2, 3, 2] = Const(f32, {w.tolist()})\n"
        "    y: f32[2, 4, 4, 6] = Conv(strides=(2, 1), pads=(1, 1, 1, 1), dilations=(1, 2), group=2)(x, w)\n"
        "    return y\n"
    )
    x = RNG.normal(size=(2, 4, 7, 6)).astype(np.float32)
    (found,) = collect_grams(graph, Context(), graph.nodes(ops.Conv), [{"x": x}])
    node = graph.nodes(ops.Conv)[0]
    y = node.op.evaluate(x, w)
    energy = sum(
        float(np.sum(part * (square @ part)))
        for part, square in zip(np.swapaxes(w.reshape(2, 2, 12), 1, 2), found.squares, strict=True)
    )
    assert found.count == 2 * 4 * 6
    assert energy == pytest.approx(float(np.sum(y.astype(np.float64) ** 2)), rel=1e-5)


def test_nan_in_a_sample_is_named():
    graph = parse_graph(LINEARS)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        collect_grams(graph, Context(), graph.nodes(ops.Linear), [{"x": np.full((2, 3, 4), np.nan, np.float32)}])


def test_moments_that_don_t_fit_are_collected_in_turns(monkeypatch):
    more = "    v: f32[2, 1] = Const(f32, [[1], [2]])\n    c: f32[2, 3, 1] = Linear()(a, v)\n    return"
    graph = parse_graph(LINEARS.replace("    return", more))
    feeds = [{"x": RNG.normal(size=(2, 3, 4)).astype(np.float32)} for _ in range(3)]
    whole = collect_grams(graph, Context(), graph.nodes(ops.Linear), feeds)
    monkeypatch.setattr(gram, "ROOM", 1)
    for one, other in zip(collect_grams(graph, Context(), graph.nodes(ops.Linear), feeds), whole, strict=True):
        np.testing.assert_array_equal(one.squares, other.squares)
