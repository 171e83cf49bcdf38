"""mix-experts: each token goes through the expert that its margin says, and comes back to its place."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import assert_same_text, read

from planish.backends.ort.taps import taps
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.errors import UsageError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.types import Quant, TensorType
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.shiftadd.mix_experts import MixExperts, Routing, capacity, coded_weight, route_experts, share_of

TOKENS, WIDTH, COLUMNS = 7, 6, 5
RNG = np.random.default_rng(4)
W = RNG.standard_normal((WIDTH, COLUMNS)).astype(np.float32)
B = RNG.standard_normal(COLUMNS).astype(np.float32)


def layer(bias: bool = True, tokens: int | str = TOKENS) -> Graph:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(dtypes.f32, ("n", tokens, WIDTH)))
    y = ops.Linear()(x, W, *([B] if bias else []))
    graph.attach(y, None, Loc(("layer",)))
    graph.add(ops.Return(("y",)), y)
    return graph


def routing(count: int = 3, codebook: str = "apot4") -> Routing:
    return Routing(RNG.standard_normal(WIDTH).astype(np.float32), 0.25, count, coded_weight(W, codebook))


def reference(x: np.ndarray, made: Routing, bias: bool) -> np.ndarray:
    """Token by token: the greatest margins by products, the others by codes times scales."""
    quant = made.codes.type.quant
    shifted = made.codes.numpy().astype(np.float64) * quant.scales
    y = np.empty((*x.shape[:2], COLUMNS))
    for sample, rows in enumerate(x):
        margins = [float(row @ made.weight + np.float32(made.bias)) for row in rows]
        first = sorted(range(len(rows)), key=lambda i: (-margins[i], i))[: made.count]
        for i, row in enumerate(rows):
            y[sample, i] = row @ (W if i in first else shifted) + (B if bias else 0)
    return y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("codebook", ["apot4", "pot4"])
def test_each_token_goes_through_its_expert(count, bias, codebook):
    graph, made = layer(bias), routing(count, codebook)
    route_experts(graph, graph.nodes(ops.Linear)[0], made)
    verify(graph)
    x = RNG.standard_normal((4, TOKENS, WIDTH)).astype(np.float32)
    wanted = reference(x, made, bias)
    np.testing.assert_allclose(interpret(graph, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-5)
    (found,) = taps(graph, list(graph.outputs))({"x": x})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_tokens_of_the_greatest_margins_are_multiplied_on_ort():
    graph, made = layer(), routing(2)
    route_experts(graph, graph.nodes(ops.Linear)[0], made)
    (choice,) = graph.nodes(ops.TopTokens)
    x = RNG.standard_normal((3, TOKENS, WIDTH)).astype(np.float32)
    multiplied, shifted = taps(graph, list(choice.results))({"x": x})
    margins = x @ made.weight
    for sample in range(3):
        assert set(multiplied[sample]) == set(np.argsort(-margins[sample])[:2])
        assert sorted([*multiplied[sample], *shifted[sample]]) == list(range(TOKENS))


def test_the_text_before_and_after():
    before = """
        def g(x: f32[n, 3, 2]):
            w: f32[2, 1] = Const('w')
            y: f32[n, 3, 1] = Linear()(x, w)
            return {'y': y}
    """
    after = """
        def g(x: f32[n, 3, 2]):
            r: f32[2, 1] = Const('r')
            c: f32[1] = Const(f32, [0.5])
            margin = Linear()(x, r, c)
            score = Reshape(shape=(0, 3))(margin)
            multiplied, shifted = TopTokens(count=1, protected=0)(score)
            first = TakeTokens()(x, multiplied)
            w: f32[2, 1] = Const('w')
            products = Linear()(first, w)
            second = TakeTokens()(x, shifted)
            codes = Const('codes')
            sums = ShiftLinear()(second, codes)
            both = Concat(axis=1)(products, sums)
            none = Sub()(shifted, shifted)
            behind: i64[1, 2] = Const(i64, [[1, 2]])
            into = Add()(none, behind)
            place = PlaceTokens()(multiplied, shifted, into)
            y = TakeTokens()(both, place)
            return {'y': y}
    """
    w, r = np.array([[1.0], [2.0]], np.float32), np.array([[3.0], [4.0]], np.float32)
    codes = Data(np.array([[1], [2]], np.int8), Quant((1.0,), 0, 1, "apot4"))
    graph = read(before, {"w": w})
    route_experts(graph, graph.nodes(ops.Linear)[0], Routing(r[:, 0], 0.5, 1, codes))
    verify(graph)
    type_ = "q(i8, (1.0,), 0, axis=1, codebook='apot4')[2, 1]"
    assert_same_text(
        graph, read(after.replace("codes = Const", f"codes: {type_} = Const"), {"w": w, "r": r, "codes": codes})
    )


def feeds(count: int = 16, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Tokens of very different sizes, marked in their first channel: the large ones err most."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        x = rng.standard_normal((4, TOKENS, WIDTH)) * 0.1
        large = rng.random((4, TOKENS)) < 0.4
        x[large] *= 20
        x[..., 0] = np.where(large, 3.0, -3.0) + 0.1 * x[..., 0]
        made.append({"x": x.astype(np.float32)})
    return made


def test_tokens_that_err_most_are_multiplied():
    graph = layer()
    changes = MixExperts(share=0.5).run(graph, Context(calibration=feeds()))
    verify(graph)
    assert dict(changes.rewrites) == {"mix-experts": 1}
    assert graph.nodes(ops.TopTokens)[0].op.count == capacity(TOKENS, 0.5)
    wrong = {"mixed": 0.0, "shifted": 0.0}
    everything = layer()
    codes = coded_weight(W, "apot4")
    for feed in feeds(4, seed=9):
        true = interpret(everything, feed)["y"]
        wrong["mixed"] += float(np.sum((interpret(graph, feed)["y"] - true) ** 2))
        wrong["shifted"] += float(np.sum((feed["x"] @ (codes.numpy() * codes.type.quant.scales - W)) ** 2))
    assert wrong["mixed"] < 0.5 * wrong["shifted"]


def test_a_router_that_does_not_beat_chance_changes_nothing():
    rng = np.random.default_rng(0)
    same = [{"x": rng.standard_normal((4, TOKENS, WIDTH)).astype(np.float32)} for _ in range(16)]
    changes = MixExperts(share=0.5, gain=0.5).run(graph := layer(), Context(calibration=same))
    assert not changes
    assert "of the error that chance does" in changes.skipped[0][1]
    assert len(graph.nodes(ops.Linear)) == 1


@pytest.mark.parametrize("seconds", [(1.0, 1.0), (3.0, 1.0), (1.0, 6.0)])
def test_measured_latencies_fix_how_many_tokens_each_expert_gets(seconds):
    seen = []

    def clock(graphs):
        seen.extend(graphs)
        return list(seconds)

    graph = layer()
    MixExperts().run(graph, Context(calibration=feeds(), clock=clock))
    multiply, shift = seen
    assert [node.op.name for node in multiply if node.op.name.endswith("Linear")] == ["Linear"]
    assert [node.op.name for node in shift if node.op.name.endswith("Linear")] == ["ShiftLinear"]
    share = share_of(seconds)
    assert share * seconds[0] == pytest.approx((1 - share) * seconds[1])
    assert graph.nodes(ops.TopTokens)[0].op.count == capacity(TOKENS, share)


def test_at_least_one_token_of_each_kind():
    assert capacity(10, 1e-9) == 1
    assert capacity(10, 1 - 1e-9) == 9


@pytest.mark.parametrize(
    ("graph", "options", "reason"),
    [
        (layer(tokens="t"), {"share": 0.5}, "number of its tokens isn't known"),
        (layer(tokens=1), {"share": 0.5}, "number of its tokens isn't known"),
        (layer(), {}, "nothing can measure its experts"),
    ],
)
def test_what_cannot_be_shared_out_is_skipped(graph, options, reason):
    changes = MixExperts(**options).run(graph, Context(calibration=feeds()))
    assert not changes
    assert reason in changes.skipped[0][1]


@pytest.mark.parametrize(
    ("options", "message"), [({"codebook": "apot9"}, "no codebook"), ({"share": 1.0}, "leaves an expert idle")]
)
def test_bad_options_are_usage_errors(options, message):
    with pytest.raises(UsageError, match=message):
        MixExperts(**options).run(layer(), Context(calibration=feeds()))


@pytest.mark.parametrize("seconds", [(0.0, 1.0), (1.0,), (1.0, -1.0)])
def test_latencies_are_positive(seconds):
    with pytest.raises(UsageError, match="two positive numbers"):
        share_of(seconds)


def test_only_the_named_layers_are_converted():
    assert not MixExperts(share=0.5, names=("other",)).run(layer(), Context(calibration=feeds()))
    assert MixExperts(share=0.5, names=("layer",)).run(layer(), Context(calibration=feeds()))
