"""Fewer tokens on the command line: options, bars, what is timed, what is refused, and the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import save_samples
from typer.testing import CliRunner

from planish.frontend import load
from planish.ir import ops
from planish.ir.errors import UsageError
from planish.passes.base import Context, Pipeline
from planish.passes.judging import Distance
from planish.passes.pipelines import recipe
from planish.passes.tokens import CompressTokens
from planish.passes.tokens.methods import Choice
from planish.passes.tokens.report import CompressReport, Point
from planish.tools import clock
from planish.tools.bars import split_after, with_bars
from planish.tools.cli import app
from planish.tools.job_options import schedule
from planish.tools.report.token_curve import block_picture, speed_curve

ROOT = Path(__file__).parent.parent.parent
ZOO = ROOT / "tools/zoo/fashion_vit"
VIT = ZOO / "model.onnx"
SMALL = ROOT / "tests/zoo/timm_dyn18.onnx"  # two blocks, 17 tokens
WINDOWED = ROOT / "tests/zoo/swin_dyn18.onnx"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """32 labelled images of the bundled data."""
    data = np.load(ZOO / "test.npz")
    np.savez(tmp_path / "images.npz", images=data["images"][:32], labels=data["labels"][:32])
    return tmp_path / "images.npz"


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return save_samples(SMALL, tmp_path)


@pytest.fixture
def counting_clock(monkeypatch):
    """A clock that takes as long as there are tokens in the products of a graph."""

    def seconds(graphs):
        return [sum(float(n.inputs[0].tensor.dims[1]) for n in g.nodes(ops.Linear) if _is_stream(n)) for g in graphs]

    monkeypatch.setattr("planish.tools.compiling.TargetClock", lambda *fields: seconds)


def _is_stream(node) -> bool:
    return len(node.inputs[0].tensor.dims) == 3


def optimize(model: Path, out: Path, *options: object):
    return CliRunner().invoke(app, ["optimize", str(model), "-o", str(out), "--no-bench", *map(str, options)])


def plain(text: str) -> str:
    """Without the frames and line ends that depend on the width of the terminal."""
    return re.sub(r"[\s│]+", " ", text)


def test_a_schedule_is_all_that_it_takes(tmp_path):
    out = tmp_path / "out"
    found = optimize(VIT, out, "--tokens", "merge", "--schedule", "20", "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    (report,) = result["tokens"]
    assert report["counts"] == [177, 157, 137, 117, 97, 97]
    assert result["verification"]["passed"]
    (entry,) = json.loads((out / "manifest.json").read_text())["tokens"]
    assert (entry["method"], entry["removed"], entry["left"]) == ("merge", [20] * 5 + [0], report["counts"])
    page = (out / "report.html").read_text()
    assert "merged in 5 blocks, 197 -&gt; 97" in page
    assert page.count("<svg") == 1  # tokens by block; nothing was searched for
    assert result["ops"]["after"]["TopK"] % 5 == 0
    assert "TopK" not in result["ops"]["before"]


def test_the_manifest_is_the_same_for_the_same_schedule(tmp_path):
    for name in ("one", "two"):
        assert optimize(SMALL, tmp_path / name, "--schedule", "0.6").exit_code == 0
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_refused_model_is_left_as_it_was_and_the_reason_is_said(tmp_path):
    found = optimize(WINDOWED, tmp_path / "out", "--tokens", "merge", "--schedule", "2")
    assert found.exit_code == 0, found.output
    said = plain(found.stdout)
    assert "no tokens were compressed, the model was left as it was" in said
    assert re.search(r"T4: Reshape takes tokens apart by their position.*\(at node_view_5\)", said)
    assert "T4: Reshape takes tokens apart" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["tokens"] == []
    again = optimize(WINDOWED, tmp_path / "default", "--json")
    ops_of = [onnx.load(tmp_path / name / "model.onnx").graph.node for name in ("out", "default")]
    assert again.exit_code == 0
    assert [n.op_type for n in ops_of[0]] == [n.op_type for n in ops_of[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "integer", "--tokens", "merge"], "add compress to the recipe"),
        (["--passes", "raise-norms", "--latency", "1"], "add compress to the recipe"),
        (["--schedule", "13", "--latency", "1"], "leave one of them out"),
        (["--schedule", "13", "--target-speedup", "2"], "--min-speedup"),
        (["--schedule", "3,x"], "can't read '3,x' as a schedule"),
        (["--schedule", "3,4,5"], "write as many numbers as there are blocks"),
        (["--schedule", "slowly"], "there is no schedule 'slowly'"),
        (["--tokens", "melt"], "known: auto, all, merge, fuse, eliminate, route"),
        (["--latency=-1"], "0 keeps all tokens"),
        (["--schedule", "4", "--max-nmse", "0.1"], "give some with --calib or --verify-with"),
    ],
)
def test_usage_errors_name_the_remedy(tmp_path, options, message):
    found = optimize(SMALL, tmp_path / "out", *options)
    assert found.exit_code == 2, found.output
    assert message in plain(found.output)
    assert not (tmp_path / "out").exists()


def test_a_search_needs_samples(tmp_path):
    found = optimize(SMALL, tmp_path / "out", "--tokens", "merge")
    assert found.exit_code == 3
    assert "give some with --calib, or a schedule" in plain(found.output)


def test_a_given_schedule_is_held_against_the_bars(tmp_path, images):
    found = optimize(VIT, tmp_path / "out", "--schedule", "30", "--calib", images, "--max-nmse", "0.0001")
    assert found.exit_code == 6, found.output
    assert "more than 0.01 %" in plain(found.output)
    assert not (tmp_path / "out").exists()
    within = optimize(VIT, tmp_path / "out", "--schedule", "30", "--calib", images, "--max-nmse", "0.5")
    assert within.exit_code == 0, within.output


def test_a_speed_that_no_schedule_reaches_is_a_missed_gate(tmp_path, samples, counting_clock):
    found = optimize(SMALL, tmp_path / "out", "--tokens", "merge", "--target-speedup", "50", "--calib", samples)
    assert found.exit_code == 6, found.output
    assert "no token schedule is 50 times as fast" in plain(found.output)
    assert not (tmp_path / "out").exists()


def test_a_search_shows_the_curve_of_each_method(tmp_path, samples, counting_clock):
    options = ("--tokens", "all", "--target-speedup", "1.2", "--calib", samples)
    found = optimize(SMALL, tmp_path / "out", *options, "--json")
    assert found.exit_code == 0, found.output
    (report,) = json.loads(found.stdout)["tokens"]
    points = [point for curve in report["curves"].values() for point in curve]
    assert points
    assert all(point["measured"] and point["reported"] is not None for point in points)
    assert report["result"]["speed"] >= 1.2
    assert report["result"]["choice"] == report["choice"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert page.count('class="taken"') == 1
    table = page[page.index("What speed costs") : page.index("<h2>Nodes")]
    assert table.count("<tr") == len(points) + 1
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["tokens"]
    assert entry["reported"]["nmse"] == pytest.approx(report["result"]["reported"]["nmse"])
    assert "speed" not in json.dumps(entry)  # it differs from run to run


def made_up_report(drop: float | None) -> CompressReport:
    points = tuple(
        Point(
            Choice("merge", (count, 0)),
            (20 - count,) * 2,
            1 + count / 10,
            True,
            Distance(0.001 * count, drop, 0.1),
            Distance(0.002 * count, drop, 0.1),
        )
        for count in (2, 4, 6)
    )
    return CompressReport(
        points[1].choice, 20, ("a", "b"), (16, 16), "a budget", {"merge": points}, {}, None, points[1]
    )


@pytest.mark.parametrize("drop", [None, 1.0])
def test_pictures_are_the_same_for_the_same_numbers(drop):
    assert speed_curve(made_up_report(drop)) == speed_curve(made_up_report(drop))
    assert block_picture(made_up_report(drop)) == block_picture(made_up_report(drop))
    assert ("change of the metric" in speed_curve(made_up_report(drop))) == (drop is not None)


def test_bars_are_shared_out():
    def bars(text: str, kind: str) -> tuple[float | None, float]:
        step = next(s for s in with_bars(recipe(text), 1.0, 0.04, None, None).leaves() if s.name == kind)
        return step.max_drop, step.max_nmse  # type: ignore[attr-defined]

    assert bars("compress", "compress-tokens") == (1.0, 0.04)
    assert bars("compress+integer", "compress-tokens") == (0.5, 0.04)
    assert bars("unify+compress", "compress-tokens") == bars("unify+compress", "unify-norms") == (0.5, 0.02)
    assert bars("unify+compress+integer", "unify-norms") == (0.25, 0.02)
    with pytest.raises(UsageError, match="--recover is for replaced norms"):
        with_bars(recipe("compress"), None, None, 10.0, None)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("13", 13),
        ("0.7", 0.7),
        (".5", 0.5),
        ("60,0, 40", (60, 0, 40)),
        ("linear:13", "linear:13"),
        ("search", "search"),
    ],
)
def test_schedules_are_read(text, meaning):
    found = schedule(text)
    assert (found, type(found)) == (meaning, type(meaning))


def test_candidates_are_finished_for_the_target_before_they_are_timed(monkeypatch):
    timed = {}

    def measured(models, sample, **options):
        timed.update({name: onnx.load(path).graph for name, path in models.items()})

        class Found:
            def median_ms(self, name: str) -> float:
                return 1000.0 * (int(name) + 1)

        return Found()

    monkeypatch.setattr(clock, "measure_models", measured)
    graph = load(SMALL)
    before, rest = split_after(recipe("compress+integer"), CompressTokens)
    Pipeline(*before.steps[:-1]).run(graph, Context())
    from planish.backends.targets import TARGETS
    from planish.passes.tokens.applying import compressed

    feeds = [{"pixel_values": np.random.default_rng(i).standard_normal((1, 3, 16, 16)).astype("f4")} for i in range(3)]
    stages = set()
    take = clock.TargetClock(
        rest, TARGETS["ort-cpu"], feeds[0], feeds, 1, None, 0, lambda stage, done, total: stages.add(stage)
    )
    size = len(graph)
    assert take([graph, compressed(graph, Choice("merge", (4, 0)))]) == [1.0, 2.0]
    assert len(graph) == size
    assert all(any(node.op_type.endswith("Integer") for node in made.node) for made in timed.values())
    assert [any(node.op_type == "TopK" for node in timed[name].node) for name in ("0", "1")] == [False, True]
    assert "write candidates" in stages
