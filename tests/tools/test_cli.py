"""The command line: what it makes, what it prints, and what it says of bad input."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from planish.tools.cli import app

run = CliRunner()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = relu(x * 1 @ w + b), with a product by one for cleanup to remove."""
    return write_model(tmp_path / "model.onnx")


def write_model(path: Path, weight: np.ndarray | None = None) -> Path:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3)).astype(np.float32) if weight is None else weight
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["x1"], name="times_one"),
        helper.make_node("MatMul", ["x1", "w"], ["h"], name="product"),
        helper.make_node("Add", ["h", "b"], ["s"], name="bias"),
        helper.make_node("Relu", ["s"], ["y"], name="rectify"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(np.float32(1), "one"),
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.zeros(3, np.float32), "b"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def optimize(*arguments: object):
    return run.invoke(app, ["optimize", *map(str, arguments)])


def test_optimize_makes_a_verified_artifact_and_reports_as_json(model, tmp_path):
    result = optimize(model, "-o", tmp_path / "out", "--no-bench", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verification"]["passed"]
    assert report["nodes"]["after"] < report["nodes"]["before"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pipeline"] == report["pipeline"]
    assert set(manifest["files"]) == {"model.onnx"}


def test_the_same_input_and_seed_give_the_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        assert optimize(model, "-o", tmp_path / name, "--no-bench").exit_code == 0
    for file in ("model.onnx", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_data_with_labels_gives_accuracy(model, tmp_path):
    rng = np.random.default_rng(1)
    data = tmp_path / "data.npz"
    np.savez(data, x=rng.standard_normal((40, 4)).astype(np.float32), labels=rng.integers(0, 3, 40))
    result = optimize(model, "-o", tmp_path / "out", "--no-bench", "--calib", data, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)["verification"]["outputs"][0]
    assert row["top1_agreement"] == 1.0
    assert row["accuracy_original"] == row["accuracy_artifact"]


def test_dry_run_writes_nothing(model, tmp_path):
    result = optimize(model, "-o", tmp_path / "out", "--dry-run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["target"] == "ort-cpu"
    assert not (tmp_path / "out").exists()


def test_shape_binds_the_batch(model, tmp_path):
    assert optimize(model, "-o", tmp_path / "out", "--no-bench", "--shape", "x=2x4").exit_code == 0
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert [d.dim_value for d in written.graph.input[0].type.tensor_type.shape.dim] == [2, 4]


def test_list_passes_names_every_pass(model):
    from planish.passes.pipelines import PASSES

    result = optimize("--list-passes", "--json")
    assert [row["name"] for row in json.loads(result.stdout)["passes"]] == [kind.name for kind in PASSES]


def test_print_ir_after_shows_the_program(model, tmp_path):
    result = optimize(model, "-o", tmp_path / "out", "--no-bench", "--no-verify", "--print-ir-after", "all")
    assert "def tiny(x: f32[n, 4])" in result.stderr


def test_dump_dir_holds_one_text_per_change(model, tmp_path):
    assert optimize(model, "-o", tmp_path / "out", "--no-bench", "--dump-dir", tmp_path / "ir").exit_code == 0
    names = sorted(file.name for file in (tmp_path / "ir").iterdir())
    assert names[0] == "00-input.txt"
    assert len(names) > 1


def test_a_missed_speed_gate_is_exit_code_6_and_leaves_nothing(model, tmp_path):
    result = optimize(model, "-o", tmp_path / "out", "--min-speedup", "1000")
    assert result.exit_code == 6
    assert not (tmp_path / "out").exists()


def nothing_left(tmp_path: Path) -> bool:
    return not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def bad(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.onnx"
    good = write_model(tmp_path / "good.onnx").read_bytes()
    if kind == "missing":
        return tmp_path / "absent.onnx"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "other protobuf":
        path.write_bytes(numpy_helper.from_array(np.arange(4), "t").SerializeToString())
    elif kind == "noise":
        path.write_bytes(bytes(range(256)) * 4)
    elif kind == "NaN weight":
        write_model(path, np.full((4, 3), np.nan, np.float32))
    elif kind == "missing external data":
        proto = onnx.load(tmp_path / "good.onnx")
        onnx.save(proto, path, save_as_external_data=True, location="bad.data", size_threshold=0)
        (tmp_path / "bad.data").unlink()
    return path


KINDS = ("missing", "directory", "empty", "truncated", "other protobuf", "noise", "NaN weight", "missing external data")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_model_is_exit_code_3_with_one_message_and_nothing_left(tmp_path, kind):
    result = optimize(bad(tmp_path, kind), "-o", tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.output
    assert "try" in result.stderr
    assert nothing_left(tmp_path)


def arrays(kind: str) -> dict[str, np.ndarray]:
    good = np.ones((5, 4), np.float32)
    return {
        "wrong key": {"z": good},
        "wrong dtype": {"x": good.astype(np.float64)},
        "wrong shape": {"x": np.ones((5, 7), np.float32)},
        "NaN": {"x": np.full((5, 4), np.nan, np.float32)},
        "empty": {"x": np.ones((0, 4), np.float32)},
    }[kind]


@pytest.mark.parametrize("kind", ["wrong key", "wrong dtype", "wrong shape", "NaN", "empty"])
def test_bad_data_is_exit_code_3_naming_the_input_and_leaves_nothing(model, tmp_path, kind):
    np.savez(tmp_path / "data.npz", **arrays(kind))
    result = optimize(model, "-o", tmp_path / "out", "--calib", tmp_path / "data.npz")
    assert result.exit_code == 3, result.output
    assert "x" in result.stderr or kind == "empty"
    assert "Traceback" not in result.output
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "abacus"], 4, "known targets"),
        (["--recipe", "defualt"], 2, "did you mean 'default'"),
        (["--passes", "raise-nothing"], 2, "there is no pass"),
        (["--skip-pass", "fold-constant"], 2, "did you mean 'fold-constants'"),
        (["--shape", "y=1x4"], 2, "x"),
        (["--shape", "x=1x5"], 2, "x"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_bad_options_name_the_remedy(model, tmp_path, arguments, code, words):
    result = optimize(model, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == code, result.output
    assert words in result.output
    assert nothing_left(tmp_path)


def test_existing_output_needs_force(model, tmp_path):
    assert optimize(model, "-o", tmp_path / "out", "--no-bench").exit_code == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    again = optimize(model, "-o", tmp_path / "out", "--no-bench")
    assert again.exit_code == 2
    assert "--force" in again.output
    assert optimize(model, "-o", tmp_path / "out", "--no-bench", "--force").exit_code == 0
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_destination_is_a_usage_error(model, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    result = optimize(model, "-o", tmp_path / "locked" / "out", "--no-bench")
    assert result.exit_code == 2


def test_an_interrupt_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planish.tools.compiling.verify", interrupted)
    result = optimize(model, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert nothing_left(tmp_path)


def test_a_wrong_artifact_is_withheld_with_exit_code_5(model, tmp_path, monkeypatch):
    from planish.passes.cleanup import FoldConstants
    from planish.passes.rewrite import Changes

    def sabotage(self, graph, context):
        node = next(n for n in graph if n.op.name in ("Add", "Linear"))
        graph.set_operand(node, len(node.operands) - 1, graph.add(wrong(), before=node, loc=node.loc).result)
        return Changes()

    def wrong():
        from planish.ir.data import Data
        from planish.ir.op import Const

        return Const(Data(np.full(3, 0.25, np.float32)))

    monkeypatch.setattr(FoldConstants, "run", sabotage)
    result = optimize(model, "-o", tmp_path / "out", "--passes", "fold-constants")
    assert result.exit_code == 5, result.output
    assert "max abs" in result.stderr
    assert nothing_left(tmp_path)


def test_debug_shows_the_traceback(tmp_path):
    result = optimize(tmp_path / "absent.onnx", "-o", tmp_path / "out", "--debug")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr


def test_inspect_compare_run_and_doctor_speak_json(model, tmp_path):
    assert optimize(model, "-o", tmp_path / "out", "--no-bench").exit_code == 0
    summary = json.loads(run.invoke(app, ["inspect", str(model), "--json"]).stdout)
    assert summary["opaque"] == {}
    compared = json.loads(run.invoke(app, ["compare", str(model), str(tmp_path / "out"), "--json"]).stdout)
    assert compared["passed"]
    ran = json.loads(run.invoke(app, ["run", str(model), "-i", "random:2", "--json"]).stdout)
    assert ran["y"].startswith("float32[2, 3]")
    assert any(row["part"] == "onnxruntime" for row in json.loads(run.invoke(app, ["doctor", "--json"]).stdout))
