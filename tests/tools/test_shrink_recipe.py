"""The recipe that makes models narrower: on the command line, within a bar, and what the screen says of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import onnx
import pytest
from rich.console import Console, Group
from small_models import save_samples
from typer.testing import CliRunner

from planish.passes.judging import Distance
from planish.passes.pipelines import parse_pipeline, recipe
from planish.passes.sparse.prune_units import PruneUnits
from planish.passes.sparse.report import Point
from planish.passes.sparse.units_report import PrunedUnits, UnitsReport
from planish.tools import units_screen
from planish.tools.bars import with_bars
from planish.tools.cli import app

SMALL = Path(__file__).parent.parent / "zoo/timm_dyn18.onnx"  # two blocks of 48 neurons and 2 heads


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return save_samples(SMALL, tmp_path)


def test_the_recipe_writes_a_narrower_model(tmp_path: Path, samples: Path) -> None:
    out = tmp_path / "out"
    arguments = ["optimize", str(SMALL), "--recipe", "shrink", "--calib", str(samples), "-o", str(out), "--no-bench"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    (report,) = result["units"]
    kept = sum(layer["kept"] for layer in report["layers"])
    assert kept <= 0.75 * sum(layer["units"] for layer in report["layers"])
    assert all(layer["kept"] % 16 == 0 for layer in report["layers"])
    assert result["bytes"]["after"] < result["bytes"]["before"]
    widths = {max(tensor.dims) for tensor in onnx.load(out / "model.onnx").graph.initializer if len(tensor.dims) == 2}
    assert {layer["kept"] for layer in report["layers"]} <= widths
    shown = CliRunner().invoke(app, [*arguments, "--force"]).stdout
    assert f"{kept} of 96 neurons stay" in " ".join(shown.split())


def test_shares_of_neurons_and_heads_imply_the_recipe(tmp_path: Path, samples: Path) -> None:
    out = tmp_path / "out"
    arguments = ["optimize", str(SMALL), "--calib", str(samples), "-o", str(out), "--no-bench", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--heads", "0.5"])
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["units"]
    assert {layer["kind"] for layer in report["layers"]} == {"heads"}
    assert sum(layer["kept"] for layer in report["layers"]) == 2  # of four
    (entry,) = json.loads((out / "manifest.json").read_text())["units"]
    assert [row[1:] for row in entry["layers"]] == [["heads", 2, layer["kept"]] for layer in report["layers"]]
    page = (out / "report.html").read_text()
    assert "<h2>Units</h2>" in page
    assert "2 heads" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--neurons", "1"], "--neurons 1 is no share"),
        (["--heads", "0.5", "--recipe", "prune"], "--neurons and --heads are for recipes that take them out"),
    ],
)
def test_shares_that_make_no_sense_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["optimize", str(SMALL), "-o", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_bars_reach_the_pass() -> None:
    pipeline = with_bars(recipe("shrink"), max_drop=1.0, max_nmse=None, recover=None, metric=None)
    assert [step.max_drop for step in pipeline.leaves() if isinstance(step, PruneUnits)] == [1.0]
    text = "prune-units{neurons=0.5, heads=0.25}"
    assert str(parse_pipeline(text)) == text


def test_the_screen_says_what_stays_and_what_it_costs() -> None:
    distance = Distance(0.0123, 0.5, 0.2)
    report = UnitsReport(
        (
            PrunedUnits("first", "neurons", 1536, 1024, 31.25, 12.0),
            PrunedUnits("second", "heads", 6, 6, None, None),
        ),
        (Point(0.5, distance, True), Point(1.0, Distance(0.0, 0.0), False)),
        "metric at most 1 lower",
        0.5,
        distance,
        distance,
    )
    assert units_screen.summary(report) == (
        "1,024 of 1,536 neurons and 6 of 6 heads stay, 50 % of their products;"
        " outputs err by 1.2 % of their variance, metric -0.5"
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(Group(*units_screen.tables(report)))
    text = console.export_text()
    assert "31.2 dB" in text
    assert "What narrower layers cost" in text
