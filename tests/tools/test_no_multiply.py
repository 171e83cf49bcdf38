"""The checker certifies what can't multiply and nothing else; the bundled models have such a form."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto
from typer.testing import CliRunner

import planish
from planish.backends.onnx.dialect import NO_MULTIPLY
from planish.backends.onnx.writer import write
from planish.backends.ort.session import open_session
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.tools.cli import app
from planish.tools.compiling import optimize
from planish.tools.no_multiply import Certificate, inspect_no_multiply

INT, BYTE, SIGNED, FLOAT, BOOL = (
    TensorProto.INT32, TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT, TensorProto.BOOL,
)  # fmt: skip
TERNARY = ("t", np.array([[1, 0, -1], [0, 0, 1], [-1, 1, 1]], np.int8))
ZOO = Path(planish.__file__).parent.parent / "tools" / "zoo"
CALIBRATION = ZOO / "fashion_vit" / "calibration.npz"
TEST = np.load(ZOO / "fashion_vit" / "test.npz")["images"]


def certify(folder: Path, nodes, inputs, constants=(), output=("y", INT), **more) -> Certificate:
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info(name, kind, [3, 3]) for name, kind in inputs],
        [oh.make_tensor_value_info(output[0], output[1], None)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
        value_info=more.pop("value_info", []),
    )
    imports = [oh.make_opsetid("", 18), oh.make_opsetid("com.microsoft", 1), oh.make_opsetid("own", 1)]
    path = folder / "model.onnx"
    onnx.save(oh.make_model(graph, opset_imports=imports, ir_version=10, **more), path)
    return inspect_no_multiply(path)


def reasons(found: Certificate) -> str:
    assert found.verdict == "multiplies"
    return "; ".join(row.reason for row in found.offenders)


PRODUCT = oh.make_node("MatMulInteger", ["x", "t"], ["y"])


def test_a_product_with_a_ternary_constant_is_a_masked_sum(tmp_path):
    found = certify(tmp_path, [PRODUCT], [("x", BYTE)], [TERNARY])
    assert (found.verdict, found.offenders) == ("no multiplications", ())
    assert found.counts == {"masked sums": {"MatMulInteger": 1}}


@pytest.mark.parametrize("side", ["left", "right"])
def test_data_is_ternary_where_it_is_looked_up_in_a_ternary_table(tmp_path, side):
    nodes = [
        oh.make_node("Gather", ["table", "i"], ["g"]),
        oh.make_node("Transpose", ["g"], ["h"], perm=[1, 0]),
        oh.make_node("Cast", ["h"], ["t"], to=SIGNED),
        oh.make_node("MatMulInteger", ["t", "x"] if side == "left" else ["x", "t"], ["y"]),
    ]
    table = np.array([-1, 0, 1], np.int32)
    inputs = [("x", BYTE), ("i", INT)]
    assert certify(tmp_path, nodes, inputs, [("table", table)]).verdict == "no multiplications"
    two = certify(tmp_path, nodes, inputs, [("table", np.array([-1, 0, 2], np.int32))])
    assert f"the {side} operand may be 2" in reasons(two)


def test_bits_signs_and_their_differences_are_ternary(tmp_path):
    nodes = [
        oh.make_node("Greater", ["a", "b"], ["g"]),
        oh.make_node("Cast", ["g"], ["up"], to=SIGNED),
        oh.make_node("Where", ["g", "one", "minus"], ["w"]),
        oh.make_node("Sub", ["up", "up"], ["d"]),
        oh.make_node("Concat", ["d", "w"], ["t"], axis=1),
        PRODUCT,
    ]
    constants = [("one", np.int8(1)), ("minus", np.int8(-1))]
    assert certify(tmp_path, nodes, [("x", BYTE), ("a", INT), ("b", INT)], constants).verdict == "no multiplications"
    nodes[3] = oh.make_node("Add", ["up", "up"], ["d"])
    assert "may be 2" in reasons(certify(tmp_path, nodes, [("x", BYTE), ("a", INT), ("b", INT)], constants))


def test_a_zero_point_of_the_ternary_operand_has_to_be_0(tmp_path):
    node = oh.make_node("MatMulInteger", ["x", "t", "px", "pt"], ["y"])
    constants = [TERNARY, ("px", np.uint8(7)), ("pt", np.int8(0))]
    assert certify(tmp_path, [node], [("x", BYTE)], constants).verdict == "no multiplications"
    constants[2] = ("pt", np.int8(1))
    assert "zero point isn't 0" in reasons(certify(tmp_path, [node], [("x", BYTE)], constants))
    from_outside = certify(tmp_path, [node], [("x", BYTE), ("pt", SIGNED)], constants[:2])
    assert "zero point isn't 0" in reasons(from_outside)


def test_a_constant_that_the_caller_may_replace_is_none(tmp_path):
    found = certify(tmp_path, [PRODUCT], [("x", BYTE), ("t", SIGNED)], [TERNARY])
    assert "isn't known" in reasons(found)


def test_two_unknown_operands_multiply(tmp_path):
    found = certify(tmp_path, [PRODUCT], [("x", BYTE), ("t", BYTE)])
    assert reasons(found) == "the left operand isn't known; the right operand isn't known"


@pytest.mark.parametrize("op", ["Mul", "Div", "Mod", "Pow"])
def test_one_hidden_multiplication_is_found(tmp_path, op):
    nodes = [
        PRODUCT.__class__.FromString(PRODUCT.SerializeToString()),
        oh.make_node("Add", ["y", "y"], ["z"]),
        oh.make_node(op, ["z", "two"], ["out"], name="hidden"),
    ]
    found = certify(tmp_path, nodes, [("x", BYTE)], [TERNARY, ("two", np.int32(2))], ("out", INT))
    assert found.verdict == "multiplies"
    assert {(row.where, row.op) for row in found.offenders} == {("hidden", op)}


def test_ops_that_nobody_knows_are_not_certified(tmp_path):
    found = certify(tmp_path, [oh.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], [("x", INT)])
    assert "what it computes inside isn't known" in reasons(found)
    found = certify(tmp_path, [oh.make_node("CumSum", ["x", "a"], ["y"])], [("x", INT)], [("a", np.int32(0))])
    assert "isn't among the ops that are known not to multiply" in reasons(found)


def test_graphs_inside_and_functions_are_not_certified(tmp_path):
    branch = oh.make_graph(
        [oh.make_node("Mul", ["x", "x"], ["b"])], "branch", [], [oh.make_tensor_value_info("b", INT, [3, 3])]
    )
    node = oh.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    found = certify(tmp_path, [node], [("x", INT)], [("yes", np.array(True))])
    assert "it has a graph inside" in reasons(found)
    body = [oh.make_node("Mul", ["a", "b"], ["c"])]
    for domain in ("own", ""):
        function = oh.make_function(domain, "Add", ["a", "b"], ["c"], body, [oh.make_opsetid("", 18)])
        node = oh.make_node("Add", ["x", "x"], ["y"], domain=domain)
        assert "function" in reasons(certify(tmp_path, [node], [("x", INT)], functions=[function]))


def test_scatters_that_multiply_are_found(tmp_path):
    constants = [("i", np.zeros((3, 3), np.int64))]
    for reduction, verdict in (("none", "no multiplications"), ("mul", "multiplies")):
        node = oh.make_node("ScatterElements", ["x", "i", "x"], ["y"], axis=0, reduction=reduction)
        assert certify(tmp_path, [node], [("x", INT)], constants).verdict == verdict


def test_types_that_contradict_each_other_prove_nothing(tmp_path):
    nodes = [
        oh.make_node("Identity", ["a"], ["claimed"]),
        oh.make_node("Cast", ["claimed"], ["t"], to=SIGNED),
        PRODUCT,
    ]
    claim = [oh.make_tensor_value_info("claimed", BOOL, [3, 3])]
    assert "isn't valid" in reasons(certify(tmp_path, nodes, [("x", BYTE), ("a", INT)], value_info=claim))


def test_a_name_with_two_definitions_proves_nothing(tmp_path):
    nodes = [oh.make_node("Cast", ["x"], ["t"], to=SIGNED), PRODUCT]
    assert "defined twice" in reasons(certify(tmp_path, nodes, [("x", BYTE)], [TERNARY]))


def test_scaling_is_allowed_at_the_border_only(tmp_path):
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        oh.make_node("MatMulInteger", ["q", "t", "zero"], ["w"]),
        oh.make_node("Cast", ["w"], ["r"], to=FLOAT),
        oh.make_node("Mul", ["r", "scale"], ["y"]),
    ]
    constants = [TERNARY, ("scale", np.float32(0.1)), ("zero", np.uint8(3))]
    found = certify(tmp_path, nodes, [("x", FLOAT)], constants, ("y", FLOAT))
    assert (found.verdict, found.boundary) == ("no multiplications between its boundaries", ("x", "y"))
    assert found.counts["boundary"] == {"QuantizeLinear": 1, "Cast": 1, "Mul": 1}
    nodes.append(oh.make_node("Relu", ["y"], ["z"]))
    assert certify(tmp_path, nodes, [("x", FLOAT)], constants, ("z", FLOAT)).verdict == "multiplies"


def test_the_command_shows_counts_and_exits_with_4(tmp_path):
    certify(tmp_path, [PRODUCT], [("x", BYTE)], [TERNARY])
    result = CliRunner().invoke(app, ["inspect", "--no-multiply", str(tmp_path / "model.onnx")])
    assert result.exit_code == 0
    assert "no multiplications" in result.stdout
    assert "masked sums" in result.stdout
    certify(tmp_path, [oh.make_node("Mul", ["x", "x"], ["y"])], [("x", INT)])
    result = CliRunner().invoke(app, ["inspect", "--no-multiply", "--json", str(tmp_path / "model.onnx")])
    assert result.exit_code == 4
    assert json.loads(result.stdout)["offenders"][0]["reason"] == "it multiplies"


@cache
def integer(name: str) -> Graph:
    return optimize(ZOO / name / "model.onnx", "integer-only", calibration=str(CALIBRATION))


@pytest.mark.parametrize("name", ["fashion_vit", "fashion_cnn"])
def test_the_bundled_models_do_without_multiplications(name, tmp_path):
    path, images = tmp_path / "model.onnx", TEST[:24]
    nodes = sum(write(integer(name), path, spellings=NO_MULTIPLY).ops.values())
    found = inspect_no_multiply(path)
    assert (found.verdict, found.boundary) == ("no multiplications", ())
    assert sum(sum(ops.values()) for ops in found.counts.values()) == nodes < 20_000
    logits = open_session(path, threads=1).run({"images": images})["logits"]
    assert logits.dtype == np.int32
    np.testing.assert_array_equal(logits, interpret(integer(name), {"images": images})["logits"])


@pytest.mark.tvm
@pytest.mark.parametrize("name", ["fashion_vit", "fashion_cnn"])
def test_machine_code_computes_the_same_integers(name, tmp_path):
    pytest.importorskip("tvm")
    from planish.backends.targets import target_named
    from planish.tools.sessions import open_model
    from planish.tools.writing import write_for

    write(integer(name), tmp_path / "model.onnx", spellings=NO_MULTIPLY)
    library = write_for(integer(name), tmp_path, target_named("tvm-cpu"))
    feed = {"images": TEST[:8]}
    found = open_model(library.model, threads=1).run(feed)["logits"]
    np.testing.assert_array_equal(found, open_session(tmp_path / "model.onnx", threads=1).run(feed)["logits"])


def test_optimize_writes_a_certified_artifact(tmp_path):
    arguments = [
        *("optimize", str(ZOO / "fashion_cnn" / "model.onnx"), "-o", str(tmp_path / "out"), "--recipe", "integer"),
        *("--calib", str(CALIBRATION), "--no-multiply", "--no-bench"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = inspect_no_multiply(tmp_path / "out" / "model.onnx")
    assert (found.verdict, found.boundary) == ("no multiplications between its boundaries", ("logits",))


def test_optimize_names_what_has_no_such_form(tmp_path):
    model = str(ZOO / "fashion_cnn" / "model.onnx")
    result = CliRunner().invoke(app, ["optimize", model, "-o", str(tmp_path / "out"), "--no-multiply"])
    assert result.exit_code == 4
    assert "has no form without multiplications" in result.output
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(
        app, ["optimize", model, "-o", str(tmp_path / "x"), "--no-multiply", "--target", "tvm-cpu"]
    )
    assert result.exit_code == 2
