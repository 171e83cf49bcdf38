"""The pass: what it rewrites as text, its schedules, the latency knob, and searches along curves with a fake clock."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import Model, Shape
from rewriting import assert_same_text, read

from planish.ir import ops
from planish.ir.errors import CalibrationError, GateError, UsageError
from planish.ir.graph import Graph
from planish.ir.text import print_graph
from planish.passes.base import Context
from planish.passes.pipelines import parse_pipeline, recipe
from planish.passes.tokens import CompressTokens
from planish.passes.tokens.encoder import find_encoder
from planish.passes.tokens.latency import Latency
from planish.passes.tokens.methods import Choice
from planish.passes.tokens.profile import Profile, profile
from planish.passes.tokens.report import CompressReport
from planish.passes.tokens.schedule import by_counts, removed_by, staged

BEFORE = """
def main(x: f32[2, 9, 4]):
    h: f32[2, 1, 9, 4] = Unsqueeze(axes=(1,))(x)
    a: f32[2, 1, 9, 4] = Attention(scale=0.5)(h, h, h)
    t: f32[2, 9, 4] = Squeeze(axes=(1,))(a)
    cut: f32[2, 9, 4] = Add()(x, t)
    mlp: f32[2, 9, 4] = Relu()(cut)
    end: f32[2, 9, 4] = Add()(cut, mlp)
    y: f32[2, 9, 4] = Neg()(end)
    return y
"""

MERGED = """
def main(x: f32[2, 9, 4]):
    h: f32[2, 1, 9, 4] = Unsqueeze(axes=(1,))(x)
    a: f32[2, 1, 9, 4] = Attention(scale=0.5)(h, h, h)
    t: f32[2, 9, 4] = Squeeze(axes=(1,))(a)
    cut: f32[2, 9, 4] = Add()(x, t)
    keep, source, into = MatchTokens(merged=3, protected=0)(h)
    merged, total = MergeTokens()(cut, keep, source, into)
    mlp: f32[2, 6, 4] = Relu()(merged)
    end: f32[2, 6, 4] = Add()(merged, mlp)
    negated: f32[2, 6, 4] = Neg()(end)
    place: i64[2, 9] = PlaceTokens()(keep, source, into)
    y: f32[2, 9, 4] = TakeTokens()(negated, place)
    return y
"""

ELIMINATED = """
def main(x: f32[2, 9, 4]):
    h: f32[2, 1, 9, 4] = Unsqueeze(axes=(1,))(x)
    a: f32[2, 1, 9, 4] = Attention(scale=0.5)(h, h, h)
    t: f32[2, 9, 4] = Squeeze(axes=(1,))(a)
    cut: f32[2, 9, 4] = Add()(x, t)
    scale: f32[()] = Const(f32, 0.5)
    scaled: f32[2, 1, 9, 4] = Mul()(h, scale)
    keys: f32[2, 1, 4, 9] = Transpose(perm=(0, 1, 3, 2))(h)
    scores: f32[2, 1, 9, 9] = MatMul()(scaled, keys)
    weights: f32[2, 1, 9, 9] = Softmax(axis=-1)(scores)
    got: f32[2, 9] = ReduceMean(axes=(-3, -2), keepdims=False)(weights)
    keep, rest = TopTokens(count=6, protected=0)(got)
    left: f32[2, 6, 4] = TakeTokens()(cut, keep)
    mlp: f32[2, 6, 4] = Relu()(left)
    end: f32[2, 6, 4] = Add()(left, mlp)
    waiting: f32[2, 3, 4] = TakeTokens()(cut, rest)
    joined: f32[2, 9, 4] = Concat(axis=1)(end, waiting)
    zero: i64[()] = Const(i64, 0)
    none: i64[2, 3] = Mul()(rest, zero)
    last: i64[3] = Const(i64, [6, 7, 8])
    places: i64[2, 3] = Add()(none, last)
    place: i64[2, 9] = PlaceTokens()(keep, rest, places)
    all: f32[2, 9, 4] = TakeTokens()(joined, place)
    y: f32[2, 9, 4] = Neg()(all)
    return y
"""


@pytest.mark.parametrize(("method", "after"), [("merge", MERGED), ("eliminate", ELIMINATED)])
def test_the_rewrite_as_text(method, after):
    graph = read(BEFORE)
    changes = CompressTokens(method=method, schedule=(3,)).run(graph, Context())
    assert sum(changes.rewrites.values()) == 1
    assert_same_text(graph, read(after))
    assert [v.tensor.dims for v in graph.outputs] == [(2, 9, 4)]
    assert all("compress-tokens" in n.loc.via for n in graph.nodes(ops.MatchTokens, ops.TopTokens, ops.TakeTokens))


def test_no_tokens_gone_is_no_change():
    graph = read(BEFORE)
    before = print_graph(graph)
    assert not CompressTokens(method="merge", schedule=0).run(graph, Context())
    assert print_graph(graph) == before


@pytest.mark.parametrize(
    ("schedule", "method", "expected"),
    [
        (4, "merge", (4, 4, 0)),
        (40, "merge", (12, 6, 0)),
        (40, "eliminate", (20, 0, 0)),
        ("linear:3", "merge", (6, 0, 0)),
        ((2, 0, 3), "merge", (2, 0, 3)),
        ((1, 0, 3), "fuse", (0, 0, 3)),
        (0.5, "eliminate", (12, 8, 0)),
        (0.5, "route", (12, 12, 0)),
    ],
)
def test_schedules(schedule, method, expected):
    encoder = find_encoder(Model(Shape(tokens=25)).graph())
    assert removed_by(schedule, encoder, method) == expected


def test_a_dense_head_makes_the_last_block_count():
    encoder = find_encoder(Model(Shape(tokens=25, head="dense")).graph())
    assert removed_by(4, encoder, "merge") == (4, 4, 4)


@pytest.mark.parametrize("schedule", [(1, 2), (1, -1, 0), "square:3", "linear:x", 1.5, 0.0])
def test_what_is_no_schedule(schedule):
    encoder = find_encoder(Model(Shape(tokens=25)).graph())
    with pytest.raises(UsageError):
        removed_by(schedule, encoder, "eliminate")


def test_options_that_do_not_exist():
    for options in ({"method": "melt"}, {"signal": "noise"}):
        with pytest.raises(UsageError, match="there is no"):
            CompressTokens(**options).run(read(BEFORE), Context())


def test_the_pass_prints_and_parses():
    text = "compress-tokens{method='merge', schedule=(60, 0, 40), target_speedup=1.5}"
    assert str(parse_pipeline(text)) == text
    names = [step.name for step in recipe("compress+integer").leaves()]
    assert names.index("compress-tokens") < names.index("hoist-slices") < names.index("integerize")


def samples(model: Model, count: int = 24) -> list[dict[str, np.ndarray]]:
    return [model.feed(2, seed) for seed in range(count)]


def test_the_latency_knob_is_monotone_and_zero_keeps_all():
    model = Model(Shape(tokens=33, blocks=4))
    found = profile(model.graph(), samples(model, 4), Context())
    encoder = find_encoder(model.graph())
    assert all(0 < share <= 1 for share in found.measured)
    assert list(found.fitted) == sorted(found.fitted, reverse=True)
    assert found.counts(0, encoder) == [33] * 4
    counts = [sum(found.counts(alpha, encoder)) for alpha in (0, 0.5, 1, 2, 4)]
    assert counts == sorted(counts, reverse=True)
    assert by_counts([20, 24, 18, 18], encoder, "eliminate") == (13, 0, 2, 0)


def test_one_profile_for_each_knob_shares_the_weights():
    model = Model(Shape(tokens=33, blocks=4))
    context = Context(calibration=samples(model))
    digests, left = [], []
    for alpha in (1.0, 2.0):
        graph = model.graph()
        CompressTokens(method="eliminate", latency=alpha).run(graph, context)
        digests.append([n.operands[1].op.data.digest for n in graph.nodes(ops.Linear)])
        left.append(context.reports[-1].counts[-1])
    assert digests[0] == digests[1]
    assert left[0] > left[1]


def test_the_profile_is_the_effective_number_of_tokens():
    assert Profile((0.5,), (0.5,)).counts(1.0, find_encoder(Model(Shape(tokens=33)).graph())) == [16]


def test_latency_is_fitted_to_what_was_measured():
    encoder = find_encoder(Model(Shape(tokens=25, head="dense")).graph())
    choices = [Choice("merge", removed) for removed in ((0, 0, 0), (8, 0, 0), (4, 4, 4), (0, 9, 0), (2, 2, 8))]
    tokens = [choice.tokens_by_block(25) for choice in choices]

    def truth(blocks: list[tuple[int, int]]) -> float:
        cuts = sum(a != b for a, b in blocks)
        return 5 + sum(a / 3 + 2 * b / 3 + 0.01 * a * a for a, b in blocks) + 0.5 * cuts

    latency = Latency.fitted(encoder, [(blocks, truth(blocks)) for blocks in tokens])
    unseen = Choice("merge", (6, 3, 0)).tokens_by_block(25)
    assert latency.of(encoder, unseen) == pytest.approx(truth(unseen), rel=1e-3)
    assert latency.speed(encoder, tokens[0]) == pytest.approx(1, rel=1e-3)


def clock(graphs: list[Graph]) -> list[float]:
    """Seconds by the rows that linear layers compute, and a little for each choice."""
    found = []
    for graph in graphs:
        rows = sum(
            node.inputs[0].tensor.dims[1] for node in graph.nodes(ops.Linear) if len(node.result.tensor.dims) == 3
        )
        found.append(float(rows + 2 * len(graph.nodes(ops.MatchTokens, ops.TopTokens))))
    return found


def searched(model: Model, **options: object) -> CompressReport:
    context = Context(calibration=samples(model), clock=clock)
    CompressTokens(**options).run(model.graph(), context)  # type: ignore[arg-type]
    (report,) = context.reports
    assert isinstance(report, CompressReport)
    return report


def test_a_search_keeps_its_error_budget_and_is_as_fast_as_that_allows():
    model = Model(Shape(tokens=33, blocks=4))
    report = searched(model, method="merge", max_nmse=0.05)
    points = report.curves["merge"]
    assert len(points) >= 8
    assert report.result in points
    assert report.result.chosen.nmse <= 0.05
    assert report.result.reported.nmse <= 0.05
    allowed = [p for p in points if p.chosen.nmse <= 0.05 and p.reported.nmse <= 0.05]
    assert report.result.speed == max(p.speed for p in allowed) > 1
    assert all(p.measured for p in points)
    again = searched(model, method="merge", max_nmse=0.05)
    assert again.choice == report.choice  # the same samples and times give the same choice


def test_a_speed_target_takes_the_least_error_that_is_as_fast():
    model = Model(Shape(tokens=33, blocks=4))
    report = searched(model, method="merge", target_speedup=1.3)
    points = report.curves["merge"]
    assert report.result.speed >= 1.3
    assert report.result.chosen.nmse == min(p.chosen.nmse for p in points if p.speed >= 1.3)


def test_a_speed_that_can_not_be_reached_misses_the_gate():
    model = Model(Shape(tokens=33, blocks=4))
    with pytest.raises(GateError, match="times"):
        searched(model, method="merge", target_speedup=9.0)


def test_all_methods_are_compared_and_what_is_illegal_is_named():
    model = Model(Shape(tokens=33, blocks=4, prefix=0, masked=True, head="mean"))
    report = searched(model, method="all", max_nmse=0.1)
    assert set(report.refused) == {"merge", "fuse"}
    assert all(reason.startswith("T5") for reason in report.refused.values())
    assert set(report.curves) == {"eliminate", "route"}
    assert all(len(points) >= 5 for points in report.curves.values())


def test_a_search_needs_samples():
    with pytest.raises(CalibrationError, match="samples"):
        CompressTokens().run(Model(Shape()).graph(), Context())


def test_stages_of_routing_start_from_all_tokens():
    encoder = find_encoder(Model(Shape(tokens=25, blocks=8, head="dense")).graph())
    removed = staged(0.5, encoder, "route")
    assert [i for i, r in enumerate(removed) if r] == [2, 4, 6]
    assert Choice("route", removed).tokens_by_block(25)[4][0] == 25
