"""fold-norms: what folds, what stays and why, and that results are the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import check_rewrite, check_unchanged, read

from planish.ir import dtypes, ops
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.types import TensorType
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.norms import FoldNorms

RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_scale_and_shift_go_into_all_readers_through_moves_of_tokens():
    constants = weights(g=(4,), b=(4,), w=(4, 3), c=(3,), v=(4, 2), d=(2,))
    g, b, w, c, v, d = (constants[name].astype(np.float64) for name in "gbwcvd")
    folded = {"W": g[:, None] * w, "C": c + b @ w, "V": g[:, None] * v, "D": d + b @ v}
    check_rewrite(
        FoldNorms(),
        """
        def main(x: f32[2, 5, 4]):
            g: f32[4] = Const('g')
            b: f32[4] = Const('b')
            n: f32[2, 5, 4] = LayerNorm(axis=-1, eps=1e-05)(x, g, b)
            w: f32[4, 3] = Const('w')
            c: f32[3] = Const('c')
            y: f32[2, 5, 3] = Linear()(n, w, c)
            s: f32[2, 1, 4] = Slice(starts=(0,), ends=(1,), axes=(1,), steps=(1,))(n)
            q: f32[2, 4] = Squeeze(axes=(1,))(s)
            v: f32[4, 2] = Const('v')
            d: f32[2] = Const('d')
            z: f32[2, 2] = Linear()(q, v, d)
            return y, z
        """,
        """
        def main(x: f32[2, 5, 4]):
            n: f32[2, 5, 4] = LayerNorm(axis=-1, eps=1e-05)(x)
            w: f32[4, 3] = Const('W')
            c: f32[3] = Const('C')
            y: f32[2, 5, 3] = Linear()(n, w, c)
            s: f32[2, 1, 4] = Slice(starts=(0,), ends=(1,), axes=(1,), steps=(1,))(n)
            q: f32[2, 4] = Squeeze(axes=(1,))(s)
            v: f32[4, 2] = Const('V')
            d: f32[2] = Const('D')
            z: f32[2, 2] = Linear()(q, v, d)
            return y, z
        """,
        constants={**constants, **{name: array.astype(np.float32) for name, array in folded.items()}},
    )


NORM = """
    def main(x: f32[2, 5, 4]):
        g: f32[4] = Const('g')
        b: f32[4] = Const('b')
        n: f32[2, 5, 4] = LayerNorm(axis=-1, eps=1e-05)(x, g, b)
        w: f32[4, 4] = Const('w')
        c: f32[4] = Const('c')
"""


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (
            "y: f32[2, 5, 4] = Linear()(n, w, c)\n        z: f32[2, 5, 4] = Add()(n, y)\n        return z",
            "Add reads it",
        ),
        ("y: f32[2, 5, 4] = Linear()(n, w, c)\n        return y, n", "output of the model"),
        ("y: f32[2, 5, 4] = Linear()(n, w)\n        return y", "without bias"),
        (
            "y: f32[2, 5, 4] = Linear()(n, w, c)\n        z: f32[2, 5, 4] = Linear()(x, w, c)\n        return y, z",
            "shared with",
        ),
        (
            "t: f32[2, 4, 5] = Transpose(perm=(0, 2, 1))(n)\n        k: f32[3, 4, 3] = Const('k')\n"
            "        y: f32[2, 3, 5] = Conv(strides=(1,), pads=(1, 1), dilations=(1,), group=1)(t, k)\n"
            "        return y",
            "pads with zeros",
        ),
    ],
)
def test_norms_that_must_stay_say_why(rest: str, reason: str):
    check_unchanged(
        FoldNorms(), NORM + "        " + rest, reason, constants=weights(g=(4,), b=(4,), w=(4, 4), c=(4,), k=(3, 4, 3))
    )


def test_unified_norm_vanishes_into_three_readers():
    constants = weights(a=(4,), d=(4,), w=(4, 2), v=(4, 3), c=(3,), u=(4, 4))
    graph = read(
        """
        def main(x: f32[2, 5, 4]):
            a: f32[4] = Const('a')
            d: f32[4] = Const('d')
            m: f32[2, 5, 4] = Mul()(x, a)
            n: f32[2, 5, 4] = Add()(m, d)
            w: f32[4, 2] = Const('w')
            p: f32[2, 5, 2] = Linear()(n, w)
            v: f32[4, 3] = Const('v')
            c: f32[3] = Const('c')
            q: f32[2, 5, 3] = Linear()(n, v, c)
            u: f32[4, 4] = Const('u')
            r: f32[2, 5, 4] = Linear()(n, u)
            return p, q, r
        """,
        constants,
    )
    _same_without(graph, (ops.Mul, ops.Add))


def test_rep_batch_norm_between_transposes_vanishes():
    constants = weights(g=(4,), b=(4,), m=(4,), w=(4, 2), v=(4, 3)) | {"s": np.full(4, 0.7, np.float32)}
    graph = read(
        """
        def main(x: f32[2, 5, 4]):
            g: f32[4] = Const('g')
            b: f32[4] = Const('b')
            m: f32[4] = Const('m')
            s: f32[4] = Const('s')
            t: f32[2, 4, 5] = Transpose(perm=(0, 2, 1))(x)
            n: f32[2, 4, 5] = BatchNorm(eps=1e-05)(t, g, b, m, s)
            eta: f32[1] = Const(f32, [1.25])
            i: f32[2, 4, 5] = Mul()(t, eta)
            o: f32[2, 4, 5] = Add()(n, i)
            back: f32[2, 5, 4] = Transpose(perm=(0, 2, 1))(o)
            w: f32[4, 2] = Const('w')
            p: f32[2, 5, 2] = Linear()(back, w)
            v: f32[4, 3] = Const('v')
            q: f32[2, 5, 3] = Linear()(back, v)
            return p, q
        """,
        constants,
    )
    _same_without(graph, (ops.BatchNorm, ops.Mul, ops.Add))


def test_rep_batch_norm_that_is_also_a_residual_becomes_one_product_and_one_sum():
    constants = weights(g=(4,), b=(4,), m=(4,)) | {"s": np.full(4, 0.7, np.float32)}
    graph = read(
        """
        def main(t: f32[2, 4, 5]):
            g: f32[4] = Const('g')
            b: f32[4] = Const('b')
            m: f32[4] = Const('m')
            s: f32[4] = Const('s')
            n: f32[2, 4, 5] = BatchNorm(eps=1e-05)(t, g, b, m, s)
            eta: f32[1] = Const(f32, [1.25])
            i: f32[2, 4, 5] = Mul()(t, eta)
            o: f32[2, 4, 5] = Add()(n, i)
            y: f32[2, 4, 5] = Relu()(o)
            return y
        """,
        constants,
    )
    _same_without(graph, (ops.BatchNorm,))
    assert len(graph.nodes(ops.Mul)) == 1
    assert len(graph.nodes(ops.Add)) == 1


def test_layer_norms_of_one_tensor_with_other_parameters_become_one():
    from planish.passes.cleanup.share_common_values import ShareCommonValues

    constants = weights(g=(4,), h=(4,), w=(4, 2), v=(4, 3))
    graph = read(
        """
        def main(x: f32[2, 5, 4]):
            g: f32[4] = Const('g')
            n: f32[2, 5, 4] = LayerNorm(axis=-1, eps=1e-05)(x, g)
            h: f32[4] = Const('h')
            m: f32[2, 5, 4] = LayerNorm(axis=-1, eps=1e-05)(x, h)
            w: f32[4, 2] = Const('w')
            p: f32[2, 5, 2] = Linear()(n, w)
            v: f32[4, 3] = Const('v')
            q: f32[2, 5, 3] = Linear()(m, v)
            return p, q
        """,
        constants,
    )
    FoldNorms().run(graph, Context())
    ShareCommonValues().run(graph, Context())
    assert len(graph.nodes(ops.LayerNorm)) == 1


STREAM = """
    def main(ids: i64[2, 5], e: f32[2, 5, 4]):
        table: f32[7, 4] = Const('t')
        r: f32[2, 5, 4] = Gather(axis=0)(table, ids)
        pos: f32[1, 5, 4] = Const('p')
        x: f32[2, 5, 4] = Add()(r, pos)
        n: f32[2, 5, 4] = LayerNorm(axis=-1, eps=1e-05)(x)
        w: f32[4, 4] = Const('w')
        c: f32[4] = Const('c')
        y: f32[2, 5, 4] = Linear()(n, w, c)
        z: f32[2, 5, 4] = Add()(x, y)
        m: f32[2, 5, 4] = LayerNorm(axis=-1, eps=1e-06)(z)
"""


def test_centred_writers_make_rms_norms_of_layer_norms():
    graph = read(STREAM + "        return m", weights(t=(7, 4), p=(1, 5, 4), w=(4, 4), c=(4,)))
    _same_without(graph, (ops.LayerNorm,), FoldNorms(centre=True))
    assert [node.op.eps for node in graph.nodes(ops.RMSNorm)] == [1e-5, 1e-6]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("return m, z", "Return"),
        ("u: f32[2, 5, 4] = Gelu(approximate='none')(z)\n        return m, u", "Gelu"),
        (
            "u: f32[2, 5, 4] = Add()(z, e)\n        o: f32[2, 5, 4] = LayerNorm(axis=-1)(u)\n        return m, o",
            "input",
        ),
        (
            "u: f32[2, 5, 4] = Add()(z, m)\n        o: f32[2, 5, 4] = LayerNorm(axis=-1)(u)\n        return o",
            "LayerNorm",
        ),
    ],
)
def test_streams_that_others_read_or_write_stay(rest: str, reason: str):
    text = STREAM + "        " + rest
    check_unchanged(FoldNorms(centre=True), text, reason, constants=weights(t=(7, 4), p=(1, 5, 4), w=(4, 4), c=(4,)))


@settings(max_examples=40, deadline=None)
@given(
    readers=st.integers(1, 3),
    outside=st.booleans(),
    biased=st.booleans(),
    beta=st.booleans(),
    kind=st.sampled_from(["layer", "rms", "affine"]),
    seed=st.integers(0, 99),
)
def test_any_fan_out_computes_the_same(readers: int, outside: bool, biased: bool, beta: bool, kind: str, seed: int):
    rng = np.random.default_rng(seed)
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, (2, 3, 6)))

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    if kind == "layer":
        n = ops.LayerNorm()(x, array(6), array(6) if beta else None)
    elif kind == "rms":
        n = ops.RMSNorm()(x, array(6))
    else:
        n = ops.Add()(ops.Mul()(x, array(6)), array(6))
    outputs = [ops.Linear()(n, array(6, 4), array(4) if biased else None) for _ in range(readers)]
    outputs += [ops.Relu()(n)] if outside else []
    for value in outputs:
        graph.attach(value, None, ops_loc())
    graph.add(ops.Return(tuple(f"y{i}" for i in range(len(outputs)))), *outputs)
    feed = {"x": array(2, 3, 6)}
    before = list(interpret(graph, feed).values())
    changes = FoldNorms().run(graph, Context())
    verify(graph)
    assert bool(changes) == (not outside and (biased or kind != "layer" or not beta))
    for old, new in zip(before, interpret(graph, feed).values(), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)


def ops_loc():
    from planish.ir.loc import Loc

    return Loc(("made",))


def _same_without(graph: Graph, gone: tuple[type, ...], step: FoldNorms = FoldNorms()) -> None:
    """The pass removes all ops of the given kinds, and outputs stay the same."""
    rng = np.random.default_rng(1)
    feed = {
        v.hint: rng.integers(0, 5, v.tensor.dims)
        if v.tensor.dtype.is_integer
        else rng.standard_normal(v.tensor.dims).astype(np.float32)
        for v in graph.inputs
    }
    before = list(interpret(graph, feed).values())
    step.run(graph, Context())
    verify(graph)
    assert not graph.nodes(*gone)
    for old, new in zip(before, interpret(graph, feed).values(), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)


def test_long_chains_of_sums_are_looked_at_briefly():
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, (2, 3, 6)))
    for _ in range(400):
        x = graph.add(ops.Add(), x, x, loc=ops_loc()).result
    graph.add(ops.Return(("y",)), x)
    assert not FoldNorms().run(graph, Context())
