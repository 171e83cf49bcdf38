"""hoist-slices: what is computed for nobody goes, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import check_rewrite, check_unchanged

from planish.passes.cleanup.hoist_slices import HoistSlices

RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_class_token_needs_one_row_of_everything_behind_the_keys():
    check_rewrite(
        HoistSlices(),
        """
        def main(x: f32[batch, 5, 4], q: f32[batch, 2, 5, 2], k: f32[batch, 2, 5, 2], v: f32[batch, 2, 5, 2]):
            a: f32[batch, 2, 5, 2] = Attention(scale=0.5)(q, k, v)
            t: f32[batch, 5, 2, 2] = Transpose(perm=(0, 2, 1, 3))(a)
            r: f32[batch, 5, 4] = Reshape(shape=(0, 5, 4))(t)
            s: f32[batch, 5, 4] = Add()(x, r)
            n: f32[batch, 5, 4] = LayerNorm(axis=-1, eps=1e-05)(s)
            w: f32[4, 8] = Const('w')
            h: f32[batch, 5, 8] = Linear()(n, w)
            g: f32[batch, 5, 8] = Gelu(approximate='none')(h)
            v2: f32[8, 4] = Const('v')
            m: f32[batch, 5, 4] = Linear()(g, v2)
            o: f32[batch, 5, 4] = Add()(s, m)
            first: i64[()] = Const(i64, 0)
            c: f32[batch, 4] = Gather(axis=1)(o, first)
            return c
        """,
        """
        def main(x: f32[batch, 5, 4], q: f32[batch, 2, 5, 2], k: f32[batch, 2, 5, 2], v: f32[batch, 2, 5, 2]):
            q1: f32[batch, 2, 1, 2] = Slice(starts=(0,), ends=(1,), axes=(2,), steps=(1,))(q)
            a: f32[batch, 2, 1, 2] = Attention(scale=0.5)(q1, k, v)
            t: f32[batch, 1, 2, 2] = Transpose(perm=(0, 2, 1, 3))(a)
            r: f32[batch, 1, 4] = Reshape(shape=(0, 1, 4))(t)
            x1: f32[batch, 1, 4] = Slice(starts=(0,), ends=(1,), axes=(1,), steps=(1,))(x)
            s: f32[batch, 1, 4] = Add()(x1, r)
            n: f32[batch, 1, 4] = LayerNorm(axis=-1, eps=1e-05)(s)
            w: f32[4, 8] = Const('w')
            h: f32[batch, 1, 8] = Linear()(n, w)
            g: f32[batch, 1, 8] = Gelu(approximate='none')(h)
            v2: f32[8, 4] = Const('v')
            m: f32[batch, 1, 4] = Linear()(g, v2)
            o: f32[batch, 1, 4] = Add()(s, m)
            c: f32[batch, 4] = Squeeze(axes=(1,))(o)
            return c
        """,
        constants=weights(w=(4, 8), v=(8, 4)),
        sizes={"batch": 3},
    )


def test_what_broadcasts_along_the_sliced_axis_is_read_whole():
    check_rewrite(
        HoistSlices(),
        """
        def main(x: f32[2, 5, 4], y: f32[2, 1, 4], z: f32[4]):
            a: f32[2, 5, 4] = Mul()(x, y)
            b: f32[2, 5, 4] = Add()(a, z)
            c: f32[2, 2, 4] = Slice(starts=(1,), ends=(3,), axes=(1,), steps=(1,))(b)
            return c
        """,
        """
        def main(x: f32[2, 5, 4], y: f32[2, 1, 4], z: f32[4]):
            s: f32[2, 2, 4] = Slice(starts=(1,), ends=(3,), axes=(1,), steps=(1,))(x)
            a: f32[2, 2, 4] = Mul()(s, y)
            c: f32[2, 2, 4] = Add()(a, z)
            return c
        """,
    )


@pytest.mark.parametrize(
    "body",
    [
        # the rest is an output too
        "y: f32[2, 2, 5, 2] = Relu()(q)\n"
        "    s: f32[2, 2, 1, 2] = Slice(starts=(0,), ends=(1,), axes=(2,), steps=(1,))(y)\n    return s, y",
        # rows before the last see fewer positions
        "y: f32[2, 2, 5, 2] = Attention(scale=0.5, causal=True)(q, k, k)\n"
        "    s: f32[2, 2, 1, 2] = Slice(starts=(0,), ends=(1,), axes=(2,), steps=(1,))(y)\n    return s",
        # a norm needs all of its own axis
        "y: f32[2, 2, 5, 2] = LayerNorm(axis=-2, eps=1e-05)(q)\n"
        "    s: f32[2, 2, 1, 2] = Slice(starts=(0,), ends=(1,), axes=(2,), steps=(1,))(y)\n    return s",
        # each row has a mask of its own
        "y: f32[2, 2, 5, 2] = Attention(scale=0.5)(q, k, k, m)\n"
        "    s: f32[2, 2, 1, 2] = Slice(starts=(0,), ends=(1,), axes=(2,), steps=(1,))(y)\n    return s",
    ],
)
def test_slices_of_what_is_needed_whole_stay(body: str):
    check_unchanged(
        HoistSlices(), f"def main(q: f32[2, 2, 5, 2], k: f32[2, 2, 5, 2], m: f32[2, 1, 5, 5]):\n    {body}\n"
    )
