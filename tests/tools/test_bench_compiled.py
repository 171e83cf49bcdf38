"""`planish bench` of compiled artifacts: rates, kernels and several counts of threads."""

import json

import pytest
from test_cli import run

from planish.ir import dtypes, ops
from planish.tools.bench.command import thread_counts
from planish.tools.bench.work import products
from planish.tools.cli import app

pytest.importorskip("tvm")


def test_products_are_counted_by_hand():
    from tests.backends.tvm.graphs import coded, graph_of, linear

    def build(x):
        return ops.Requantize(0.2, 3, dtypes.i8)(linear(x, 24, 40))

    graph, _ = graph_of(coded(dtypes.u8, 9, 24, zero=3), build=build)
    assert sum(products(node) for node in graph) == 9 * 24 * 40


def test_counts_of_threads_are_read():
    assert thread_counts("1,all,3") == [1, 0, 3]


def test_an_unreadable_count_is_a_usage_error():
    assert run.invoke(app, ["bench", "fashion-vit", "--threads", "some"]).exit_code == 2


def test_rates_and_kernels_are_reported():
    options = ["--recipe", "integer", "--target", "tvm-cpu", "--against", "ort-fp32", "--seconds", "0.1"]
    done = run.invoke(app, ["bench", "fashion-vit", *options, "--threads", "1,2", "--profile", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [figures["threads"] for figures in found["runs"]] == [1, 2]
    assert found["work"]["integer_peak_gops"] > 0
    assert found["work"]["gops_of_a_run"] > 0.1
    assert sum(row["share"] for row in found["kernels"]) == pytest.approx(1, abs=0.01)
    assert {"IntLinear", "Attention"} <= {row["op"] for row in found["kernels"]}
    in_vectors, in_tiles = (found["work"][f"{kind}_peak_gops"] for kind in ("integer", "tile"))
    most = 1.2 * (in_tiles or in_vectors) / in_vectors
    assert all(row["of_peak"] is None or 0 < row["of_peak"] < most for row in found["kernels"])


def test_openvino_is_a_peer():
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    done = run.invoke(app, ["bench", "fashion-vit", "--against", "openvino-fp32", "--seconds", "0.1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ratios"]["openvino-fp32"] > 0
