"""Codebooks hold what they say, and weights in the IR are held to them."""

import numpy as np
import pytest

from planish.ir import dtypes, ops
from planish.ir.codebooks import CODEBOOKS, GROUP
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.text import constants_of, parse_graph, print_graph
from planish.ir.types import Quant, TensorType
from planish.ir.verify import findings, verify

FIXED = [book for book in CODEBOOKS.values() if not book.is_binary_coded]


@pytest.mark.parametrize("book", FIXED, ids=lambda book: book.name)
def test_a_codebook_fits_its_bits_and_terms(book):
    assert len(book.values) <= 1 << book.bits
    assert book.values == tuple(sorted({*book.values, *(-v for v in book.values)}))
    assert max(book.values) <= 127
    assert book.terms == {"csd2": 2, "apot6": 3, "apot5": 2, "apot4": 2, "int4": 2, "pot4": 1, "ternary": 1}[book.name]


def test_levels_are_those_of_the_papers():
    assert CODEBOOKS["apot4"].magnitudes == (0, 1, 2, 3, 4, 6, 8, 10)
    assert (CODEBOOKS["apot5"].magnitudes[-1], CODEBOOKS["apot6"].magnitudes[-1]) == (48, 100)
    assert len(CODEBOOKS["csd2"].magnitudes) == 44


def test_binary_coded_groups_have_levels_of_their_own():
    book, rng = CODEBOOKS["bcq2"], np.random.default_rng(0)
    signs = rng.choice([-1, 1], (2, 2 * GROUP + 3, 4))
    alphas = rng.integers(1, 60, (2, 3, 4))
    codes = (signs * np.repeat(alphas, GROUP, axis=1)[:, : 2 * GROUP + 3]).sum(axis=0).astype(np.int8)
    assert book.fault(codes, 1) == ""
    assert (
        book.stored_bits(codes.shape, 1) == 2 * codes.size + 4 * 3 * 2 * 8
    )  # two magnitudes for each of three groups of four columns
    codes[:3, 0] = 1, 2, 3
    assert "different magnitudes" in book.fault(codes, 1)


def graph_of(codes, codebook):
    graph = Graph("g")
    x = graph.add_input("x", TensorType(dtypes.f32, (2, codes.shape[0])))
    w = Data(codes, Quant((0.5,) * codes.shape[1], 0, 1, codebook))
    y = ops.ShiftLinear()(x, w)
    graph.attach(y, None, Loc(("y",)))
    graph.add(Return(("y",)), y)
    return graph


def test_the_verifier_holds_constants_to_their_codebook():
    good = np.array([[4, -6], [10, 0], [-8, 1]], np.int8)
    verify(graph_of(good, "apot4"))
    assert [str(f) for f in findings(graph_of(good, "pot4"))] == ["T5 at y: -6 isn't in codebook pot4"]
    assert "T5" in str(findings(graph_of(good, "pot9"))[0])


def test_a_codebook_survives_print_and_parse():
    graph = graph_of(np.array([[4, -8], [64, 0]], np.int8), "pot4")
    text = print_graph(graph)
    assert "q(i8, (0.5, 0.5), 0, axis=1, codebook='pot4')[2, 2]" in text
    assert print_graph(parse_graph(text, constants_of(graph))) == text
