"""Sparse attention as compiled code against its numpy reference, and the lists of blocks that it runs through."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm.attention_blocks import plan
from planish.backends.tvm.regions import regions
from planish.ir import ops
from planish.ir.attention_patterns import Pattern
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import of_array
from tests.backends.tvm.floats import Case, assert_cases, both, float_isas, normal


def case(heads, length, width, depth, causal=False, batch=1, shared=None):
    skipped = heads.count("skip")
    shapes = ((batch, len(heads), length, width), *((batch, shared or len(heads), length, d) for d in (width, depth)))
    mean = (normal(skipped, depth),) if skipped else ()
    return Case(ops.SparseAttention(0.3, heads, causal), (*(normal(*shape) for shape in shapes), *mean), 4e-6)


def cases():
    for causal in (False, True):
        yield case(("window 10", "dense", "stripe 0:3,70:90", "skip"), 130, 9, 20, causal, batch=2)
        yield case(
            ("window 10 blocks 10", "window 0", "window 2 period 13", "window 3 stripe 0:1"), 130, 16, 33, causal, 1, 2
        )
        yield case(("window 64 blocks 64", "window 8 blocks 32 period 16"), 256, 64, 64, causal)
        yield case(("window 1",), 1, 1, 1, causal)
        yield case(("stripe 0:100", "window 70 stripe 150:151"), 197, 32, 48, causal)
        for rest in (20, 31, 45):  # queries of the last block
            yield case(("window 3",), 64 + rest, 8, 8, causal)
    arrays = (normal(2, 4, 197, 16), normal(2, 2, 197, 16), normal(2, 2, 197, 20))
    yield Case(ops.Attention(0.3, True), arrays, 4e-6)  # to all keys, with the blocks of the future left out
    yield case(("stripe 3:4",), 7, 8, 8, True)  # the first three rows keep nothing and are NaN
    yield case(("skip", "skip"), 67, 8, 9, batch=2)


@pytest.mark.parametrize("isa", float_isas())
def test_every_pattern(isa):
    assert_cases(list(cases()), isa)


def test_what_follows_is_done_in_its_kernel_and_written_to_where_it_goes():
    graph, heads = Graph(), ("window 16 blocks 16", "skip", "stripe 0:5")
    arrays = {name: normal(2, 3, 96, 8) for name in "qkv"}
    q, k, v = (graph.add_input(name, of_array(array).interface()) for name, array in arrays.items())
    y = ops.Relu()(ops.SparseAttention(0.3, heads)(q, k, v, Data(normal(1, 8))))
    y = ops.Reshape((2, 96, 24))(ops.Transpose((0, 2, 1, 3))(y))
    graph.attach(y, None, Loc(("made",)))
    graph.add(Return(("y",)), y)
    assert len(regions(graph)[0]) == 1
    found, wanted = both(graph, arrays)
    np.testing.assert_allclose(found["y"], wanted["y"], atol=4e-6)


def test_blocks_that_a_pattern_keeps_in_full_have_no_mask_and_others_share_theirs():
    heads = tuple(map(Pattern.parse, ("window 64 blocks 64", "window 64", "stripe 0:64,128:192", "skip", "dense")))
    found = plan(heads, 512, False, 64)
    assert found.counts.tolist() == [[3] * 8, [2, *[3] * 6, 2], [2] * 8, [0] * 8, [8] * 8]
    masks = np.split(found.masks, found.starts[8:-1:8])
    assert [len(set(part.tolist()) - {0}) for part in masks] == [0, 2, 0, 0, 0]  # below and above the diagonal
    assert found.kept.shape == (2, 64, 64)
    assert found.keys[2].tolist() == [*range(64), *range(128, 192), *[-1] * 384]
    assert found.skipped.tolist() == [-1, -1, -1, 0, -1]


def test_a_causal_pattern_lists_no_block_of_the_future():
    found = plan((Pattern(),), 256, True, 64)
    assert found.counts.tolist() == [[1, 2, 3, 4]]
    assert found.columns.tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert len(found.kept) == 1


def test_the_last_block_of_queries_may_be_shorter():
    found = plan((Pattern(),), 130, False, 64)
    assert found.counts.tolist() == [[3, 3, 3]]
    assert (found.masks > 0).tolist() == [False, False, True] * 3  # there the keys end
