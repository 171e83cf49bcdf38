"""Structures of zeros: found in arrays, kept in types, and held to by the verifier."""

import numpy as np
import pytest

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.sparsity import PATTERNS, blocks, density, fault, kept, name_of, pattern
from planish.ir.text import constants_of, parse_graph, print_graph
from planish.ir.types import Sparsity, TensorType
from planish.ir.verify import findings, verify

RNG = np.random.default_rng(2)


def test_blocks_are_aligned_and_the_end_is_filled():
    found = blocks(np.arange(10).reshape(2, 5), 4, 1)
    np.testing.assert_array_equal(found, [[[0, 1, 2, 3], [4, 0, 0, 0]], [[5, 6, 7, 8], [9, 0, 0, 0]]])
    np.testing.assert_array_equal(blocks(np.arange(4).reshape(4, 1), 2, 0), [[[0, 1], [2, 3]]])


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("layout", ["linear", "conv"])
def test_patterns_have_names(name, layout):
    assert name_of(pattern(name, layout, 0.5), layout) == name
    assert name_of(Sparsity("block", (3,), 1)) == ""


def test_the_same_zeros_are_legal_for_one_structure_and_not_for_another():
    w = RNG.normal(size=(8, 8))
    outputs = w * np.repeat(RNG.permutation(np.tile([1, 0], 8)).reshape(8, 2), 4, axis=1)
    assert density(outputs, pattern("ob4")) == 0.5
    assert fault(outputs, pattern("ob4", density=0.5)) == ""
    assert "isn't 0, more than 50.00 %" in fault(outputs, pattern("ib4", density=0.5))
    two = w * np.tile([[1], [0], [0], [1]], (2, 8))
    assert fault(two, pattern("2:4", density=0.5)) == ""
    assert "4 of 4 neighbours along axis 0" in fault(w, pattern("2:4"))
    assert fault(w, pattern("unstructured")) == ""
    assert "100.00 % isn't 0" in fault(w, pattern("unstructured", density=0.9))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("layout", "shape"), [("linear", (9, 6)), ("conv", (6, 9, 2, 1))])
def test_other_values_where_something_is_kept_stay_in_the_structure(name, layout, shape):
    rng = np.random.default_rng(3)
    w = np.zeros(shape)
    w[:, :2] = rng.integers(0, 2, (shape[0], 2, *shape[2:])) * rng.normal(size=(shape[0], 2, *shape[2:]))
    plain = pattern(name, layout)
    found = kept(w, plain)
    assert found.shape == w.shape
    assert np.all(found[w != 0])
    assert density(found * 1.0, plain) == density(w, plain)
    assert np.count_nonzero(found) > np.count_nonzero(w) or plain.kind != "block"


def test_a_structure_that_fits_nothing_is_said_to():
    assert "there is no structure of zeros 'odd'" in fault(np.zeros((2, 2)), Sparsity("odd"))
    assert "doesn't fit" in fault(np.zeros((2, 2)), Sparsity("block", (4,), 2))
    assert "doesn't fit" in fault(np.zeros((2, 2)), Sparsity("n:m", (2,), 0))


def graph_of(w, sparsity):
    graph = Graph("g")
    x = graph.add_input("x", TensorType(dtypes.f32, (3, w.shape[0])))
    y = ops.Linear()(x, Data(w.astype(np.float32), None, sparsity))
    graph.attach(y, None, Loc(("y",)))
    graph.add(Return(("y",)), y)
    return graph


def test_the_verifier_holds_constants_to_their_structure():
    w = np.kron(np.eye(2), np.ones((4, 4)))
    verify(graph_of(w, pattern("ob4", density=0.5)))
    assert [f.invariant for f in findings(graph_of(w + 1, pattern("ob4", density=0.5)))] == ["T6"]


def test_a_structure_survives_print_and_parse():
    graph = graph_of(np.kron(np.eye(2), np.ones((4, 4))), pattern("ob4", density=0.5))
    text = print_graph(graph)
    assert "sparse(f32, 'block', (4,), axis=1, density=0.5)[8, 8]" in text
    assert print_graph(parse_graph(text, constants_of(graph))) == text
