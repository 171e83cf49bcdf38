"""Whole models in float32, and integer models with float islands, against the interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planish.backends.tvm.build import Executable
from planish.backends.tvm.program import lower
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.interpret import interpret
from planish.tools.compiling import optimize
from tests.backends.tvm.floats import Case, assert_cases, both, normal
from tests.backends.tvm.graphs import coded, graph_of, linear
from tests.backends.tvm.running import HOST

ZOO = Path(__file__).parents[3] / "tools" / "zoo"
IMAGES = np.load(ZOO / "fashion_vit" / "test.npz")["images"]


@pytest.mark.parametrize("name", ["fashion_vit", "fashion_cnn"])
def test_a_bundled_model_in_float32(name):
    """Logits are of the order of 10; a few dozen layers of roundings leave a hundred-thousandth of it at most."""
    graph = optimize(ZOO / name / "model.onnx", shapes={"images": (1, 1, 28, 28)})
    executable = Executable(lower(graph, HOST), HOST.target())
    for i in range(4):
        feeds = {"images": IMAGES[i : i + 1]}
        for output, wanted in interpret(graph, feeds).items():
            np.testing.assert_allclose(executable(**feeds)[output], wanted, atol=1e-4)


def test_float_islands_between_codes():
    def build(x):
        y = ops.Dequantize()(ops.Requantize(0.07, 3, dtypes.i8)(linear(x, 24, 30)))
        y = ops.LayerNorm(-1, 1e-5)(ops.Gelu()(y), Data(normal(30)), Data(normal(30)))
        y = ops.Add()(ops.Linear()(y, Data(normal(30, 24)), Data(normal(24))), ops.Dequantize()(x))
        return ops.Requantize(0.1, 0, dtypes.i8)(linear(ops.Quantize(0.05, 128, dtypes.u8)(y), 24, 9))

    graph, feeds = graph_of(coded(dtypes.u8, 1, 7, 24, zero=3), build=build)
    found, wanted = both(graph, feeds)
    # A rounding of floats may move a code by one, which moves few of the codes that follow, by little.
    off = np.abs(found["y"].astype(np.int64) - wanted["y"])
    assert np.mean(off > 0) < 0.05
    assert np.max(off) <= 1


def test_not_a_number_becomes_the_code_of_zero():
    assert_cases([Case(ops.Quantize(0.05, 7, dtypes.u8), (np.array([[np.nan, 1, -9, 99]], np.float32),))])
