"""drop-zero-channels: what is constant or never read vanishes from every layer it goes through, and nothing else."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rewriting import check_rewrite, check_unchanged, random_feeds, read
from zoo.inputs import seeded_inputs

from planish.backends.ort.evaluate import evaluate_opaque
from planish.ir import ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.op import Const, constant
from planish.ir.sparsity import pattern
from planish.ir.types import Quant
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.exactness import ROUNDING
from planish.passes.integer import Integerize
from planish.passes.observers import difference
from planish.passes.rewrite import Fuel
from planish.passes.sparse.drop_zero_channels import DropZeroChannels
from planish.tools.compiling import optimize

ZOO = sorted((Path(__file__).parents[2] / "zoo").glob("*.onnx"))
RNG = np.random.default_rng(3)


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def without(array: np.ndarray, axis: int, *places: int) -> np.ndarray:
    """A copy with zeros at some places of an axis."""
    copy = array.copy()
    np.moveaxis(copy, axis, 0)[list(places)] = 0
    return copy


def deleted(array: np.ndarray, axis: int, *places: int) -> np.ndarray:
    return np.delete(array, list(places), axis=axis)


MLP = """
def main(x: f32[n, 3]):
    w: f32[3, {h}] = Const('w')
    b: f32[{h}] = Const('b')
    y: f32[n, {h}] = Linear()(x, w, b)
    g: f32[n, {h}] = Gelu(approximate='none')(y)
    s: f32[{h}] = Const('s')
    a: f32[n, {h}] = Add()(g, s)
    v: f32[{h}, 2] = Const('v')
    c: f32[2] = Const('c')
    r: f32[n, 2] = Linear()(a, v, c)
    return r
"""


def test_units_of_an_mlp_that_are_constant_or_never_read():
    w, b, s, v, c = without(f32(3, 6), 1, 1), f32(6), f32(6), without(f32(6, 2), 0, 4), f32(2)
    unit = ops.Gelu().evaluate(b[1:2])[0] + s[1]
    bias = (c.astype(np.float64) + np.float64(unit) * v[1].astype(np.float64)).astype(np.float32)
    after = {name: deleted(a, axis, 1, 4) for name, a, axis in (("w", w, 1), ("b", b, 0), ("s", s, 0), ("v", v, 0))}
    changes = check_rewrite(
        DropZeroChannels(),
        renamed(MLP.format(h=6)),
        MLP.format(h=4),
        constants={"w0": w, "b0": b, "s0": s, "v0": v, "c0": c, **after, "c": bias},
    )
    assert dict(changes.rewrites) == {"channels": 2}


def renamed(text: str) -> str:
    """The text with constants of other names, so that one table can hold those before and those after."""
    return re.sub(r"Const\('(\w+)'\)", r"Const('\g<1>0')", text)


CONVOLUTIONS = """
def main(x: f32[2, 3, 5, 5]):
    w: f32[{c}, 3, 1, 1] = Const('w')
    y: f32[2, {c}, 5, 5] = Conv(strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)(x, w)
    v: f32[{c}] = Const('v')
    s: f32[{c}] = Const('s')
    n: f32[2, {c}, 5, 5] = BatchNorm(eps=1e-05)(y, v, s, s, v)
    r: f32[2, {c}, 5, 5] = Relu()(n)
    d: f32[{c}, 1, 3, 3] = Const('d')
    e: f32[{c}] = Const('e')
    p: f32[2, {c}, 5, 5] = Conv(strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group={c})(r, d, e)
    z: f32[4, {c}, 1, 1] = Const('z')
    q: f32[2, 4, 5, 5] = Conv(strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)(p, z)
    return q
"""


def test_channels_of_convolutions_by_channel_and_batch_norms():
    w, v, s = f32(8, 3, 1, 1), np.abs(f32(8)) + 1, f32(8)
    d, e, z = without(f32(8, 1, 3, 3), 0, 2), f32(8), without(f32(4, 8, 1, 1), 1, 5)
    e[2] = 0  # whatever comes in, channel 2 is 0 behind the second convolution; nobody reads channel 5
    cut = {name: deleted(a, axis, 2, 5) for name, a, axis in
           (("w", w, 0), ("v", v, 0), ("s", s, 0), ("d", d, 0), ("e", e, 0), ("z", z, 1))}  # fmt: skip
    before = renamed(CONVOLUTIONS.format(c=8))
    whole = {"w0": w, "v0": v, "s0": s, "d0": d, "e0": e, "z0": z}
    check_rewrite(DropZeroChannels(), before, CONVOLUTIONS.format(c=6), constants={**whole, **cut})


def test_a_constant_channel_that_a_padded_convolution_reads_stays():
    text = CONVOLUTIONS.format(c=8)
    constants = {"w": without(f32(8, 3, 1, 1), 0, 2), "v": np.abs(f32(8)) + 1, "s": f32(8), "d": f32(8, 1, 3, 3),
                 "e": f32(8), "z": f32(4, 8, 1, 1)}  # fmt: skip
    constants["s"][2] = -9.0  # relu gives a positive constant: near the border, zeros stand beside it
    check_unchanged(DropZeroChannels(), text, constants=constants)
    graph = read(text, {**constants, "s": without(constants["s"], 0, 2)})
    assert DropZeroChannels().run(graph, Context()).count == 1


ATTENTION = """
def main(x: f32[2, 5, 8]):
    wq: f32[8, {q}] = Const('wq')
    yq: f32[2, 5, {q}] = Linear()(x, wq)
    rq: f32[2, 5, {h}, 4] = Reshape(shape=(2, 5, {h}, 4))(yq)
    tq: f32[2, {h}, 5, 4] = Transpose(perm=(0, 2, 1, 3))(rq)
    wk: f32[8, {k}] = Const('wk')
    yk: f32[2, 5, {k}] = Linear()(x, wk)
    rk: f32[2, 5, {s}, 4] = Reshape(shape=(2, 5, {s}, 4))(yk)
    tk: f32[2, {s}, 5, 4] = Transpose(perm=(0, 2, 1, 3))(rk)
    wv: f32[8, {k}] = Const('wv')
    bv: f32[{k}] = Const('bv')
    yv: f32[2, 5, {k}] = Linear()(x, wv, bv)
    rv: f32[2, 5, {s}, 4] = Reshape(shape=(2, 5, {s}, 4))(yv)
    tv: f32[2, {s}, 5, 4] = Transpose(perm=(0, 2, 1, 3))(rv)
    m: f32[{h}, 5, 5] = Const('m')
    a: f32[2, {h}, 5, 4] = Attention(scale=0.5, causal=False)(tq, tk, tv, m)
    ta: f32[2, 5, {h}, 4] = Transpose(perm=(0, 2, 1, 3))(a)
    ra: f32[2, 5, {q}] = Reshape(shape=(2, 5, {q}))(ta)
    wo: f32[{q}, 6] = Const('wo')
    bo: f32[6] = Const('bo')
    y: f32[2, 5, 6] = Linear()(ra, wo, bo)
    return y
"""


def attention(heads: int, shared: int) -> tuple[str, dict[str, np.ndarray]]:
    """The text, with constants of names that end in 0, and those."""
    q, k = 4 * heads, 4 * shared
    shapes = {"wq": (8, q), "wk": (8, k), "wv": (8, k), "bv": (k,), "m": (heads, 5, 5), "wo": (q, 6), "bo": (6,)}
    return renamed(ATTENTION.format(q=q, k=k, h=heads, s=shared)), {
        f"{name}0": f32(*shape) for name, shape in shapes.items()
    }


def test_heads_whose_results_nobody_reads_or_whose_values_are_constant():
    text, whole = attention(4, 4)
    whole["wo0"] = without(whole["wo0"], 0, 4, 5, 6, 7)  # head 1 isn't read
    whole["wv0"] = without(whole["wv0"], 1, 8, 9, 10, 11)  # head 2 gives its bias
    gone = range(4, 12)
    cut = {name: deleted(whole[f"{name}0"], 1, *gone) for name in ("wq", "wk", "wv")}
    cut |= {"bv": deleted(whole["bv0"], 0, *gone), "wo": deleted(whole["wo0"], 0, *gone)}
    cut |= {"m": deleted(whole["m0"], 0, 1, 2)}
    wide = whole["bo0"].astype(np.float64) + whole["bv0"][8:12].astype(np.float64) @ whole["wo0"][8:12]
    cut["bo"] = wide.astype(np.float32)
    after = ATTENTION.format(q=8, k=8, h=2, s=2)
    changes = check_rewrite(DropZeroChannels(), text, after, constants={**whole, **cut})
    assert dict(changes.rewrites) == {"heads": 2}


def test_heads_that_share_keys_vanish_only_together():
    text, whole = attention(4, 2)
    whole["wo0"] = without(whole["wo0"], 0, *range(4))
    check_unchanged(DropZeroChannels(), text, constants=whole)  # its neighbour needs the keys
    whole["wo0"] = without(whole["wo0"], 0, *range(8))
    cut = {"wq": whole["wq0"][:, 8:], "wk": whole["wk0"][:, 4:], "wv": whole["wv0"][:, 4:], "bv": whole["bv0"][4:],
           "m": whole["m0"][2:], "wo": whole["wo0"][8:], "bo": whole["bo0"]}  # fmt: skip
    check_rewrite(DropZeroChannels(), text, ATTENTION.format(q=8, k=4, h=2, s=1), constants={**whole, **cut})


def test_a_residual_stream_is_left_alone_with_a_reason():
    text = """
        def main(x: f32[2, 4]):
            w: f32[4, 4] = Const('w')
            y: f32[2, 4] = Linear()(x, w)
            a: f32[2, 4] = Add()(x, y)
            n: f32[2, 4] = LayerNorm(axis=-1, eps=1e-06)(a)
            return n
        """
    check_unchanged(DropZeroChannels(), text, "LayerNorm mixes them", constants={"w": without(f32(4, 4), 1, 2)})


@pytest.mark.parametrize("extent", ["n", 5])
def test_a_sum_over_an_unknown_extent_is_no_constant(extent) -> None:
    text = f"""
        def main(x: f32[2, {extent}, 3]):
            w: f32[3, 4] = Const('w')
            b: f32[4] = Const('b')
            y: f32[2, {extent}, 4] = Linear()(x, w, b)
            s: f32[2, 4] = ReduceSum(axes=(-2,), keepdims=False)(y)
            v: f32[4, 2] = Const('v')
            r: f32[2, 2] = Linear()(s, v)
            return r
        """
    graph = read(text, {"w": without(f32(3, 4), 1, 2), "b": f32(4), "v": f32(4, 2)})
    feed = random_feeds(graph, {"n": 5})
    expected = interpret(graph, feed)["r"]
    assert DropZeroChannels().run(graph, Context()).count == (extent == 5)
    np.testing.assert_allclose(interpret(graph, feed)["r"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extent", ["n", 7])
def test_what_padding_makes_of_a_constant_depends_on_the_extent(extent) -> None:
    plain, padded = (f"strides=(1, 1), pads=({p}, {p}, {p}, {p}), dilations=(1, 1)" for p in (0, 1))
    text = f"""
        def main(x: f32[1, 3, {extent}, {extent}]):
            w: f32[4, 3, 1, 1] = Const('w')
            b: f32[4] = Const('b')
            y: f32[1, 4, {extent}, {extent}] = Conv({plain}, group=1)(x, w, b)
            d: f32[4, 1, 3, 3] = Const('d')
            p: f32[1, 4, {extent}, {extent}] = Conv({padded}, group=4)(y, d)
            z: f32[2, 4, 1, 1] = Const('z')
            q: f32[1, 2, {extent}, {extent}] = Conv({plain}, group=1)(p, z)
            return q
        """
    constants = {"w": without(f32(4, 3, 1, 1), 0, 2), "b": f32(4), "d": f32(4, 1, 3, 3), "z": f32(2, 4, 1, 1)}
    check_unchanged(DropZeroChannels(), text, constants=constants)
    graph = read(text, {**constants, "d": without(constants["d"], 0, 1)})
    assert DropZeroChannels().run(graph, Context()).count == 1


def test_one_unit_stays_where_none_is_needed():
    w, v = np.zeros((3, 6), np.float32), f32(6, 2)
    constants = {"w": w, "b": f32(6), "s": f32(6), "v": v, "c": f32(2)}
    graph = read(MLP.format(h=6), constants)
    feed = random_feeds(graph)
    expected = interpret(graph, feed)["r"]
    assert DropZeroChannels().run(graph, Context()).count == 5
    verify(graph)
    np.testing.assert_allclose(interpret(graph, feed)["r"], expected, rtol=1e-5, atol=1e-5)
    assert not DropZeroChannels().run(graph, Context())


def test_a_gate_that_is_zero_takes_what_it_gates_with_it():
    text = """
        def main(x: f32[2, 4]):
            w: f32[4, {h}] = Const('w{o}')
            u: f32[4, {h}] = Const('u{o}')
            y: f32[2, {h}] = Linear()(x, w)
            z: f32[2, {h}] = Linear()(x, u)
            g: f32[2, {h}] = Swish(alpha=1.0)(y)
            p: f32[2, {h}] = Mul()(g, z)
            v: f32[{h}, 3] = Const('v{o}')
            r: f32[2, 3] = Linear()(p, v)
            return r
        """
    w, u, v = without(f32(4, 5), 1, 3), f32(4, 5), f32(5, 3)
    cut = {"w": deleted(w, 1, 3), "u": deleted(u, 1, 3), "v": deleted(v, 0, 3)}
    constants = {"w0": w, "u0": u, "v0": v, **cut}
    check_rewrite(DropZeroChannels(), text.format(h=5, o=0), text.format(h=4, o=""), constants=constants)


def test_the_structure_of_zeros_in_a_type_follows_the_weights_where_it_still_fits():
    w = Data(without(f32(8, 8), 1, 0, 1, 2, 3), None, pattern("ob4", density=0.5))
    v = Data(without(f32(8, 4), 0, 4), None, pattern("unstructured", density=0.9))
    text = """
        def main(x: f32[2, 8]):
            w: sparse(f32, 'block', (4,), axis=1, density=0.5)[8, 8] = Const('w')
            y: f32[2, 8] = Linear()(x, w)
            v: sparse(f32, 'unstructured', (), axis=None, density=0.9)[8, 4] = Const('v')
            r: f32[2, 4] = Linear()(y, v)
            return r
        """
    graph = read(text, {"w": w, "v": v})
    assert DropZeroChannels().run(graph, Context()).count == 5
    verify(graph)
    assert [node.inputs[1].tensor.sparsity for node in graph.nodes(ops.Linear)] == [
        pattern("ob4"),
        pattern("unstructured"),
    ]


def test_linear_layers_on_codes_with_real_results():
    """They have a real bias, and codes with a zero point that isn't 0."""
    w = Data(without(np.arange(-8, 7).astype(np.int8).reshape(3, 5), 1, 2), Quant((0.5,) * 5, 0, 1))
    v = Data(np.arange(-5, 5).astype(np.int8).reshape(5, 2), Quant((0.25, 2.0), 0, 1))
    text = """
        def main(x: f32[2, 3]):
            q: q(i8, 0.5, 1)[2, 3] = Quantize(scale=0.5, zero=1, to=i8)(x)
            w: q(i8, scales(5, '{d}'), 0, axis=1)[3, 5] = Const('w')
            b: f32[5] = Const('b')
            y: f32[2, 5] = IntLinearDequantize()(q, w, b)
            p: q(i8, 0.5, 3)[2, 5] = Quantize(scale=0.5, zero=3, to=i8)(y)
            v: q(i8, (0.25, 2.0), 0, axis=1)[5, 2] = Const('v')
            r: f32[2, 2] = IntLinearDequantize()(p, v)
            return r
        """
    shown = str(w.type).split("'")[1]
    graph = read(text.replace("{d}", shown), {"w": w, "v": v, "b": f32(5) + 4})
    feed = random_feeds(graph)
    expected = interpret(graph, feed)["r"]
    assert DropZeroChannels().run(graph, Context()).count == 1
    verify(graph)
    assert graph.nodes(ops.IntLinearDequantize)[1].inputs[0].tensor.dims == (2, 4)
    np.testing.assert_allclose(interpret(graph, feed)["r"], expected, rtol=1e-5, atol=1e-5)


def test_fuel_stops_it():
    graph = read(
        MLP.format(h=6), {"w": f32(3, 6), "b": f32(6), "s": f32(6), "v": without(f32(6, 2), 0, 1), "c": f32(2)}
    )
    assert not DropZeroChannels().run(graph, Context(fuel=Fuel(0)))
    assert DropZeroChannels().run(graph, Context(fuel=Fuel(1))).count == 1


@functools.cache
def prepared(path: Path) -> tuple[Graph, dict[str, np.ndarray]]:
    return optimize(path, "default"), seeded_inputs(onnx.load(path))


def zero_channels(graph: Graph, rng: np.random.Generator) -> None:
    """Zero some columns and rows of layers, one by one or 16 at a time."""
    for node in graph.nodes(ops.Linear, ops.Conv):
        data = constant(node.operands[1])
        if data is None:
            continue
        w, width = data.numpy().copy(), int(rng.choice([1, 16]))
        for axis in range(2):
            if rng.random() < 0.5:
                gone = np.repeat(rng.random(-(-w.shape[axis] // width)) < 0.4, width)[: w.shape[axis]]
                np.moveaxis(w, axis, 0)[gone] = 0
        graph.set_operand(node, 1, graph.add(Const(Data(w)), loc=node.loc, before=node).result)
    graph.erase_dead()


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_models_of_the_zoo_compute_the_same(path: Path, seed: int) -> None:
    graph, feed = prepared(path)
    graph = graph.clone()[0]
    zero_channels(graph, np.random.default_rng(seed))
    expected = interpret(graph, feed, opaque=evaluate_opaque)
    DropZeroChannels().run(graph, Context())
    verify(graph)
    found = interpret(graph, feed, opaque=evaluate_opaque)
    for name, old in expected.items():
        assert difference(old, found[name], ROUNDING) == ""
    assert not DropZeroChannels().run(graph, Context())


@pytest.mark.parametrize(("name", "kinds"), [("vit_ts17", {"channels", "heads"}), ("mobile_ts14", {"channels"})])
def test_integers_stay_bit_for_bit(name: str, kinds: set[str]) -> None:
    graph, feed = prepared(next(path for path in ZOO if path.stem == name))
    found: set[str] = set()
    for seed in range(6):
        whole = graph.clone()[0]
        zero_channels(whole, np.random.default_rng(seed))
        Integerize().run(whole, Context(calibration=[feed]))
        expected = interpret(whole, feed, opaque=evaluate_opaque)
        found |= {kind for kind, count in DropZeroChannels().run(whole, Context()).rewrites.items() if count > 0}
        verify(whole)
        for key, new in interpret(whole, feed, opaque=evaluate_opaque).items():
            np.testing.assert_array_equal(new, expected[key])
    assert found == kinds
