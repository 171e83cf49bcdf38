"""Integer models, bit by bit: what compiled code stores at every step is what the interpreter computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.backends.tvm.build import Executable
from planish.backends.tvm.program import lower
from planish.ir import dtypes, ops
from planish.ir.errors import CalibrationError, UnsupportedOp
from planish.passes.base import Pipeline
from planish.passes.integer import Integerize
from planish.passes.pipelines import resolve_pipeline
from planish.tools.compiling import optimize
from tests.backends.tvm.graphs import coded, graph_of, weights
from tests.backends.tvm.running import HOST, assert_same_run, name_values, runnable_isas

ZOO = Path(__file__).parents[3] / "tools" / "zoo"
CALIBRATION = ZOO / "fashion_vit" / "calibration.npz"
IMAGES = np.load(ZOO / "fashion_vit" / "test.npz")["images"]


def integer_graph(name, profile="table"):
    steps = (
        replace(step, profile=profile) if isinstance(step, Integerize) else step
        for step in resolve_pipeline("integer").steps
    )
    graph = optimize(
        ZOO / name / "model.onnx",
        Pipeline(*steps),
        shapes={"images": (1, 1, 28, 28)},
        calibration=str(CALIBRATION),
    )
    name_values(graph)
    return graph


@pytest.fixture(scope="module", params=[("fashion_vit", "table"), ("fashion_vit", "ivit"), ("fashion_cnn", "table")])
def graph(request):
    return integer_graph(*request.param)


def test_every_stored_value_has_the_references_bits(graph):
    executable = Executable(lower(graph, HOST, keep=True), HOST.target())
    for i in range(4):
        assert_same_run(graph, executable, {"images": IMAGES[i : i + 1]})


@pytest.mark.slow
@pytest.mark.parametrize("isa", runnable_isas()[1:])
def test_outputs_are_the_same_on_every_instruction_set(graph, isa):
    best = Executable(lower(graph, HOST), HOST.target())
    other = Executable(lower(graph, isa), isa.target())
    for i in range(64):
        feeds = {"images": IMAGES[i : i + 1]}
        for name, array in best(**feeds).items():
            np.testing.assert_array_equal(other(**feeds)[name], array)


def test_alike_layers_share_kernels_and_values_share_memory(graph):
    program = lower(graph, HOST)
    names = {call.name for call in program.calls}
    assert len(names) < len(program.calls)
    assert program.arena_bytes < lower(graph, HOST, keep=True).arena_bytes


def test_inputs_are_checked(graph):
    executable = Executable(lower(graph, HOST), HOST.target())
    with pytest.raises(CalibrationError, match="images"):
        executable(pixels=IMAGES[:1])
    with pytest.raises(CalibrationError, match="float32"):
        executable(images=IMAGES[:1].astype(np.float32))


def test_ops_without_a_kernel_are_refused_by_name():
    graph, _ = graph_of(coded(dtypes.u8, 3, 8), build=lambda x: ops.IntLinearDequantize()(x, weights(8, 5)))
    with pytest.raises(UnsupportedOp, match=r"no kernel for IntLinearDequantize"):
        lower(graph, HOST)
