"""detect-sparsity: what a file already has stands in the types, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import assert_same_text, check_unchanged, read

from planish.ir.data import Data
from planish.ir.interpret import interpret
from planish.ir.sparsity import pattern
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.sparse.detect_sparsity import DetectSparsity
from planish.passes.sparse.masks import Structure

RNG = np.random.default_rng(12)

BEFORE = """
def main(x: f32[3, 32]):
    w: f32[32, 16] = Const('w')
    y: f32[3, 16] = Linear()(x, w)
    return y
"""


def weight(name: str, density: float = 0.5) -> np.ndarray:
    w = RNG.normal(size=(32, 16)).astype(np.float32)
    return np.where(Structure(name).kept(w**2, density), w, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("ob4", "sparse(f32, 'block', (4,), axis=1, density=0.5)"),
        ("ob16", "sparse(f32, 'block', (16,), axis=1, density=0.5)"),
        ("ib4", "sparse(f32, 'block', (4,), axis=0, density=0.5)"),
        ("2:4", "sparse(f32, 'n:m', (2, 4), axis=0, density=0.5)"),
        ("unstructured", "sparse(f32, 'unstructured', (), axis=None, density=0.5)"),
    ],
)
def test_structures_are_found(name, head):
    w = weight(name)
    graph = read(BEFORE, {"w": w})
    feed = {"x": RNG.normal(size=(3, 32)).astype(np.float32)}
    before = interpret(graph, feed)["y"]
    changes = DetectSparsity().run(graph, Context())
    assert dict(changes.rewrites) == {name: 1}
    verify(graph)
    after = BEFORE.replace("w: f32[32, 16]", f"w: {head}[32, 16]")
    assert_same_text(graph, read(after, {"w": Data(w, None, pattern(name, density=0.5))}))
    np.testing.assert_array_equal(interpret(graph, feed)["y"], before)
    assert not DetectSparsity().run(graph, Context())


def test_a_few_stray_zeros_are_no_structure():
    w = weight("unstructured", 0.8)
    check_unchanged(DetectSparsity(), BEFORE, constants={"w": w})


def test_zeros_inside_blocks_that_stay_cost_a_structure():
    w = weight("ob4")
    w[RNG.random(w.shape) < 0.3] = 0
    graph = read(BEFORE, {"w": w})
    assert dict(DetectSparsity().run(graph, Context()).rewrites) == {"unstructured": 1}
    graph = read(BEFORE, {"w": w})
    assert dict(DetectSparsity(loss=0.4).run(graph, Context()).rewrites) == {"ob4": 1}
