"""The bundled models in integers: accuracy, sizes, every intermediate value, and the options of the command."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import planish
from planish.backends.ort.taps import taps
from planish.frontend import load
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.op import Const
from planish.ir.properties import opaque_nodes
from planish.tools.cli import app
from planish.tools.compiling import optimize

ZOO = Path(planish.__file__).parent.parent / "tools" / "zoo"
VIT, CNN = ZOO / "fashion_vit" / "model.onnx", ZOO / "fashion_cnn" / "model.onnx"
CALIBRATION = np.load(ZOO / "fashion_vit" / "calibration.npz")["images"]
TEST = np.load(ZOO / "fashion_vit" / "test.npz")
FEEDS = [{"images": CALIBRATION[i : i + 8]} for i in range(0, 128, 8)]


@cache
def integer(model: Path, profile: str = "table") -> Graph:
    from planish.passes.pipelines import recipe

    pipeline = recipe("integer-only").with_options("integerize", profile=profile, strict=True)
    return optimize(load(model), pipeline, calibration=FEEDS)


def logits(graph: Graph, count: int) -> np.ndarray:
    run = taps(graph, list(graph.outputs))
    return np.concatenate([run({"images": TEST["images"][i : i + 50]})[0] for i in range(0, count, 50)])


@pytest.mark.parametrize(("model", "profile", "drop"), [(VIT, "table", 0.5), (VIT, "ivit", 1.5), (CNN, "table", 0.5)])
def test_accuracy_is_kept_without_training(model, profile, drop):
    count = 300
    true, found = logits(optimize(model), count), logits(integer(model, profile), count)
    labels = TEST["labels"][:count]
    before, after = (100 * np.mean(scores.argmax(1) == labels) for scores in (true, found))
    assert before - after <= drop
    assert np.mean(true.argmax(1) == found.argmax(1)) > 0.97


@pytest.mark.parametrize(("model", "profile"), [(VIT, "table"), (VIT, "ivit"), (CNN, "table")])
def test_onnx_runtime_computes_the_same_integers_at_every_value(model, profile):
    graph = integer(model, profile)
    values = [result for node in graph if not isinstance(node.op, Const) for result in node.results]
    feed = {"images": TEST["images"][:12]}
    expected: dict[object, np.ndarray] = {}
    interpret(graph, feed, taps=lambda value, array: expected.__setitem__(value, array))
    for value, array in zip(values, taps(graph, values)(feed), strict=True):
        assert array.dtype == expected[value].dtype
        assert np.array_equal(array, expected[value]), value


def test_batch_and_order_change_nothing():
    graph = integer(VIT)
    images = TEST["images"][:7]
    run = taps(graph, list(graph.outputs))
    together = run({"images": images})[0]
    assert np.array_equal(run({"images": images[::-1].copy()})[0][::-1], together)
    assert np.array_equal(np.concatenate([run({"images": images[i : i + 1]})[0] for i in range(7)]), together)


def test_no_float_is_left():
    for model in (VIT, CNN):
        graph = integer(model)
        assert opaque_nodes(graph) == []
        values = [*graph.inputs, *(result for node in graph for result in node.results)]
        assert [value for value in values if value.tensor.dtype.is_float] == []


def run_command(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["optimize", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_makes_an_artifact_that_the_checker_passes(tmp_path):
    samples = tmp_path / "samples.npz"
    np.savez(samples, images=TEST["images"][:64], labels=TEST["labels"][:64])
    cache_file, out = tmp_path / "statistics.npz", tmp_path / "out"
    options = ["--recipe", "integer-only", "--calib", str(samples), "--calib-cache", str(cache_file), "--no-bench"]
    found = run_command(str(VIT), "-o", str(out), *options)
    assert found["verification"]["outputs"][0]["top1_agreement"] > 0.95
    assert found["bytes"]["after"] < 0.32 * found["bytes"]["before"]  # 1,800 nodes weigh more than in a real model
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["outputs"][0]["dtype"] == "i32"
    assert manifest["outputs"][0]["scale"] > 0
    checked = CliRunner().invoke(app, ["inspect", "--integer-only", "--no-boundary", str(out)])
    assert checked.exit_code == 0
    again = tmp_path / "again"
    run_command(str(VIT), "-o", str(again), *options)
    assert (again / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_accuracy_control_reports_layers_and_attempts(tmp_path):
    samples = tmp_path / "samples.npz"
    np.savez(samples, images=TEST["images"][:100], labels=TEST["labels"][:100])
    metric = tmp_path / "metric.py"
    metric.write_text("def share(outputs, labels):\n    return 100 * (outputs['logits'].argmax(1) == labels).mean()\n")
    found = run_command(
        *(str(CNN), "-o", str(tmp_path / "out"), "--recipe", "integer", "--calib", str(samples)),
        *("--metric", f"{metric}:share", "--max-drop", "5", "--no-bench", "--no-verify"),
    )
    accuracy = found["accuracy"]
    assert accuracy["original"] - accuracy["attempts"][-1]["metric"] <= 5
    assert len(accuracy["layers"]) == 21
    assert all(row["output_db"] > 10 for row in accuracy["layers"])


def test_a_bar_that_nothing_reaches_is_a_missed_gate(tmp_path):
    samples = tmp_path / "samples.npz"
    np.savez(samples, images=TEST["images"][:16], labels=TEST["labels"][:16])
    options = ["--recipe", "integer", "--calib", str(samples), "--max-drop", "-200", "--no-bench", "--no-verify"]
    result = CliRunner().invoke(app, ["optimize", str(CNN), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 6
    assert not (tmp_path / "out").exists()


def test_fast_keeps_accuracy_too():
    graph = optimize(VIT, "fast", calibration=FEEDS)
    true, found = logits(optimize(VIT), 300), logits(graph, 300)
    assert np.mean(true.argmax(1) == found.argmax(1)) > 0.98
