"""Codebooks on the command line: options, bars, what the artifact holds, the screen and the report."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from small_models import save_samples
from typer.testing import CliRunner

from planish.passes.judging import Distance
from planish.passes.pipelines import recipe
from planish.passes.shiftadd import ShiftAdd
from planish.passes.shiftadd.report import LayerFinding, Point, ShiftAddReport
from planish.tools import codebook_screen, forms_screen
from planish.tools.bars import with_bars
from planish.tools.cli import app
from planish.tools.forms import FormRow, FormsReport, OnRuntime
from planish.tools.report.codebook_curve import bits_curve, layer_picture

ROOT = Path(__file__).parent.parent.parent
SMALL = ROOT / "tests/zoo/timm_dyn18.onnx"  # two blocks, 17 tokens


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return save_samples(SMALL, tmp_path)


def run(*arguments: str):
    return CliRunner().invoke(app, ["optimize", str(SMALL), *arguments, "--no-bench"])


def test_a_codebook_makes_a_file_of_its_bits(tmp_path, samples):
    sizes = {}
    for codebook in ("csd2", "apot4"):
        done = run("-o", str(tmp_path / codebook), "--codebook", codebook, "--calib", str(samples), "--json")
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)
        (report,) = result["codebooks"]
        assert {layer["codebook"] for layer in report["layers"]} == {codebook}
        assert result["verification"]["passed"]
        manifest = json.loads((tmp_path / codebook / "manifest.json").read_text())
        assert manifest["codebooks"][0]["layers"] == [[layer["name"], codebook] for layer in report["layers"]]
        model = onnx.load(tmp_path / codebook / "model.onnx")
        sizes[codebook] = sum(len(t.raw_data) for t in model.graph.initializer)
    weights = sum(layer["elements"] for layer in report["layers"])
    assert sizes["csd2"] - sizes["apot4"] == pytest.approx(weights / 2, rel=0.05)


def test_bits_are_a_budget_and_the_screen_shows_what_was_taken(tmp_path, samples):
    done = run("-o", str(tmp_path / "out"), "--weight-bits", "6", "--calib", str(samples))
    assert done.exit_code == 0, done.output
    assert "Bits against error (at most 6 bits per weight)" in " ".join(done.stdout.split())
    page = (tmp_path / "out/report.html").read_text()
    assert "Weights as shifts and additions" in page
    assert page.count("<svg") == 2


def test_integers_take_the_codes_over(tmp_path, samples):
    done = run(
        "-o", str(tmp_path / "out"), "--recipe", "shift-add+integer", "--codebook", "pot4", "--calib", str(samples)
    )
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(app, ["inspect", "--integer-only", str(tmp_path / "out/model.onnx")])
    assert shown.exit_code == 0, shown.output


def test_experts_share_tokens_by_measured_latencies(tmp_path, samples):
    passes = "repeat(fold-constants); raise-linear; mix-experts{gain=-9.0}"
    done = run("-o", str(tmp_path / "out"), "--passes", passes, "--calib", str(samples), "--json")
    assert done.exit_code == 0, done.output
    (row,) = [row for row in json.loads(done.stdout)["passes"] if row["name"] == "mix-experts"]
    assert row["rewrites"] > 0
    assert "TopK" in {node.op_type for node in onnx.load(tmp_path / "out/model.onnx").graph.node}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--codebook", "pot9"], 2, "there is no codebook 'pot9'"),
        (["--weight-bits", "0"], 2, "--weight-bits 0 is no budget"),
        (["--weight-bits", "1"], 6, "the cheapest choice takes"),
        (["--weight-bits", "5", "--energy", "0.5"], 2, "bits and energy can't both be a budget"),
        (["--codebook", "csd2", "--recipe", "integer"], 2, "are for weights in codebooks"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, code, message, tmp_path, samples):
    done = run("-o", str(tmp_path / "out"), *arguments, "--calib", str(samples))
    assert done.exit_code == code
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_without_samples_the_remedy_is_named(tmp_path):
    done = run("-o", str(tmp_path / "out"), "--codebook", "csd2")
    assert done.exit_code != 0
    assert "--calib" in done.output


def test_bars_reach_the_pass():
    pipeline = with_bars(recipe("shift-add+integer"), 1.0, None, None, None)
    (step,) = [step for step in pipeline.leaves() if isinstance(step, ShiftAdd)]
    assert step.max_drop == 0.5
    assert step.book == "mix"
    assert ShiftAdd().book == "csd2"


REPORT = ShiftAddReport(
    (
        LayerFinding("first", "csd2", 100, 8.5, 2.0, 38.0),
        LayerFinding("second", "apot4", 900, 4.1, 1.25, 21.0),
        LayerFinding("third", "apot4", 100, 4.6, 1.5, 24.0),
        LayerFinding("last", "", 10, 32.0, 0.0, None),
    ),
    (Point(4.2, 0.5, Distance(0.1, 0.6, 0.2), False), Point(5.0, 0.6, Distance(0.01, 0.1, 0.2), True)),
    "metric at most 0.5 lower",
    5.0,
    0.6,
    Distance(0.01, 0.1, 0.2),
    Distance(0.012, -0.1, 0.1),
)


def test_layers_are_summed_up_by_codebook():
    found = codebook_screen.by_codebook(REPORT)
    assert {name: len(layers) for name, layers in found.items()} == {"floats": 1, "csd2": 1, "apot4": 2}
    assert codebook_screen.summary(REPORT).startswith("3 of 4 layers as shifts and additions, 5.00 bits per weight")
    assert [codebook_screen.point_cells(point)[0] for point in REPORT.curve] == ["4.20", "5.00"]


def test_pictures_are_the_same_for_the_same_numbers():
    for picture in (bits_curve, layer_picture):
        text = picture(REPORT)
        assert text.startswith("<svg")
        assert text == picture(REPORT)


def test_forms_that_were_not_run_leave_their_cells_empty():
    row = FormRow("MatMulNBits 4", 5.0, OnRuntime(2048, 0.8995, 0.91), None, 1.234, None)
    assert forms_screen.cells(row) == ("5.00", "2", "89.95 %", "0.91x", "", "", "", "1.23", "")
    (shown,) = forms_screen.tables(FormsReport((row,), "45 nm, Horowitz", 1))
    assert shown.row_count == 1
    assert "45 nm, Horowitz" in forms_screen.caption(FormsReport((row,), "45 nm, Horowitz", 1))


def test_forms_are_compared_in_the_report(tmp_path, samples):
    pytest.importorskip("tvm")
    done = run("-o", str(tmp_path / "out"), "--codebook", "apot4", "--calib", str(samples), "--compare-forms", "--json")
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["forms"]
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["fp32", "int8", "MatMulNBits 4", "csd2", "apot6", "apot4"]
    assert rows["apot4"]["bits"] < rows["apot6"]["bits"] < rows["csd2"]["bits"] < rows["fp32"]["bits"] == 32
    assert rows["apot4"]["ort"]["bytes"] < rows["csd2"]["ort"]["bytes"] < rows["fp32"]["ort"]["bytes"]
    energies = [rows[name]["operations"] for name in ("apot4", "csd2", "fp32")]
    assert energies == sorted(energies)
    assert rows["MatMulNBits 4"]["tvm"] is None
    assert all(row["tvm"]["speed"] > 0 for name, row in rows.items() if not name.startswith("MatMul"))
    assert "Number formats side by side" in (tmp_path / "out/report.html").read_text()
