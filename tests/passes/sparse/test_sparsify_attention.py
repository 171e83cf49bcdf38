"""sparsify-attention: heads look at what samples gave weight to, within the budget; others say why not."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import check_rewrite, check_unchanged

from planish.ir import ops
from planish.ir.attention_patterns import Pattern
from planish.ir.errors import CalibrationError
from planish.ir.interpret import interpret
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.integer import Integerize
from planish.passes.rewrite import Fuel
from planish.passes.sparse.attention_costs import costs_of
from planish.passes.sparse.attention_heads import observe, ranges
from planish.passes.sparse.sparsify_attention import SparseAttentionReport, SparsifyAttention
from planish.tools.bench.models.long_encoder import LongEncoder

STEP = SparsifyAttention(least=64)
BEFORE = """
def main(q: f32[1, 4, 256, 16], k: f32[1, 4, 256, 16], v: f32[1, 4, 256, 6]):
    y: f32[1, 4, 256, 6] = Attention(scale=0.25, causal=False)(q, k, v)
    return y
"""
AFTER = """
def main(q: f32[1, 4, 256, 16], k: f32[1, 4, 256, 16], v: f32[1, 4, 256, 6]):
    y: f32[1, 4, 256, 6] = SparseAttention(scale=0.25, heads=('window 0 blocks 32', 'stripe 16:32,208:224', \
'window 0 blocks 32 period 16', 'dense'), causal=False)(q, k, v)
    return y
"""


def sample(seed: int) -> dict[str, np.ndarray]:
    """Heads look at their segment of 32, at some positions, at two phases of a period of 16, and at all positions."""
    rng, n = np.random.default_rng(seed), np.arange(256)
    q, k = 0.1 * rng.standard_normal((2, 1, 4, 256, 16))
    for head, key in ((0, n // 32), (2, n % 16 // 2)):
        for x in (q, k):
            x[0, head, n, key] += 8
    q[0, 1, :, 0] += 8
    k[0, 1, np.r_[16:32, 208:224], 0] += 8
    return {
        name: x.astype(np.float32) for name, x in zip("qkv", (q, k, rng.standard_normal((1, 4, 256, 6))), strict=True)
    }


def samples(count: int = 4, first: int = 0) -> list[dict[str, np.ndarray]]:
    return [sample(first + i) for i in range(count)]


def model(causal: bool = False) -> LongEncoder:
    return LongEncoder(tokens=256, head=32, mlp=1, reach=3.0, period=16, causal=causal)


def test_heads_get_the_patterns_that_they_show():
    context = Context(calibration=samples())
    changes = check_rewrite(STEP, BEFORE, AFTER, feeds=sample(9), context=context)
    assert dict(changes.rewrites) == {"sparsify-attention": 1}
    report = context.reports[0]
    assert isinstance(report, SparseAttentionReport)
    assert report.reported.nmse < 1e-6
    assert [point.taken for point in report.curve].count(True) == 1


@pytest.mark.parametrize(
    ("text", "because"),
    [
        (BEFORE.replace("6]):", "6], m: f32[256, 256]):").replace("k, v)", "k, v, m)"), "it has a mask"),
        (BEFORE.replace("256", "n"), "fix them with --shape"),
        (BEFORE.replace("k: f32[1, 4, 256", "k: f32[1, 4, 128").replace("v: f32[1, 4, 256", "v: f32[1, 4, 128"),
         "256 queries aren't those of its 128 keys"),
        (BEFORE.replace("256", "48"), "48 positions are too few"),
    ],
)  # fmt: skip
def test_other_attentions_stay_and_say_why(text, because):
    check_unchanged(STEP, text, because, context=Context(calibration=samples()))


def test_all_keys_stay_where_the_budget_needs_them():
    context = Context(calibration=samples())
    check_unchanged(
        SparsifyAttention(max_nmse=0.0, least=64), BEFORE, "no cheaper choice of keys fits", context=context
    )
    assert context.reports == []


def test_too_few_samples_are_an_error():
    with pytest.raises(CalibrationError):
        STEP.run(model().graph(), Context(calibration=model().feeds(2)))


@pytest.mark.parametrize("causal", [False, True])
def test_an_encoder_computes_about_the_same_on_other_inputs(causal):
    encoder = model(causal)
    graph = encoder.graph()
    original, _ = graph.clone()
    context = Context(calibration=encoder.feeds(4))
    changes = STEP.run(graph, context)
    verify(graph)
    assert changes.count == 2
    assert graph.nodes(ops.Attention) == []
    (report,) = context.reports
    first = report.attentions[0].heads
    assert first[:2] == ("window 32 blocks 32",) * 2
    assert causal or first[2:] == ("stripe 0:16,64:80,128:144,192:208", "window 0 blocks 32 period 16")
    for feed in encoder.feeds(3, seed=9):
        wanted, found = interpret(original, feed)["y"], interpret(graph, feed)["y"]
        assert 0 < np.linalg.norm(found - wanted) < 1e-2 * np.linalg.norm(wanted)


def test_fuel_counts_attentions():
    encoder = model()
    graph, fuel = encoder.graph(), Fuel(1)
    assert STEP.run(graph, Context(calibration=encoder.feeds(4), fuel=fuel)).count == 1
    assert len(graph.nodes(ops.Attention)) == len(graph.nodes(ops.SparseAttention)) == 1
    assert fuel.left == 0


def test_integers_leave_it_an_island():
    encoder = model()
    graph, context = encoder.graph(), Context(calibration=encoder.feeds(4))
    STEP.run(graph, context)
    changes = Integerize().run(graph, context)
    assert len(graph.nodes(ops.SparseAttention)) == 2
    assert sum("SparseAttention has no integer form" in reason for _, reason in changes.skipped) == 2


def test_errors_are_those_of_what_the_next_layer_makes_of_the_head():
    encoder = model()
    graph = encoder.graph()
    node = graph.nodes(ops.Attention)[0]
    feeds, context = encoder.feeds(1), Context(seed=3)
    seen = observe(graph, node, feeds, context)
    patterns = (Pattern(0, (), 32), Pattern(), Pattern(), Pattern(skipped=True))
    mean = seen.heads[3].mean[None]
    rows = seen.heads[0].rows
    assert rows.tolist() == list(range(256))
    reader = node.result.users[0].result.users[0].result.users[0]
    taps: dict[object, np.ndarray] = {}
    interpret(graph, feeds[0], taps=lambda value, array: taps.__setitem__(value, array))
    arrays = [taps[value] for value in node.inputs]
    weights = reader.inputs[1].op.data.numpy().astype(np.float64)
    for head in (0, 3):
        chosen = tuple(str(p) if i == head else "dense" for i, p in enumerate(patterns))
        y = ops.SparseAttention(node.op.scale, chosen).evaluate(*arrays, *([mean] if head == 3 else []))
        off = (y.astype(np.float64) - taps[node.result]).swapaxes(1, 2).reshape(256, -1) @ weights
        assert seen.heads[head].error(patterns[head]) == pytest.approx(np.sum(off**2), rel=1e-3)


def test_ranges_join_neighbouring_groups():
    assert ranges(np.array([0, 0, 5, 1, 9, 0, 0, 0, 0, 7.0]), 0.6, 2) == ((2, 6), (8, 10))


@pytest.mark.parametrize("target", ["ort-cpu", "tvm-cpu"])
@pytest.mark.parametrize("causal", [False, True])
def test_fewer_keys_never_cost_more(target, causal):
    costs = costs_of(target)
    windows = [costs.of(Pattern(step * 64, (), 64), 2048, causal) for step in (0, 1, 2, 4, 8)]
    assert windows == sorted(windows)
    assert 0 < windows[0] < windows[-1] <= 1
    assert costs.of(Pattern(skipped=True), 2048, causal) == 0
    assert costs.of(Pattern(), 2048, causal) == 1
