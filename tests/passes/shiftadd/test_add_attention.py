"""add-attention: signed sums with fitted factors, trained against the original, or nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import assert_same_text, check_unchanged, read

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.types import TensorType
from planish.ir.verify import verify
from planish.passes.base import Context, Pipeline
from planish.passes.cleanup import CLEANUP
from planish.passes.integer import Integerize
from planish.passes.observers import VerifyEach
from planish.passes.shiftadd.add_attention import AddAttention, AddAttentionReport, convert, fitted

HEADS, WIDTH, TOKENS = 2, 8, 6
RNG = np.random.default_rng(11)


def plain(*_: object) -> object:
    """Trains nothing."""
    return None


def encoder(blocks: int = 2, seed: int = 0, batch: int | str = "n") -> Graph:
    """Pre-norm blocks of attention and a residual sum on x[n, 6, 8], and a linear layer on the mean of tokens."""
    rng = np.random.default_rng(seed)
    graph = Graph()
    x: Value = graph.add_input("x", TensorType(dtypes.f32, (batch, TOKENS, WIDTH)))

    def linear(x: Value, columns: int) -> Value:
        w = (rng.standard_normal((WIDTH, columns)) / np.sqrt(WIDTH)).astype(np.float32)
        return ops.Linear()(x, w, rng.standard_normal(columns).astype(np.float32) / 4)

    def heads(x: Value) -> Value:
        return ops.Transpose((0, 2, 1, 3))(ops.Reshape((0, TOKENS, HEADS, WIDTH // HEADS))(linear(x, WIDTH)))

    for _ in range(blocks):
        h = ops.LayerNorm()(x)
        y = ops.Attention(0.5)(heads(h), heads(h), heads(h))
        y = ops.Reshape((0, TOKENS, WIDTH))(ops.Transpose((0, 2, 1, 3))(y))
        x = ops.Add()(x, linear(y, WIDTH))
    y = linear(ops.ReduceMean((-2,), False)(ops.LayerNorm()(x)), 3)
    graph.attach(y, None, Loc(("made",)))
    graph.add(ops.Return(("y",)), y)
    return graph


def feeds(count: int = 32, rows: int = 4, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, TOKENS, WIDTH)).astype(np.float32)} for _ in range(count)]


def context(**options: object) -> Context:
    return Context(**{"calibration": feeds(), "observers": (VerifyEach(),), **options})  # type: ignore[arg-type]


TEXT = """
    def g(q: f32[n, 2, 5, 4], k: f32[n, 2, 7, 4], v: f32[n, 2, 7, 3]):
        y: f32[n, 2, 5, 3] = Attention(scale=0.5, causal=False)(q, k, v)
        return {'y': y}
"""
AFTER = """
    def g(q: f32[n, 2, 5, 4], k: f32[n, 2, 7, 4], v: f32[n, 2, 7, 3]):
        keys = Binarize(zero=1)(k)
        turned = Transpose(perm=(0, 1, 3, 2))(keys)
        memory = AddMatMul()(turned, v)
        queries = Binarize(zero=1)(q)
        sums = AddMatMul()(queries, memory)
        alpha = Const(f32, ALPHA)
        scaled = Mul()(sums, alpha)
        total = ReduceSum(axes=(-2,), keepdims=True)(v)
        beta = Const(f32, BETA)
        mean = Mul()(total, beta)
        y = Add()(scaled, mean)
        return {'y': y}
"""


def of_attention(count: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    shapes = {"q": (3, 2, 5, 4), "k": (3, 2, 7, 4), "v": (3, 2, 7, 3)}
    return [{name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()} for _ in range(count)]


def reference(feed: dict[str, np.ndarray], alpha: float, beta: float) -> np.ndarray:
    """Row by row, with numbers added and subtracted one at a time."""
    q, k, v = (feed[name].astype(np.float64) for name in "qkv")
    y = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h, i in np.ndindex(*q.shape[:3]):
        for j in range(k.shape[2]):
            agreeing = sum(1 if (a >= 0) == (c >= 0) else -1 for a, c in zip(q[b, h, i], k[b, h, j], strict=True))
            y[b, h, i] += (alpha * agreeing + beta) * v[b, h, j]
    return y


def test_attention_becomes_signed_sums():
    graph = read(TEXT)
    made = Context(calibration=of_attention(), recover=plain)
    # there is nothing to train here, and random queries and keys attend to nothing: any error is allowed
    changes = AddAttention(max_nmse=9.0).run(graph, made)
    verify(graph)
    (report,) = made.reports
    assert isinstance(report, AddAttentionReport)
    (factors,) = report.attentions
    alpha, beta = (float(np.float32(factor)) for factor in (factors.alpha, factors.beta))
    assert_same_text(graph, read(AFTER.replace("ALPHA", repr(alpha)).replace("BETA", repr(beta))))
    assert dict(changes.rewrites) == {"add-attention": 1}
    feed = of_attention(1)[0]
    np.testing.assert_allclose(interpret(graph, feed)["y"], reference(feed, alpha, beta), rtol=1e-4, atol=1e-5)
    assert not AddAttention(max_nmse=9.0).run(graph, made)


def test_without_training_attention_stays():
    check_unchanged(AddAttention(), TEXT, "it needs training: --recover", context=Context(calibration=of_attention()))


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (TEXT.replace("causal=False", "causal=True"), "it is causal"),
        (TEXT.replace("(q, k, v)", "(q, k, v, m)").replace("3]):", "3], m: f32[5, 7]):"), "it has a mask"),
        (TEXT.replace("k: f32[n, 2,", "k: f32[n, 1,").replace("v: f32[n, 2,", "v: f32[n, 1,"), "its heads are grouped"),
    ],
)
def test_other_attention_stays(before, reason):
    check_unchanged(AddAttention(), before, reason, context=Context(calibration=of_attention(), recover=plain))


def test_factors_are_least_squares():
    graph = read(TEXT)
    data = of_attention()
    (found,) = fitted(graph, [0], data, Context())

    def error(alpha: float, beta: float) -> float:
        y = [interpret(graph, feed)["y"] for feed in data]
        signal = sum(np.var(array.astype(np.float64)) for array in y)
        apart = [np.mean((reference(f, alpha, beta) - array) ** 2) for f, array in zip(data, y, strict=True)]
        return float(sum(apart) / signal)

    least = error(found.alpha, found.beta)
    assert found.nmse == pytest.approx(least, rel=1e-5)
    for alpha, beta in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)):
        assert error(found.alpha * alpha, found.beta * beta) > least


def test_too_large_an_error_leaves_the_graph_alone():
    graph, made = encoder(), context(recover=plain)
    changes = AddAttention(max_nmse=1e-6).run(graph, made)
    assert not changes
    assert len(graph.nodes(ops.Attention)) == 2
    assert all("more than allowed" in reason for _, reason in changes.skipped)
    assert not made.reports


@pytest.mark.parametrize(("drop", "left"), [(-1e9, 2), (1e9, 0)])
def test_the_metric_is_a_budget_too(drop, left):
    made = context(recover=plain, metric=lambda outputs, labels: float(outputs["y"].std()))
    graph = encoder()
    AddAttention(max_nmse=0.0, max_drop=drop).run(graph, made)
    assert len(graph.nodes(ops.Attention)) == left


def test_fuel_limits_how_many_are_replaced():
    from planish.passes.rewrite import Fuel

    graph = encoder()
    AddAttention(max_nmse=9.0).run(graph, context(recover=plain, fuel=Fuel(1)))
    assert len(graph.nodes(ops.Attention)) == 1


def test_all_linear_layers_are_trained_where_norms_read_and_end_up_in_the_graph():
    seen: dict[str, object] = {}

    def recover(student: Graph, teacher: Graph, trainable: list[Node], pairs: list, feeds: list, held_out: list):
        seen.update(student=student, count=len(trainable), pairs=pairs, feeds=feeds, held_out=held_out)
        assert not student.nodes(ops.Attention)
        assert len(teacher.nodes(ops.Attention)) == 2
        node = trainable[-1]
        student.set_operand(
            node, 1, student.add(ops.Const(Data(np.full((WIDTH, 3), 0.125, np.float32))), before=node).result
        )
        return "trained"

    graph, made = encoder(), context(recover=recover)
    AddAttention(max_nmse=1e9).run(graph, made)
    verify(graph)
    assert seen["count"] == len(graph.nodes(ops.Linear)) == 9
    norms = graph.nodes(ops.LayerNorm)
    assert len(seen["pairs"]) == len(norms) - 1  # the first norm reads the input itself
    assert len(seen["feeds"]) + len(seen["held_out"]) == 24  # a quarter of them is reported on
    assert made.reports[0].recovery == "trained"
    last = graph.nodes(ops.Linear)[-1]
    assert (last.inputs[1].op.data.numpy() == 0.125).all()


@pytest.mark.torch
def test_training_brings_the_outputs_back():
    pytest.importorskip("torch")
    from planish.tools.recovery.recover import Recovery, recover

    found: list[Recovery] = []

    def train(student: Graph, teacher: Graph, trainable: list, pairs: list, feeds: list, held_out: list) -> Recovery:
        found.append(recover(student, teacher, trainable, pairs, feeds, held_out=held_out, steps=200, threads=1))
        return found[0]

    graph, made = encoder(), context(recover=train)
    AddAttention(max_nmse=1.0).run(graph, made)
    assert not graph.nodes(ops.Attention)
    assert found[0].after < 0.7 * found[0].before
    assert made.reports[0].reported.nmse < found[0].before
    # signs have a gradient: what stands before them was trained too
    queries = graph.nodes(ops.Binarize)[0].inputs[0].node.inputs[0].node.inputs[0].node
    original = encoder().nodes(ops.Linear)
    assert not any(np.array_equal(queries.inputs[1].op.data.numpy(), n.inputs[1].op.data.numpy()) for n in original)


def integer_graph() -> Graph:
    graph = encoder(1)
    convert(graph, [0], fitted(graph, [0], feeds(), Context()))
    made = Context(calibration=feeds(), observers=(VerifyEach(),))
    Pipeline(Integerize(strict=True), *(kind() for kind in CLEANUP)).run(graph, made)
    return graph


def test_signed_sums_become_integers_and_ort_has_the_same():
    from planish.backends.ort.taps import taps

    graph = integer_graph()
    assert len(graph.nodes(ops.IntAddMatMul)) == 2
    assert not graph.nodes(ops.AddMatMul, ops.Binarize, ops.MatMul, ops.IntMatMul, ops.IntMul)
    feed = feeds(1, seed=5)[0]
    floating = encoder(1)
    convert(floating, [0], fitted(floating, [0], feeds(), Context()))
    true, got = interpret(floating, feed)["y"], interpret(graph, feed)["y"]
    assert np.mean((got - true) ** 2) < 0.01 * np.var(true)
    values = [node.result for node in graph.nodes(ops.IntAddMatMul)]
    wanted: dict[Value, np.ndarray] = {}
    interpret(graph, feed, taps=lambda value, array: wanted.__setitem__(value, array))
    for value, array in zip(values, taps(graph, values)(feed), strict=True):
        np.testing.assert_array_equal(array, wanted[value])


def test_compiled_signed_sums_have_the_same_integers():
    pytest.importorskip("tvm")
    from planish.passes.integer import IntegerBoundary
    from tests.backends.tvm.running import assert_exact

    graph = integer_graph()
    IntegerBoundary().run(graph, Context())
    (value,) = graph.inputs
    bound, _ = graph.clone(binding={"n": 3})
    codes = np.random.default_rng(3).integers(value.tensor.dtype.min, value.tensor.dtype.max, (3, TOKENS, WIDTH))
    assert_exact(bound, {value.hint: codes.astype(value.tensor.dtype.storage)})
