"""Whole models in torch compute what the interpreter computes, and their weights have gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo.inputs import seeded_inputs

import planish
from planish.backends.ort.evaluate import evaluate_opaque
from planish.ir import dtypes, ops
from planish.ir.errors import CalibrationError, UnsupportedOp, UsageError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.op import Return, as_value, constant
from planish.ir.types import tensor

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

from planish.tools.recovery.torch_graph import TorchGraph  # noqa: E402

ROOT = Path(planish.__file__).parent.parent
BUNDLED = [ROOT / "tools" / "zoo" / name / "model.onnx" for name in ("fashion_vit", "fashion_cnn")]
NAMES = (
    *("bert_dyn18", "bert_sdpa_ts14", "vit_dyn23", "vit_ts11", "convnext_dyn18", "swin_dyn18", "llama_dyn18"),
    *("llama_sdpa_ts17", "mobile_dyn18", "timm_ts17", "multihead_merged_ts14", "token_batch_norm_dyn18"),
)
FILES = [*BUNDLED, *(ROOT / "tests" / "zoo" / f"{name}.onnx" for name in NAMES)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem if file.stem != "model" else file.parent.name)
def test_outputs_and_values_inside_are_those_of_the_interpreter(file):
    graph = planish.optimize(file, "default")
    feed = seeded_inputs(onnx.load(file))
    layers = [node for node in graph.nodes(ops.Linear, ops.Conv) if constant(node.operands[1]) is not None]
    inside = [node.result for node in graph.nodes(ops.LayerNorm, ops.Gelu, ops.Add)]
    expected: dict[object, np.ndarray] = {}
    results = interpret(graph, feed, taps=expected.__setitem__, opaque=evaluate_opaque)
    module = TorchGraph(graph, layers)
    outputs, tapped = module({name: torch.from_numpy(array) for name, array in feed.items()}, inside)
    for found, array in zip(outputs, results.values(), strict=True):
        np.testing.assert_allclose(found.detach().numpy(), array, rtol=1e-4, atol=1e-4)
    for value, found in zip(inside, tapped, strict=True):
        np.testing.assert_allclose(torch.as_tensor(found).detach().numpy(), expected[value], rtol=1e-3, atol=1e-3)
    sum(output.square().sum() for output in outputs).backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in module.weights)


def small(shared: bool = False) -> Graph:
    """x[2, 3] -> Linear -> Linear -> y, where both may read one weight."""
    graph = Graph()
    x = graph.add_input("x", tensor(dtypes.f32, 2, 3))
    weights = [as_value(np.eye(3, dtype=np.float32) * (i + 2)) for i in range(2)]
    if shared:
        weights[1] = weights[0]
    for weight in dict.fromkeys(weights):
        graph.insert(weight.node)
    value = x
    for weight in weights:
        value = graph.add(ops.Linear(), value, weight).result
    graph.add(Return(("y",)), value)
    return graph


def test_a_shared_weight_is_one_parameter_and_other_readers_keep_the_original():
    graph = small(shared=True)
    first, second = graph.nodes(ops.Linear)
    assert len(TorchGraph(graph, [first, second]).weights) == 1
    module = TorchGraph(graph, [first])
    assert module.places == [[(first, 1)]]
    (y,), _ = module({"x": torch.ones(2, 3)})
    with torch.no_grad():
        module.weights[0].zero_()
    assert torch.equal(y, torch.full((2, 3), 4.0))
    assert torch.equal(module({"x": torch.ones(2, 3)})[0][0], torch.zeros(2, 3))
    assert constant(second.operands[1]).numpy()[0, 0] == 2


def test_what_cannot_be_trained_is_refused():
    graph = small()
    x = graph.inputs[0]
    layer = graph.nodes(ops.Linear)[1]
    graph.set_operand(layer, 1, graph.add(ops.MatMul(), layer.operands[1], layer.operands[1], before=layer).result)
    with pytest.raises(UsageError, match="computed"):
        TorchGraph(graph, [layer])
    with pytest.raises(UsageError, match="can't be trained"):
        TorchGraph(graph, small().nodes(ops.Linear))
    with pytest.raises(CalibrationError, match="no data for input x"):
        TorchGraph(graph)({})
    assert x.users


def test_an_op_without_derivative_is_refused_only_after_trained_weights():
    graph = small()
    first, second = graph.nodes(ops.Linear)
    graph.opsets[""] = 22
    opaque = ops.Opaque("Mish", "", 22, (), (tensor(dtypes.f32, 2, 3),))
    mish = graph.add(opaque, first.result, before=second).result
    graph.set_operand(second, 0, mish)
    with pytest.raises(UnsupportedOp, match=r"ai\.onnx\.Mish"):
        TorchGraph(graph, [first])
    (y,), _ = TorchGraph(graph, [second])({"x": torch.ones(2, 3)})
    expected = 3 * 2 * np.tanh(np.log1p(np.exp(2)))
    np.testing.assert_allclose(y.detach().numpy(), np.full((2, 3), expected), rtol=1e-5)
