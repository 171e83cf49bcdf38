"""Sparse attention on the command line: from an ONNX file to one that looks at some keys, within the bars."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_models

from planish.backends.onnx.writer import write
from planish.passes.pipelines import recipe
from planish.tools.bench.models.long_encoder import LongEncoder

ENCODER = LongEncoder(tokens=512, head=32, mlp=1, reach=3.0, period=16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.onnx"
    write(ENCODER.graph(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.concatenate([feed["x"] for feed in ENCODER.feeds(32)]))
    return path


def test_the_recipe_writes_plain_ops_that_compute_about_the_same(tmp_path, model, data):
    found = small_models.optimize(model, tmp_path, data, "--recipe", "sparse-attention", "--max-nmse", "1e-4", "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    (report,) = result["sparse_attention"]
    assert report["attentions"][0]["heads"][:2] == ["window 32 blocks 32"] * 2
    assert report["budget"] == "output error at most 0.01 % of the variance"
    (path,) = (tmp_path / "out").glob("*.onnx")
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "com.microsoft"}
    sessions = [onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (model, path)]
    for feed in ENCODER.feeds(2, seed=9):
        wanted, changed = (session.run(None, feed)[0] for session in sessions)
        assert 0 < np.linalg.norm(changed - wanted) < 1e-2 * np.linalg.norm(wanted)


def test_the_screen_shows_what_heads_look_at(tmp_path, model, data):
    shown = small_models.optimize(model, tmp_path, data, "--recipe", "sparse-attention", "--no-verify")
    assert shown.exit_code == 0, shown.output
    assert "Sparse attention" in shown.stdout
    assert "window 32 blocks 32" in shown.stdout


def test_the_recipe_joins_with_integer():
    names = [step.name for step in recipe("sparse-attention+integer").leaves()]
    assert names.index("sparsify-attention") < names.index("integerize")
    assert names.count("fold-norms") == 1
