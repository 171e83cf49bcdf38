"""Artifacts that take several sizes: batches in pieces, other dimensions filled up to the next size and cut."""

from __future__ import annotations

import numpy as np
import pytest

import planish
from planish.backends.tvm.library import write_library
from planish.ir import dtypes, ops
from planish.ir.errors import CalibrationError, UnsupportedOp, UsageError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType
from planish.passes.base import Context
from planish.tools.buckets import batch_of, parse_buckets, variants_of
from tests.backends.tvm.graphs import codes, linear
from tests.backends.tvm.running import HOST


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))


def symbolic():
    """Attention over tokens with a mask that says which of them are there, and a linear layer."""
    graph = Graph()
    coded = TensorType(dtypes.u8, ("batch", "tokens", 12), Quant((0.05,), 100))
    x = graph.add_input("x", coded)
    there = graph.add_input("there", TensorType(dtypes.boolean, ("batch", "tokens")))
    keys = ops.Requantize(0.05, 0, dtypes.i8)(linear(x, 12, 12))
    values = ops.Requantize(0.05, 0, dtypes.i8)(linear(x, 12, 12))
    logits = ops.Requantize(0.1, 0, dtypes.i16)(ops.IntMatMul()(x, ops.Transpose((0, 2, 1))(keys)))
    mean = ops.IntWeightedMean(7)(ops.IntExp()(logits, ops.Unsqueeze((1,))(there)), values)
    y = ops.Requantize(0.02, 3, dtypes.i8)(mean)
    graph.attach(y, None, Loc(("made",)))
    graph.add(Return(("y",)), y)
    return graph


def feeds(batch, tokens):
    there = np.ones((batch, tokens), bool)
    there[0, tokens // 2 :] = tokens == 1
    return {"x": codes(dtypes.u8, batch, tokens, 12), "there": there}


@pytest.fixture
def artifact(tmp_path):
    graph, folder = symbolic(), tmp_path / "artifact"
    folder.mkdir()
    variants = variants_of(graph, {"batch": (1, 4), "tokens": (5, 16)}, Context())
    assert [dict(variant.sizes) for variant in variants] == [
        {"batch": 1, "tokens": 5}, {"batch": 1, "tokens": 16}, {"batch": 4, "tokens": 5}, {"batch": 4, "tokens": 16},
    ]  # fmt: skip
    write_library(variants, folder, HOST, interface=graph, batch=batch_of(graph))
    return graph, planish.load_artifact(folder)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 5), (4, 16), (3, 9), (11, 2), (1, 1), (6, 16)])
def test_every_size_up_to_the_largest_gives_the_references_bits(artifact, batch, tokens):
    graph, library = artifact
    given = feeds(batch, tokens)
    np.testing.assert_array_equal(library(**given)["y"], interpret(graph, given)["y"])


def test_what_a_larger_size_left_behind_is_gone(artifact):
    graph, library = artifact
    small = feeds(1, 7)
    library(**feeds(4, 16))
    np.testing.assert_array_equal(library(**small)["y"], interpret(graph, small)["y"])


def test_sizes_without_room_are_refused_with_the_largest(artifact):
    _, library = artifact
    with pytest.raises(CalibrationError, match="no room for tokens = 17") as raised:
        library(**feeds(1, 17))
    assert "up to tokens = 16" in str(raised.value.remedy)


def test_inputs_that_disagree_on_a_size_are_refused(artifact):
    _, library = artifact
    given = feeds(2, 5)
    with pytest.raises(CalibrationError, match="there is bool"):
        library(x=given["x"], there=given["there"][:1])


def test_a_dimension_without_sizes_is_named_with_the_remedy():
    with pytest.raises(UnsupportedOp, match="'tokens' of input 'x'") as raised:
        variants_of(symbolic(), {}, Context())
    assert "--buckets tokens=" in str(raised.value.remedy)


def test_sizes_of_no_dimension_and_unreadable_ones_are_usage_errors():
    with pytest.raises(UsageError, match="no input has a dimension 'length'"):
        variants_of(symbolic(), {"length": (3,)}, Context())
    assert parse_buckets(["tokens=64,32,32"]) == {"tokens": (32, 64)}
    for text in ("tokens", "tokens=", "=3", "tokens=0", "tokens=a"):
        with pytest.raises(UsageError, match="can't read the buckets"):
            parse_buckets([text])
