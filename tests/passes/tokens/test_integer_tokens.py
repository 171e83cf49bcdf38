"""Compressed models in integers: every method, fully integer, the same integers in numpy, ONNX Runtime and TVM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoders import Model, Shape

import planish
from planish.backends.onnx.dialect import NO_MULTIPLY, ORT_CPU
from planish.backends.ort.taps import taps
from planish.ir import ops
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.properties import integer_only
from planish.passes.base import Context, Pipeline, Repeat
from planish.passes.cleanup.hoist_slices import HoistSlices
from planish.passes.integer import Integerize, SplitProjections
from planish.passes.norms import FoldNorms
from planish.passes.pipelines import cleanup, raising
from planish.passes.tokens.applying import compressed
from planish.passes.tokens.methods import METHODS, Choice

ZOO = Path(__file__).parents[3] / "tools" / "zoo" / "fashion_vit"
PREPARED = Pipeline(Repeat(cleanup), raising, FoldNorms(), Repeat(cleanup))
FINISH = Pipeline(HoistSlices(), Repeat(cleanup), SplitProjections(), HoistSlices(), Integerize(), cleanup)


def integers(graph: Graph, feeds: list[dict[str, np.ndarray]]) -> Graph:
    FINISH.run(graph, Context(calibration=feeds, taps=taps))
    return graph


def same_everywhere(graph: Graph, feed: dict[str, np.ndarray]) -> None:
    """Integers of all values, in numpy and on ONNX Runtime, with and without multiplications."""
    values = [v for node in graph for v in node.results if v.uses and not isinstance(node.op, ops.Const)]
    seen: dict[Value, np.ndarray] = {}
    interpret(graph, feed, taps=lambda value, array: seen.__setitem__(value, array))
    for spellings in (ORT_CPU, NO_MULTIPLY):
        for value, found in zip(values, taps(graph, values, spellings=spellings)(feed), strict=True):
            np.testing.assert_array_equal(found, seen[value], err_msg=f"{value.node}")


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_small_encoders_become_fully_integer(method, proportional):
    model = Model(Shape(tokens=17, width=16, heads=2, head="dense"))
    feeds = [model.feed(2, seed) for seed in range(8)]
    graph = integers(compressed(model.graph(), Choice(method, (4, 3, 0), proportional=proportional)), feeds)
    assert integer_only(graph) == []
    kinds = {ops.IntMatchTokens, ops.IntMergeTokens} if method == "merge" else {ops.TopTokens}
    assert kinds <= {type(node.op) for node in graph}
    same_everywhere(graph, model.feed(3, 99))


@pytest.fixture(scope="module")
def vision():  # type: ignore[no-untyped-def]
    graph = planish.optimize(ZOO / "model.onnx", PREPARED)
    calibration = np.load(ZOO / "calibration.npz")["images"]
    test = np.load(ZOO / "test.npz")
    return graph, [{"images": calibration[i : i + 8]} for i in range(0, 64, 8)], test["images"], test["labels"]


@pytest.mark.parametrize(
    ("method", "removed"),
    [("merge", (26,) * 5 + (0,)), ("merge", (80, 0, 0, 50, 0, 0)), ("eliminate", (40, 0, 30, 0, 0, 0)),
     ("fuse", (40, 0, 30, 0, 0, 0)), ("route", (0, 100, 0, 0, 0, 0))],
)  # fmt: skip
def test_the_bundled_transformer(vision, method, removed):
    graph, feeds, images, labels = vision
    small = compressed(graph, Choice(method, removed))
    feed = {"images": images[:200]}
    (real,) = taps(small, list(small.outputs))(feed)
    coded = integers(small, feeds)
    assert integer_only(coded) == []
    (found,) = taps(coded, list(coded.outputs))(feed)
    accuracy = [100 * float(np.mean(np.argmax(logits, 1) == labels[:200])) for logits in (real, found)]
    assert accuracy[1] >= accuracy[0] - 2
    np.testing.assert_array_equal(interpret(coded, {"images": images[:20]})[coded.tail.op.names[0]], found[:20])


def test_the_compiled_integers_are_the_same(vision):
    pytest.importorskip("tvm")
    from tests.backends.tvm.running import assert_exact

    graph, feeds, images, _ = vision
    coded = integers(compressed(graph, Choice("merge", (40, 30, 20, 0, 0, 0))), feeds)
    bound, _ = coded.clone(binding={"batch": 3})
    assert_exact(bound, {"images": images[:3]})
