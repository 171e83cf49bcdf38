"""`planish bench`: the shape of its answer, and what it says of contenders that aren't there."""

import json

from test_cli import run, write_model

from planish.tools.bench.scaling import synthetic
from planish.tools.cli import app
from planish.tools.compiling import optimize
from planish.tools.model_stats import graph_ops


def test_bench_prints_a_ratio_per_contender_as_json(tmp_path):
    model = write_model(tmp_path / "model.onnx")
    result = run.invoke(app, ["bench", str(model), "--against", "original", "--seconds", "0.1", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert set(answer["ratios"]) == {"original"}
    assert answer["ratios"]["original"] > 0
    low, high = answer["rows"]["original"]["interval"]
    assert low <= high


def test_an_unknown_contender_is_a_usage_error_listing_the_known(tmp_path):
    result = run.invoke(app, ["bench", str(write_model(tmp_path / "model.onnx")), "--against", "abacus"])
    assert result.exit_code == 2
    assert "onnxslim" in result.output


def test_the_synthetic_model_is_raised_whole(tmp_path):
    graph = optimize(synthetic(170), "default")
    counts = graph_ops(graph)
    assert (counts["LayerNorm"], counts["Gelu"], counts["Linear"]) == (10, 10, 10)
