"""Sessions run every tensor type, describe their interface, and fail with one clean line."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from planish.backends.ort.session import open_session, open_with_taps, run_with_taps
from planish.ir.errors import CalibrationError, FrontendError, LoweringError


def model(nodes, inputs, outputs, initializers=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def tensor(name: str, dtype: int = TensorProto.FLOAT, shape=("n", 2)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def chain() -> onnx.ModelProto:
    """y = relu(x @ w) + 1, with the values 'product' and 'relu' inside."""
    w = numpy_helper.from_array(np.array([[1, -1], [2, 3]], np.float32), "w")
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="m"),
        helper.make_node("Relu", ["product"], ["relu"], name="r"),
        helper.make_node("Add", ["relu", "one"], ["y"], name="a"),
    ]
    return model(nodes, [tensor("x")], [tensor("y")], [w, one])


X = np.array([[1, 2], [-3, 1]], np.float32)
PRODUCT = np.array([[5, 5], [-1, 6]], np.float32)


def test_a_model_given_as_bytes_or_file_runs_by_output_name(tmp_path):
    onnx.save(chain(), tmp_path / "m.onnx")
    expected = np.maximum(PRODUCT, 0) + 1
    for source in (chain().SerializeToString(), tmp_path / "m.onnx"):
        for optimize in (True, False):
            session = open_session(source, threads=1, optimize=optimize, spinning=False)
            result = session.run({"x": X})
            assert list(result) == ["y"]
            assert np.array_equal(result["y"], expected)


def test_inputs_and_outputs_are_described():
    session = open_session(chain().SerializeToString())
    (info,) = session.inputs
    assert (info.name, info.type, info.dtype, info.shape) == ("x", "tensor(float)", np.dtype(np.float32), ("n", 2))
    assert [output.name for output in session.outputs] == ["y"]


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT16", "BOOL", "UINT8"])
def test_types_that_numpy_does_not_name_pass_through(name):
    number = TensorProto.DataType.Value(name)
    proto = model([helper.make_node("Identity", ["x"], ["y"])], [tensor("x", number)], [tensor("y", number)])
    x = np.array([[0, 1], [1, 0]]).astype(helper.tensor_dtype_to_np_dtype(number))
    y = open_session(proto.SerializeToString()).run({"x": x})["y"]
    assert y.dtype == x.dtype
    assert np.array_equal(y.astype(np.float32), x.astype(np.float32))


def test_casting_to_bfloat16_from_float_is_read_back():
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)]
    session = open_session(model(nodes, [tensor("x")], [tensor("y", TensorProto.BFLOAT16)]).SerializeToString())
    assert np.array_equal(session.run({"x": X})["y"], X.astype(ml_dtypes.bfloat16))


def test_strings_and_sequences_pass_through():
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"])]
    outputs = [helper.make_tensor_sequence_value_info("s", TensorProto.STRING, None)]
    session = open_session(model(nodes, [tensor("x", TensorProto.STRING, (1,))], outputs).SerializeToString())
    result = session.run({"x": np.array(["hello"], dtype=object)})["s"]
    assert [item.tolist() for item in result] == [["hello"], ["hello"]]
    assert session.outputs[0].dtype is None


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "lacks data for ['x']"),
        ({"x": X, "z": X}, "has no inputs ['z']"),
        ({"x": X.astype(np.float64)}, "refuses the data"),
        ({"x": np.ones((2, 3), np.float32)}, "refuses the data"),
        ({"x": np.ones(2, np.float32)}, "refuses the data"),
    ],
)
def test_data_that_does_not_fit_is_a_fault_of_the_data(feeds, message, capfd):
    with pytest.raises(CalibrationError) as caught:
        open_session(chain().SerializeToString(), what="the original model").run(feeds)
    assert message in caught.value.what
    assert caught.value.what.startswith("the original model")
    assert "\n" not in caught.value.what
    assert capfd.readouterr().err == ""


def test_a_model_that_fails_while_running_is_blamed_on_its_owner(capfd):
    nodes = [helper.make_node("Gather", ["x", "i"], ["y"])]
    proto = model(nodes, [tensor("x"), tensor("i", TensorProto.INT64, (1,))], [tensor("y", shape=None)])
    with pytest.raises(LoweringError, match="the artifact failed while running") as caught:
        open_session(proto.SerializeToString(), what="the artifact", error=LoweringError).run(
            {"x": X, "i": np.array([9])}
        )
    assert "\n" not in caught.value.what
    assert ".cc:" not in caught.value.what
    assert capfd.readouterr().err == ""


def test_models_that_do_not_load_give_one_line(tmp_path, capfd):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    unknown = model([helper.make_node("NoSuchOp", ["x"], ["y"])], [tensor("x")], [tensor("y")])
    sources = [
        tmp_path / "bad.onnx",
        tmp_path / "empty.onnx",
        tmp_path / "no.onnx",
        tmp_path,
        unknown.SerializeToString(),
    ]
    for source in sources:
        with pytest.raises(FrontendError) as caught:
            open_session(source, what="the original model")
        assert caught.value.what.startswith("ONNX Runtime can't load the original model: ")
        assert "\n" not in caught.value.what
        assert "ONNXRuntimeError" not in caught.value.what
        assert caught.value.remedy
    assert capfd.readouterr().err == ""


def with_external_weights(folder: Path) -> Path:
    proto = chain()
    onnx.save(
        proto,
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
        convert_attribute=False,
    )
    return folder / "m.onnx"


@pytest.mark.parametrize("external", [False, True])
def test_taps_return_inner_values_with_weights_in_place(tmp_path, external, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = with_external_weights(tmp_path) if external else tmp_path / "m.onnx"
    if not external:
        onnx.save(chain(), path)
    values = run_with_taps(path, {"x": X}, ["relu", "product", "y"])
    assert list(values) == ["relu", "product", "y"]
    assert np.array_equal(values["product"], PRODUCT)
    assert np.array_equal(values["y"], np.maximum(PRODUCT, 0) + 1)


def test_missing_external_data_is_a_clean_error(tmp_path):
    path = with_external_weights(tmp_path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(FrontendError) as caught:
        open_session(path)
    assert "m.data" in caught.value.what


def test_tapping_an_unknown_value_or_file_is_refused(tmp_path):
    onnx.save(chain(), tmp_path / "m.onnx")
    with pytest.raises(FrontendError, match="has no values \\['w0'\\]"):
        open_with_taps(tmp_path / "m.onnx", ["w0"])
    with pytest.raises(FrontendError, match="can't read"):
        open_with_taps(tmp_path / "no.onnx", ["y"])
