"""ONNX's own operator tests: whatever ONNX Runtime computes for a model, it computes for what planish makes of it.

Every case of `onnx.backend.test.case.node` is read, taken through the default pipeline and written. Where ONNX Runtime
runs the original, it must run the result and give the same values; where it doesn't, the result must still be a model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnx_ir
import onnxruntime as ort
import pytest

from planish.backends.onnx.writer import build
from planish.backends.ort.evaluate import evaluate_opaque
from planish.frontend.reader import from_proto
from planish.passes.base import Context
from planish.passes.observers import VerifyEach
from planish.passes.pipelines import RECIPES

SHARDS = 16
CASES = 1884
RUNNABLE = 1500  # at least; a session that stops loading must not pass by running nothing


@cache
def cases() -> list[Any]:
    """All cases, in a fixed order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(node_cases.collect_testcases(None), key=lambda case: case.name)


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after reading, the default pipeline, and writing."""
    graph = from_proto(model)
    context = Context(evaluate_opaque=evaluate_opaque, observers=(VerifyEach(),))
    RECIPES["default"][1].run(graph, context)
    return onnx_ir.to_proto(build(graph))


def run(model: onnx.ModelProto, feeds: Sequence[Any]) -> list[Any]:
    """Outputs under ONNX Runtime without graph optimizations. Raises whatever the runtime raises."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip((i.name for i in session.get_inputs()), feeds, strict=False)))


def difference(expected: Any, found: Any) -> str:
    """How two results differ, "" if they are the same within tolerance."""
    if expected is None or found is None:
        return "" if expected is found else f"{type(found).__name__} for {type(expected).__name__}"
    if isinstance(expected, Mapping):
        pairs = [(expected[key], found.get(key)) for key in expected]
        return next(filter(None, (difference(*pair) for pair in pairs)), "")
    if isinstance(expected, list):
        if len(expected) != len(found):
            return f"{len(found)} elements for {len(expected)}"
        return next(filter(None, map(difference, expected, found)), "")
    a, b = np.asarray(expected), np.asarray(found)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{b.dtype}{list(b.shape)} for {a.dtype}{list(a.shape)}"
    if a.dtype.kind in "fcV":
        close = np.allclose(b.astype(np.complex128), a.astype(np.complex128), rtol=1e-3, atol=1e-4, equal_nan=True)
        return "" if close else f"values differ by {np.nanmax(np.abs(b.astype(np.float64) - a.astype(np.float64)))}"
    return "" if np.array_equal(a, b) else "values differ"


def check(case: Any) -> tuple[bool, str]:
    """(ONNX Runtime runs the original, what is wrong with the result)."""
    feeds = case.data_sets[0][0]
    try:
        expected = run(case.model, feeds)
    except Exception:
        expected = None
    try:
        made = optimized(case.model)
    except Exception as error:
        return expected is not None, f"not converted: {type(error).__name__}: {error}"
    if expected is None:
        return False, ""
    try:
        found = run(made, feeds)
    except Exception as error:
        return True, f"not run: {error}"
    if not (wrong := difference(expected, found)):
        return True, ""
    return True, "" if difference(expected, run(case.model, feeds)) else wrong  # random: differs from itself too


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_operator_test_of_onnx_keeps_its_result(shard: int) -> None:
    runnable, failures = 0, []
    for case in cases()[shard::SHARDS]:
        runs, wrong = check(case)
        runnable += runs
        if wrong:
            failures.append(f"{case.name}: {wrong}")
    assert not failures, f"{len(failures)} of {runnable} cases fail\n" + "\n".join(failures)
    assert runnable >= RUNNABLE // SHARDS * 3 // 4


def test_all_operator_tests_are_there() -> None:
    assert len(cases()) >= CASES
