"""Pruned weights on the command line: options, bars, what the artifact holds, the screen and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import save_samples
from typer.testing import CliRunner

import planish
from planish.ir.op import Const
from planish.passes.judging import Distance
from planish.passes.pipelines import recipe
from planish.passes.sparse import Prune
from planish.passes.sparse.report import Point, PrunedLayer, PruneReport
from planish.tools import pruning_screen
from planish.tools.bars import with_bars
from planish.tools.cli import app
from planish.tools.report.pruning_curve import density_picture, sparsity_curve

ROOT = Path(__file__).parent.parent.parent
SMALL = ROOT / "tests/zoo/timm_dyn18.onnx"  # two blocks, 17 tokens


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return save_samples(SMALL, tmp_path)


def run(*arguments: str):
    return CliRunner().invoke(app, ["optimize", str(SMALL), *arguments, "--no-bench"])


def test_the_share_asked_for_is_zero_in_the_artifact(tmp_path, samples):
    done = run("-o", str(tmp_path / "out"), "--sparsity", "0.5", "--calib", str(samples), "--json")
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["zeros"]
    assert report["density"] <= 0.5 + 1e-3
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["zeros"][0]["layers"] == [[row["name"], row["density"]] for row in report["layers"]]
    graph = planish.optimize(tmp_path / "out/model.onnx", "clean")  # weights are stored without their zeros
    found = [node.op.data.numpy() for node in graph.nodes(Const)]
    weights = [array for array in found if array.ndim >= 2 and array.size >= 256]
    assert 0.35 < np.mean(np.concatenate([np.ravel(w) for w in weights]) == 0) < 0.65


def test_all_methods_stand_side_by_side_on_the_screen_and_in_the_report(tmp_path, samples):
    options = ["--prune-by", "all", "--structure", "2:4", "--recipe", "prune+integer"]
    done = run("-o", str(tmp_path / "out"), *options, "--calib", str(samples))
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "Zeros against error, wanda (50 % of the products)" in text
    assert "of their products gone (50 % of the products)" in text.replace("│ ", "")
    page = (tmp_path / "out/report.html").read_text()
    assert "Weights with zeros" in page
    assert page.count("<svg") == 2


def test_compiled_integers_skip_them(tmp_path, samples):
    options = ["--sparsity", "0.5", "--recipe", "prune+integer", "--target", "tvm-cpu"]
    done = run("-o", str(tmp_path / "out"), *options, "--calib", str(samples), "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["verification"]["passed"]
    assert next(row for row in result["passes"] if row["name"] == "detect-sparsity")["rewrites"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--structure", "4x1"], 2, "there is no structure '4x1'"),
        (["--prune-by", "luck"], 2, "there is no method 'luck'"),
        (["--sparsity", "80"], 2, "--sparsity 80 is no share"),
        (["--sparsity", "0.8", "--structure", "2:4"], 6, "no choice of weights fits"),
        (["--sparsity", "0.5", "--recipe", "integer"], 2, "are for pruned weights"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, code, message, tmp_path, samples):
    done = run("-o", str(tmp_path / "out"), *arguments, "--calib", str(samples))
    assert done.exit_code == code
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_samples_to_choose_by_need_no_labels(tmp_path, samples):
    unlabelled = tmp_path / "unlabelled.npz"
    with np.load(samples) as data:
        (name,) = set(data.files) - {"labels"}
        np.savez(unlabelled, **{name: data[name][:48]})
        np.savez(tmp_path / "labelled.npz", labels=np.arange(8) % 3, **{name: data[name][48:56]})
    options = ["--sparsity", "0.5", "--prune-by", "wanda", "--calib", str(unlabelled)]
    done = run("-o", str(tmp_path / "out"), *options, "--verify-with", str(tmp_path / "labelled.npz"), "--json")
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["zeros"]
    assert report["reported"]["drop"] is None
    late = run("-o", str(tmp_path / "none"), *options, "--max-drop", "1")
    assert late.exit_code == 3
    assert "needs data with labels" in late.output


def test_bars_reach_the_pass():
    pipeline = with_bars(recipe("prune+integer"), 1.0, None, None, None)
    (step,) = [step for step in pipeline.leaves() if isinstance(step, Prune)]
    assert step.max_drop == 0.5


REPORT = PruneReport(
    (PrunedLayer("first", 900, 0.5, 21.0, 17.0), PrunedLayer("last", 100, 1.0, None, None)),
    {
        "wanda": (Point(0.4, Distance(0.3, 2.0, 0.4), False), Point(0.6, Distance(0.1, 0.6, 0.2), False)),
        "obs": (Point(0.4, Distance(0.1, 0.9, 0.3), False), Point(0.55, Distance(0.05, 0.2, 0.2), True)),
    },
    *("obs", "ob4", "metric at most 0.5 lower", 0.55),
    Distance(0.05, 0.2, 0.2),
    Distance(0.06, 0.3, 0.2),
)


def test_the_pictures_show_methods_and_layers():
    curve, picture = sparsity_curve(REPORT), density_picture(REPORT)
    for text in ("wanda", "obs", "taken", "on unseen samples", "change of the metric"):
        assert text in curve
    assert "weights left, %" in picture
    assert sparsity_curve(REPORT) == curve
    assert pruning_screen.summary(REPORT).startswith("1 of 2 layers with zeros (ob4, obs), 45.0 % of their products")
