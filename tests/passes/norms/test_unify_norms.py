"""unify-norms: maps are least squares, sets are disjoint, budgets hold, and the graph computes what was promised."""

from __future__ import annotations

import numpy as np
import pytest

from planish.ir import dtypes, ops
from planish.ir.errors import CalibrationError, UsageError
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.types import TensorType
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.calibration.collect import numpy_taps
from planish.passes.judging import three_sets
from planish.passes.norms import UnifyNorms
from planish.passes.norms.converting import Conversion, convert, converted, norms_of, vanishes
from planish.passes.norms.fit import Fit
from planish.passes.norms.unify_report import UnifyReport
from planish.passes.raising.weights import Affine

WIDTH = 8


def stack(blocks: int = 4, post: bool = False, seed: int = 0) -> Graph:
    """A residual stack of norms and linears, pre-norm or post-norm, on x[2, 5, 8]."""
    rng = np.random.default_rng(seed)
    graph = Graph()
    x: Value = graph.add_input("x", TensorType(dtypes.f32, (2, 5, WIDTH)))

    def array(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(WIDTH)).astype(np.float32)

    for _ in range(blocks):
        read = x if post else ops.LayerNorm()(x)
        y = ops.Add()(x, ops.Linear()(ops.Gelu()(ops.Linear()(read, array(WIDTH, 16), array(16))), array(16, WIDTH)))
        x = ops.LayerNorm()(y, array(WIDTH) + 1, array(WIDTH)) if post else y
    y = ops.Linear()(x, array(WIDTH, 3), array(3))
    graph.attach(y, None, Loc(("made",)))
    for i, node in enumerate(graph):
        node.loc = Loc((f"node{i}",))
    graph.add(ops.Return(("y",)), y)
    return graph


def feeds(count: int, seed: int = 1, spread: float = 0.1) -> list[dict[str, np.ndarray]]:
    """Samples whose tokens deviate alike, up to `spread`."""
    rng = np.random.default_rng(seed)
    offset = np.random.default_rng(0).standard_normal(WIDTH) * 2
    scale = np.exp(rng.normal(0, spread, (count, 2, 5, 1)))
    x = (scale * (offset + rng.standard_normal((count, 2, 5, WIDTH)))).astype(np.float32)
    return [{"x": sample} for sample in x]


def context(count: int = 64, **options: object) -> Context:
    return Context(calibration=feeds(count), **options)  # type: ignore[arg-type]


def test_fits_are_least_squares():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4)) + 3
    y = x @ rng.standard_normal((4, 4)) + rng.standard_normal(4)
    fit = Fit(4)
    for part in np.array_split(np.arange(500), 7):
        fit.add(x[part], y[part])
    full, diagonal = fit.full(), fit.diagonal()
    assert fit.error(full) < 2e-3
    errors = ((y - (x * diagonal.factor + diagonal.shift)) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    assert fit.error(diagonal) == pytest.approx(errors)
    for nudge in (0.01, -0.01):
        assert fit.error(Affine(diagonal.factor + nudge, diagonal.shift)) > fit.error(diagonal)


def test_least_squares_err_far_less_than_moments():
    graph, data = stack(1), feeds(64)
    (norm,) = norms_of(graph)
    fit, run = Fit(WIDTH), numpy_taps(graph, [norm.inputs[0], norm.result])
    second, count = np.zeros(WIDTH), 0
    for feed in data:
        x, y = run(feed)
        fit.add(x, y)
        second, count = second + (x.astype(np.float64) ** 2).sum(axis=(0, 1)), count + x.shape[0] * x.shape[1]
    moments = Affine(1 / np.sqrt(second / count), np.zeros(WIDTH))
    assert fit.error(fit.diagonal()) < 0.5 * fit.error(moments)
    assert fit.error(fit.full()) < fit.error(fit.diagonal())


def test_pre_norms_vanish_and_post_norms_leave_a_product_and_a_sum():
    rng = np.random.default_rng(3)
    for post in (False, True):
        graph = stack(2, post)
        first = norms_of(graph)[0]
        matrix, shift = rng.standard_normal((WIDTH, WIDTH)), rng.standard_normal(WIDTH)
        diagonal = Affine(rng.standard_normal(WIDTH), shift)
        assert vanishes(first) is not post
        copy, _ = converted(graph, {0: Conversion("diagonal", diagonal, diagonal)}, "test")
        verify(copy)
        x = first.inputs[0]
        plain = ops.Add()(ops.Mul()(x, diagonal.factor.astype(np.float32)), shift.astype(np.float32))
        graph.attach(plain, first, first.loc)
        graph.replace(first.result, plain)
        feed = feeds(1)[0]
        (want,), (got,) = interpret(graph, feed).values(), interpret(copy, feed).values()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        assert len(copy.nodes(ops.Mul)) == int(post)
        full = Conversion("full", Affine(matrix, shift), diagonal)
        mixed, _ = converted(stack(2, post), {0: full}, "test")
        verify(mixed)


def test_as_many_norms_as_the_budget_allows():
    counts = {}
    for bar in (0.0, 0.003, 0.5):
        graph, made = stack(), context()
        UnifyNorms(max_nmse=bar, anchor_every=0).run(graph, made)
        verify(graph)
        (report,) = made.reports
        assert isinstance(report, UnifyReport)
        counts[bar] = sum(norm.state != "kept" for norm in report.norms)
        assert len(norms_of(graph)) == 4 - counts[bar]
        assert report.reported.nmse <= bar
        sets = three_sets(context())
        errors = [
            (np.mean((a - b) ** 2), b)
            for feed in sets.report.feeds
            for a, b in zip(interpret(graph, feed).values(), interpret(stack(), feed).values(), strict=True)
        ]
        outputs = np.concatenate([b for _, b in errors])
        measured = np.mean([e for e, _ in errors]) / np.mean((outputs - outputs.mean(axis=0)) ** 2)
        assert report.reported.nmse == pytest.approx(measured, rel=1e-3, abs=1e-9)
    assert counts[0.0] == 0
    assert counts[0.5] == 4
    assert 0 <= counts[0.003] <= 4


def test_one_of_every_few_norms_stays_as_an_anchor():
    graph, made = stack(5), context()
    changes = UnifyNorms(max_nmse=10.0, anchor_every=3).run(graph, made)
    kept = [norm.state == "kept" for norm in made.reports[0].norms]  # type: ignore[attr-defined]
    assert all(any(kept[i : i + 3]) for i in range(len(kept) - 2))
    assert any("in a row that stays" in reason for _, reason in changes.skipped)


def test_tokens_that_deviate_wildly_are_warned_of_and_kept():
    data = feeds(64, spread=1.2)
    made = Context(calibration=data)
    graph = stack(1)
    UnifyNorms(max_nmse=0.01).run(graph, made)
    (finding,) = made.reports[0].norms  # type: ignore[attr-defined]
    assert finding.deviations.variation > 0.5
    assert finding.deviations.warning()
    assert finding.state == "kept"


@pytest.mark.parametrize(("max_drop", "left"), [(-1.0, 4), (1e9, 0)])
def test_the_metric_is_a_budget_too(max_drop: float, left: int):
    made = context(metric=lambda outputs, labels: float(outputs["y"].std()))
    graph = stack()
    UnifyNorms(max_drop=max_drop, max_nmse=0.0, anchor_every=0).run(graph, made)
    assert len(norms_of(graph)) == left


def test_a_sample_in_two_sets_is_refused():
    data = feeds(8)
    with pytest.raises(CalibrationError, match="a sample is in the set to"):
        three_sets(Context(calibration=data, evaluation=data[:1]))
    with pytest.raises(CalibrationError, match="can't be cut"):
        three_sets(Context(calibration=data[:2]))
    sets = three_sets(Context(calibration=data))
    assert [len(s.feeds) for s in (sets.fit, sets.rank, sets.report)] == [4, 2, 2]


def test_of_many_samples_a_few_thousand_are_judged_on():
    data = [{"x": np.arange(1024 * i, 1024 * (i + 1), dtype=np.float32)[:, None]} for i in range(20)]
    sets = three_sets(Context(calibration=data))
    assert [len(s.feeds) for s in (sets.fit, sets.rank, sets.report)] == [16, 2, 2]
    sets = three_sets(Context(calibration=data[1:], evaluation=data[:1]))
    assert [len(s.feeds) for s in (sets.fit, sets.rank, sets.report)] == [17, 2, 1]


def test_trained_weights_end_up_in_the_graph():
    trained = {}

    def recover(student, teacher, trainable, pairs, feeds, held_out):
        assert trainable
        assert all(mine.tensor.dims == other.tensor.dims for mine, other in pairs)
        node = trainable[0]
        made = student.add(ops_const(np.full(node.inputs[1].tensor.dims, 0.125, np.float32)), before=node).result
        student.set_operand(node, 1, made)
        trained["node"] = node
        return "trained"

    graph, made = stack(), context(recover=recover)
    UnifyNorms(max_nmse=1e9).run(graph, made)
    assert made.reports[0].recovery == "trained"  # type: ignore[attr-defined]
    assert not norms_of(graph)
    weights = [node.inputs[1].op.data.numpy() for node in graph.nodes(ops.Linear)]  # type: ignore[union-attr]
    assert any((w == 0.125).all() for w in weights)


def test_unknown_variants_are_usage_errors():
    with pytest.raises(UsageError, match="diagonal"):
        UnifyNorms(variant="cubic").run(stack(), context())


def test_same_samples_same_graph():
    from planish.ir.text import print_graph

    texts = []
    for _ in range(2):
        graph = stack()
        UnifyNorms(max_nmse=0.1).run(graph, context())
        texts.append(print_graph(graph))
    assert texts[0] == texts[1]


def ops_const(array: np.ndarray):
    from planish.ir.data import Data
    from planish.ir.op import Const

    return Const(Data(array))


def test_convert_needs_no_order():
    graph = stack(2, post=True)
    rng = np.random.default_rng(5)
    plan = {
        i: Conversion("full", Affine(rng.standard_normal((WIDTH, WIDTH)), rng.standard_normal(WIDTH)), Affine(
            rng.standard_normal(WIDTH), rng.standard_normal(WIDTH)))
        for i in range(2)
    }  # fmt: skip
    feed = feeds(1)[0]
    results = []
    for order in ((0, 1), (1, 0)):
        copy, _ = graph.clone()
        nodes = norms_of(copy)
        for number in order:
            convert(copy, nodes[number], plan[number], "test")
        results.append(next(iter(interpret(copy, feed).values())))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
