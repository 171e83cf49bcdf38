"""What an artifact for ONNX Runtime says of zeros in its weights: no speed, and as many bytes as were saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from rewriting import read

from planish.backends.onnx.dialect import ORT_CPU, STANDARD
from planish.backends.onnx.writer import write
from planish.backends.targets import target_named
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.passes.base import Context
from planish.passes.sparse.detect_sparsity import DetectSparsity
from planish.passes.sparse.masks import Structure
from planish.tools.compiling import compile
from planish.tools.sparsity_label import compacted, sparsity_label
from planish.tools.writing import write_for

RNG = np.random.default_rng(5)
TEXT = """
def main(x: f32[4, 128]):
    w: f32[128, 128] = Const('w')
    y: f32[4, 128] = Linear()(x, w)
    z: f32[4, 128] = Relu()(y)
    v: f32[128, 64] = Const('v')
    r: f32[4, 64] = Linear()(z, v)
    return r
"""


def graph_of(name: str, density: float) -> Graph:
    """Two layers, the first with zeros."""
    w, v = RNG.normal(size=(128, 128)).astype(np.float32), RNG.normal(size=(128, 64)).astype(np.float32)
    sparse = np.where(Structure(name).kept(w**2, density), w, 0).astype(np.float32)
    return read(TEXT, {"w": Data(sparse), "v": v})


def test_bytes_are_those_that_the_dense_file_has_more(tmp_path: Path) -> None:
    graph = graph_of("ob4", 0.2)
    DetectSparsity().run(graph, Context())
    written = write_for(graph, tmp_path, target_named("ort-cpu"))
    dense = write(graph, tmp_path / "dense.onnx", spellings=ORT_CPU)
    label = written.sparsity
    assert label is not None
    saved = dense.files[0].stat().st_size - written.model.stat().st_size
    assert label.bytes_smaller == saved
    assert 0.75 * 4 * 128 * 128 < saved < 0.8 * 4 * 128 * 128
    assert str(label) == f"1 weight with 80 % zeros: no speed-up on ONNX Runtime; {saved:,} bytes smaller"
    feed = {"x": RNG.normal(size=(4, 128)).astype(np.float32)}
    results = [onnxruntime.InferenceSession(path).run(None, feed)[0] for path in (written.model, dense.files[0])]
    np.testing.assert_array_equal(*results)


def test_nothing_is_claimed_where_nothing_is_saved(tmp_path: Path) -> None:
    unseen = graph_of("ob4", 0.2)  # no pass has looked at it
    label = write_for(unseen, tmp_path, target_named("ort-cpu")).sparsity
    assert label is not None
    assert label.bytes_smaller == 0
    assert "no speed-up on ONNX Runtime; 0 bytes smaller" in str(label)
    assert write_for(graph_of("ob4", 0.99), tmp_path, target_named("ort-cpu")).sparsity is None


def test_weights_that_tensorrt_can_use_stay_in_one_piece(tmp_path: Path) -> None:
    graph = graph_of("2:4", 0.5)
    DetectSparsity().run(graph, Context())
    label = write_for(graph, tmp_path, target_named("onnx")).sparsity
    assert label is not None
    assert (label.bytes_smaller, label.two_of_four, label.eligible) == (0, 1, 1)
    assert str(label).endswith("0 bytes smaller; TensorRT can skip those of 1")


@pytest.mark.parametrize("spellings", [STANDARD, replace(ORT_CPU, multiply=False)])
def test_only_files_for_onnx_runtime_store_weights_without_zeros(spellings, tmp_path: Path) -> None:
    graph = graph_of("ob4", 0.2)
    DetectSparsity().run(graph, Context())
    assert compacted(graph, ORT_CPU).compact
    assert compacted(graph, spellings) == spellings
    assert sparsity_label(graph, [write(graph, tmp_path / "m.onnx").files[0]], ORT_CPU).bytes_smaller == 0


def test_the_artifact_says_so_everywhere(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    write(graph_of("ob4", 0.2), source)
    outcome = compile(source, tmp_path / "out", "default", bench=False)
    saved = outcome.written.sparsity.bytes_smaller
    assert saved > 0.75 * 4 * 128 * 128
    assert (tmp_path / "out/model.onnx").stat().st_size < source.stat().st_size - 0.9 * saved
    text = f"1 weight with 80 % zeros: no speed-up on ONNX Runtime; {saved:,} bytes smaller"
    assert str(outcome.written.sparsity) == text
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["sparsity"]["label"] == text
    assert text in (tmp_path / "out/report.html").read_text()
    outcome = compile(source, tmp_path / "as-it-was", "raise-linear", bench=False)
    assert outcome.written.sparsity.bytes_smaller == 0
