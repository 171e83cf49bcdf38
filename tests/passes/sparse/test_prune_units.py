"""prune-units: units that harm least vanish, what stays makes them good, and the model is really narrower."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import assert_same_text, read

from planish.ir import ops
from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.op import constant
from planish.ir.verify import verify
from planish.passes.base import Context, Pipeline
from planish.passes.rewrite import Fuel
from planish.passes.sparse.prune_units import PruneUnits
from planish.passes.sparse.pruning import damped, error_of
from planish.passes.sparse.unit_pruning import elimination, widths
from planish.passes.sparse.units_report import UnitsReport

Feeds = list[dict[str, np.ndarray]]


def mlp(depth: int = 12, hidden: int = 48, seed: int = 0) -> tuple[str, dict[str, np.ndarray]]:
    """An MLP half of whose units repeat the others, but for a little noise."""
    rng = np.random.default_rng(seed)
    text = f"""
        def main(x: f32[8, {depth}]):
            w: f32[{depth}, {hidden}] = Const('w')
            b: f32[{hidden}] = Const('b')
            y: f32[8, {hidden}] = Linear()(x, w, b)
            z: f32[8, {hidden}] = Relu()(y)
            v: f32[{hidden}, 5] = Const('v')
            c: f32[5] = Const('c')
            r: f32[8, 5] = Linear()(z, v, c)
            return r
        """
    half = rng.normal(size=(depth, hidden // 2))
    w = np.concatenate([half, half + 0.02 * rng.normal(size=half.shape)], axis=1)
    b = np.tile(rng.normal(size=hidden // 2), 2)
    found = {"w": w, "b": b, "v": rng.normal(size=(hidden, 5)), "c": rng.normal(size=5)}
    return text, {name: array.astype(np.float32) for name, array in found.items()}


def feeds_of(*shape: int, count: int = 32, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def pruned(graph: Graph, feeds: Feeds, fuel: int | None = None, **options: object) -> UnitsReport:
    context = Context(calibration=feeds, fuel=None if fuel is None else Fuel(fuel))
    Pipeline(PruneUnits(**options)).run(graph, context)  # type: ignore[arg-type]
    verify(graph)
    (report,) = context.reports
    assert isinstance(report, UnitsReport)
    return report


def test_neurons_that_others_can_make_good_vanish_from_both_layers():
    text, constants = mlp()
    graph = read(text, constants)
    report = pruned(graph, feeds_of(8, 12), neurons=1 / 3)
    (layer,) = report.layers
    assert (layer.kind, layer.units, layer.kept) == ("neurons", 48, 32)
    assert report.density == pytest.approx(2 / 3)
    found = {
        "w": constant(graph.nodes(ops.Linear)[0].operands[1]),
        "b": constant(graph.nodes(ops.Linear)[0].operands[2]),
        "v": constant(graph.nodes(ops.Linear)[1].operands[1]),
        "c": constant(graph.nodes(ops.Linear)[1].operands[2]),
    }
    assert_same_text(graph, read(text.replace("48", "32"), found))
    feed = feeds_of(8, 12, count=1, seed=9)[0]
    old, new = interpret(read(text, constants), feed)["r"], interpret(graph, feed)["r"]
    assert np.mean((new - old) ** 2) < 1e-3 * np.var(old)
    assert report.reported.nmse < 1e-3
    kept = {tuple(column) for column in found["w"].numpy().T}
    assert kept < {tuple(column) for column in constants["w"].T}  # those that stay read what they read


def test_a_fit_errs_less_than_the_mean_alone():
    text, constants = mlp(seed=2)
    reports = [pruned(read(text, constants), feeds_of(8, 12), neurons=0.6, refit=refit) for refit in (True, False)]
    assert reports[0].reported.nmse < 0.5 * reports[1].reported.nmse
    assert all(layer.noise_db >= layer.masked_db for report in reports for layer in report.layers)


ATTENTION = """
    def main(x: f32[2, 6, 8]):
        wq: f32[8, {w}] = Const('wq')
        yq: f32[2, 6, {w}] = Linear()(x, wq)
        rq: f32[2, 6, {h}, 4] = Reshape(shape=(2, 6, {h}, 4))(yq)
        tq: f32[2, {h}, 6, 4] = Transpose(perm=(0, 2, 1, 3))(rq)
        wk: f32[8, {w}] = Const('wk')
        yk: f32[2, 6, {w}] = Linear()(x, wk)
        rk: f32[2, 6, {h}, 4] = Reshape(shape=(2, 6, {h}, 4))(yk)
        tk: f32[2, {h}, 6, 4] = Transpose(perm=(0, 2, 1, 3))(rk)
        wv: f32[8, {w}] = Const('wv')
        yv: f32[2, 6, {w}] = Linear()(x, wv)
        rv: f32[2, 6, {h}, 4] = Reshape(shape=(2, 6, {h}, 4))(yv)
        tv: f32[2, {h}, 6, 4] = Transpose(perm=(0, 2, 1, 3))(rv)
        a: f32[2, {h}, 6, 4] = Attention(scale=0.5, causal=False)(tq, tk, tv)
        ta: f32[2, 6, {h}, 4] = Transpose(perm=(0, 2, 1, 3))(a)
        ra: f32[2, 6, {w}] = Reshape(shape=(2, 6, {w}))(ta)
        wo: f32[{w}, 5] = Const('wo')
        bo: f32[5] = Const('bo')
        y: f32[2, 6, 5] = Linear()(ra, wo, bo)
        return y
    """


def attention(weak: int) -> dict[str, np.ndarray]:
    """Four heads, one of which says little."""
    rng = np.random.default_rng(4)
    shapes = {"wq": (8, 16), "wk": (8, 16), "wv": (8, 16), "wo": (16, 5), "bo": (5,)}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found["wo"][4 * weak : 4 * weak + 4] *= 0.05
    return found


def test_the_head_that_harms_least_vanishes_and_its_mean_stays():
    constants = attention(weak=2)
    graph = read(ATTENTION.format(w=16, h=4), constants)
    report = pruned(graph, feeds_of(2, 6, 8), neurons=0, heads=0.25)
    assert [(layer.kind, layer.units, layer.kept) for layer in report.layers] == [("heads", 4, 3)]
    q, k, v, o = graph.nodes(ops.Linear)
    for name, node in (("wq", q), ("wk", k), ("wv", v)):
        wanted = np.delete(constants[name], range(8, 12), axis=1)
        np.testing.assert_array_equal(constant(node.operands[1]).numpy(), wanted)
    found = {"wq": constant(q.operands[1]), "wk": constant(k.operands[1]), "wv": constant(v.operands[1])}
    found |= {"wo": constant(o.operands[1]), "bo": constant(o.operands[2])}
    assert_same_text(graph, read(ATTENTION.format(w=12, h=3), found))
    assert report.reported.nmse < 1e-2


def test_a_budget_of_the_error_is_kept_and_used():
    text, constants = mlp(hidden=96)
    loose, tight = (pruned(read(text, constants), feeds_of(8, 12), max_nmse=bar) for bar in (0.05, 1e-4))
    assert loose.chosen.nmse <= 0.05
    assert tight.chosen.nmse <= 1e-4
    assert loose.density < tight.density <= 1
    assert [point.taken for point in loose.curve].count(True) == 1
    with pytest.raises(GateError, match="no choice of units fits"):
        pruned(read(text, constants), feeds_of(8, 12), max_nmse=-1.0)


def test_layers_are_left_alone_with_a_reason():
    text = """
        def main(x: f32[4, 6]):
            w: f32[6, 8] = Const('w')
            y: f32[4, 8] = Linear()(x, w)
            z: f32[4, 8] = Relu()(y)
            v: f32[8, 3] = Const('v')
            r: f32[4, 3] = Linear()(z, v)
            s: f32[4, 3] = Linear()(z, v)
            return r, s
        """
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(6, 8)).astype(np.float32), "v": rng.normal(size=(8, 3)).astype(np.float32)}
    context = Context(calibration=feeds_of(4, 6))
    changes = PruneUnits().run(read(text, constants), context)
    assert not changes
    assert {reason for _, reason in changes.skipped} == {"2 layers read its units"}
    assert context.reports == []
    with pytest.raises(UsageError, match="a share of 1 can't vanish"):
        PruneUnits(neurons=1.0).run(read(text, constants), context)


def test_fuel_stops_it_before_the_first_layer():
    text, constants = mlp()
    graph = read(text, constants)
    pruned(graph, feeds_of(8, 12), fuel=0)
    assert_same_text(graph, read(text, constants))


def test_units_vanish_in_the_order_of_what_each_costs_after_a_fit():
    rng = np.random.default_rng(5)
    w = rng.normal(size=(12, 4))
    mixed = rng.normal(size=(12, 12))
    h = damped(mixed @ mixed.T / 12)
    rows = np.arange(12).reshape(6, 2)
    order = elimination(w, h, rows)
    assert sorted(order) == sorted(set(order))
    assert len(order) == 5

    def harm(gone: list[int]) -> float:
        away = rows[gone].reshape(-1)
        stays = np.setdiff1d(np.arange(12), away)
        found = np.zeros_like(w)
        found[stays] = np.linalg.solve(h[np.ix_(stays, stays)], h[stays] @ w)
        return error_of(found, w, h)

    for count in range(5):
        steps = {unit: harm([*order[:count], unit]) for unit in range(6) if unit not in order[:count]}
        assert order[count] == min(steps, key=lambda unit: steps[unit])


@pytest.mark.parametrize(
    ("units", "heads", "found"),
    [
        (48, False, [16, 32, 48]),
        (40, False, [16, 32, 40]),
        (10, False, list(range(1, 11))),
        (20, True, list(range(1, 21))),
    ],
)
def test_widths_are_multiples_of_sixteen(units: int, heads: bool, found: list[int]) -> None:
    assert widths(units, np.linspace(0, 1, 50).tolist(), heads) == found
