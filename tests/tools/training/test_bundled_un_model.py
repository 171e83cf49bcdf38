"""The bundled ViT without LayerNorm, beside the one it was trained from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import planish

ZOO = Path(planish.__file__).parent.parent / "tools" / "zoo"
PLAIN, UNIFIED = ZOO / "fashion_vit" / "model.onnx", ZOO / "fashion_vit_un" / "model.onnx"
TEST = np.load(ZOO / "fashion_vit" / "test.npz")


def logits(model: Path, count: int) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # tests run beside each other
    session = onnxruntime.InferenceSession(model, options)
    parts = [session.run(None, {"images": TEST["images"][i : i + 50]})[0] for i in range(0, count, 50)]
    return np.concatenate(parts)


def test_its_accuracy_is_within_a_point_of_the_one_with_layer_norm():
    count = 500
    plain, unified = (
        100 * np.mean(logits(model, count).argmax(1) == TEST["labels"][:count]) for model in (PLAIN, UNIFIED)
    )
    assert unified >= plain - 1


def test_each_norm_is_one_multiplication_and_one_addition():
    plain, unified = (onnx.load(model).graph for model in (PLAIN, UNIFIED))
    norms = [node.name for node in plain.node if node.op_type == "LayerNormalization"]
    constants = {tensor.name for tensor in unified.initializer}
    products = {n.output[0] for n in unified.node if n.op_type == "Mul" and set(n.input) & constants}
    added = [n for n in unified.node if n.op_type == "Add" and n.input[0] in products and n.input[1] in constants]
    by_channel = [n for n in added if n.input[1].endswith((".norm1.bias", ".norm2.bias")) or n.input[1] == "norm.bias"]
    assert len(by_channel) == len(norms) == 13
    kinds = {node.op_type for node in unified.node}
    assert kinds & {"LayerNormalization", "ReduceMean", "Sqrt", "Reciprocal", "Pow"} == set()


@pytest.mark.torch
def test_training_starts_from_the_weights_in_an_exported_file():
    torch = pytest.importorskip("torch")
    from planish.tools.zoo.train_fashion_vit import VisionTransformer
    from planish.tools.zoo.train_fashion_vit_un import trained_weights

    model = VisionTransformer().eval()
    model.load_state_dict(trained_weights(PLAIN, list(model.state_dict())))
    with torch.no_grad():
        found = model(torch.from_numpy(TEST["images"][:50])).numpy()
    np.testing.assert_allclose(found, logits(PLAIN, 50), rtol=1e-3, atol=1e-3)


@pytest.mark.torch
def test_a_file_of_another_model_is_refused():
    pytest.importorskip("torch")
    from planish.ir.errors import UsageError
    from planish.tools.zoo.train_fashion_vit_un import trained_weights

    with pytest.raises(UsageError, match="lacks 1 weights of this model, the first one is other"):
        trained_weights(PLAIN, ["cls", "other"])
