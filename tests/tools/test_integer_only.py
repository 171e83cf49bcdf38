"""The checker finds every float in any ONNX file, and knows codes at the border when it sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto
from typer.testing import CliRunner

from planish.ir.errors import FrontendError
from planish.tools.cli import app
from planish.tools.integer_only import inspect_integers


def save(path: Path, nodes, inputs, outputs, constants=()) -> Path:
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info(name, kind, [2, 3]) for name, kind in inputs],
        [oh.make_tensor_value_info(name, kind, [2, 3]) for name, kind in outputs],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )
    file = path / "model.onnx"
    imports = [oh.make_opsetid("", 18), oh.make_opsetid("com.microsoft", 1)]
    onnx.save(oh.make_model(graph, opset_imports=imports, ir_version=10), file)
    return file


INT, FLOAT, BYTE = TensorProto.INT32, TensorProto.FLOAT, TensorProto.UINT8
SCALE, ZERO, ONE = ("scale", np.float32(0.1)), ("zero", np.uint8(3)), ("one", np.int32(1))


def test_integers_throughout(tmp_path):
    file = save(tmp_path, [oh.make_node("Add", ["x", "one"], ["y"])], [("x", INT)], [("y", INT)], [ONE])
    assert inspect_integers(file).verdict == "fully integer"


def test_codes_at_the_border(tmp_path):
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        oh.make_node("Cast", ["q"], ["w"], to=INT),
        oh.make_node("Cast", ["w"], ["r"], to=FLOAT),
        oh.make_node("Mul", ["r", "scale"], ["y"]),
    ]
    found = inspect_integers(save(tmp_path, nodes, [("x", FLOAT)], [("y", FLOAT)], [SCALE, ZERO]))
    assert (found.verdict, found.boundary) == ("integer between its boundaries", ("x", "y"))


def test_quantization_inside_is_no_border(tmp_path):
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        oh.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        oh.make_node("Relu", ["d"], ["e"]),
        oh.make_node("QuantizeLinear", ["e", "scale", "zero"], ["y"]),
    ]
    found = inspect_integers(save(tmp_path, nodes, [("x", FLOAT)], [("y", BYTE)], [SCALE, ZERO]))
    assert found.verdict == "not integer-only"
    assert {row.tensor for row in found.offenders} == {"d", "e", ""}


def test_an_input_that_something_else_reads_too_is_an_offender(tmp_path):
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"]),
        oh.make_node("Relu", ["x"], ["z"]),
    ]
    found = inspect_integers(save(tmp_path, nodes, [("x", FLOAT)], [("y", BYTE), ("z", FLOAT)], [SCALE, ZERO]))
    assert {row.tensor for row in found.offenders} >= {"x", "z"}


def test_floats_hidden_in_integer_ops(tmp_path):
    file = save(tmp_path, [oh.make_node("Pow", ["x", "one"], ["y"])], [("x", INT)], [("y", INT)], [ONE])
    (row,) = inspect_integers(file).offenders
    assert (row.op, row.reason) == ("Pow", "ONNX Runtime computes integer powers in double")


def test_floats_in_subgraphs_and_attributes(tmp_path):
    branch = oh.make_graph(
        [oh.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.ones((2, 3), np.float32))),
         oh.make_node("Cast", ["c"], ["b"], to=INT)],
        "branch", [], [oh.make_tensor_value_info("b", INT, [2, 3])],
    )  # fmt: skip
    nodes = [oh.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch, name="choice")]
    file = save(tmp_path, nodes, [], [("y", INT)], [("yes", np.array(True))])
    places = {row.where for row in inspect_integers(file).offenders}
    assert any(place.startswith("choice/then_branch/") for place in places)


def test_ops_of_other_domains_are_not_trusted(tmp_path):
    nodes = [oh.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]
    found = inspect_integers(save(tmp_path, nodes, [("x", INT)], [("y", INT)]))
    assert [row.op for row in found.offenders] == ["com.microsoft.Gelu"]


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(FrontendError, match="can't read the model"):
        inspect_integers(tmp_path / "model.onnx")


def test_the_command_says_so_and_exits_with_4(tmp_path):
    run = CliRunner().invoke
    good = save(tmp_path, [oh.make_node("Add", ["x", "one"], ["y"])], [("x", INT)], [("y", INT)], [ONE])
    result = run(app, ["inspect", "--integer-only", str(good)])
    assert (result.exit_code, "fully integer" in result.stdout) == (0, True)
    bad = save(tmp_path, [oh.make_node("Relu", ["x"], ["y"])], [("x", FLOAT)], [("y", FLOAT)])
    assert run(app, ["inspect", "--integer-only", str(bad)]).exit_code == 4
