"""A product of two matrices of signs counts bits in integers."""

from __future__ import annotations

import numpy as np
from integerizing import integerized

SCORES = """
def g(q: f32[2, 3, 9, 8], k: f32[2, 3, 7, 8]):
    a: f32[2, 3, 9, 8] = Binarize(zero=1)(q)
    c: f32[2, 3, 7, 8] = Binarize(zero=1)(k)
    t: f32[2, 3, 8, 7] = Transpose(perm=(0, 1, 3, 2))(c)
    y: f32[2, 3, 9, 7] = AddMatMul()(a, t)
    return y
"""


def test_signs_by_signs_have_an_op_of_their_own():
    result = integerized(SCORES)
    assert [op for op in result.ops if "MatMul" in op] == ["IntBinaryMatMul"]
    assert result.changes.skipped == []
    assert result.sqnr_db > 20
    assert set(np.unique(result.outputs["y"])) <= set(range(-8, 9, 2))
