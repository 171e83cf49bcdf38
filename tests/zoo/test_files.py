"""The exported files and their table of expected counts belong together, and every file runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from .inputs import seeded_inputs

FOLDER = Path(__file__).parent
EXPECTED = {
    name: counts
    for table in ("expected.json", "foreign.json")
    for name, counts in json.loads((FOLDER / table).read_text()).items()
}


def test_every_file_has_expected_counts_and_every_count_a_file() -> None:
    assert {path.name for path in FOLDER.glob("*.onnx")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_exported_file_runs_at_two_batch_sizes(name: str) -> None:
    model = onnx.load(FOLDER / name)
    # ONNX Runtime puts its simplified norm in the default domain, where onnx lacks it.
    if not any(node.op_type == "SimplifiedLayerNormalization" for node in model.graph.node):
        onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in (2, 3):
        (result,) = session.run(None, seeded_inputs(model, symbolic=batch))
        assert result.shape[0] == batch
        assert np.isfinite(result).all()
        assert result.std() > 0.01


@pytest.mark.parametrize("name", [name for name in EXPECTED if "_sdpa_dyn23" in name])
def test_fused_operators_of_recent_opsets_agree_with_the_expected_counts(name: str) -> None:
    operators = [node.op_type for node in onnx.load(FOLDER / name).graph.node]
    fused = {"Attention": "Attention", "LayerNorm": "LayerNormalization", "RMSNorm": "RMSNormalization", "Gelu": "Gelu"}
    counts = EXPECTED[name]
    assert {k: operators.count(op) for k, op in fused.items() if k in counts} == {
        k: counts[k] for k in fused if k in counts
    }
