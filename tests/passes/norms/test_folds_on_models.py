"""fold-norms and hoist-slices on every exported model of the zoo: the same outputs, and never more nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo.inputs import seeded_inputs

import planish
from planish.backends.ort.taps import taps
from planish.frontend import load
from planish.ir import ops
from planish.ir.op import Const
from planish.passes.pipelines import recipe
from planish.tools.compiling import optimize

BUNDLED = Path(planish.__file__).parent.parent / "tools" / "zoo"
ZOO = Path(__file__).parent.parent.parent / "zoo"
FAMILIES = (
    "vit",
    "bert",
    "timm",
    "swin",
    "convnext",
    "llama",
    "mobile",
    "multihead",
    "layer_norm",
    "rms",
    "batch_norm",
)
MODELS = sorted(path.name for path in ZOO.glob("*.onnx") if path.name.startswith(FAMILIES))


@pytest.mark.parametrize("name", MODELS)
def test_exact_folds_stay_within_1e_5(name: str):
    path = ZOO / name
    feed = seeded_inputs(onnx.load(path))
    before = optimize(load(path), recipe("default").without("fold-norms", "hoist-slices"))
    after = optimize(load(path), "default")
    assert len(after) <= len(before)
    pairs = (taps(graph, list(graph.outputs))(feed) for graph in (before, after))
    for old, new in zip(*pairs, strict=True):
        if old.dtype == np.float32:
            assert np.abs(new - old).max(initial=0) <= 1e-5 * max(np.abs(old).max(initial=0), 1e-30)


def test_nothing_is_left_of_norms_that_were_trained_to_be_constants():
    before = load(BUNDLED / "fashion_vit_un" / "model.onnx")
    after = optimize(before, "default")
    reference = optimize(load(BUNDLED / "fashion_vit" / "model.onnx"), "default")
    norms = len(reference.nodes(ops.LayerNorm))
    assert norms == 13
    assert not after.nodes(ops.LayerNorm, ops.RMSNorm, ops.BatchNorm, ops.Mul, ops.Sqrt, ops.Div, ops.ReduceMean)
    assert len(after.nodes(ops.Add)) == len(reference.nodes(ops.Add))
    counts = [sum(not isinstance(node.op, Const) for node in graph) for graph in (reference, after)]
    assert counts[0] - counts[1] == norms
    images = np.load(BUNDLED / "fashion_vit" / "test.npz")["images"][:64]
    old, new = (taps(graph, list(graph.outputs))({"images": images})[0] for graph in (before, after))
    np.testing.assert_allclose(new, old, rtol=0, atol=1e-5 * np.abs(old).max())
