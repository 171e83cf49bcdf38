"""`prune` on graphs: what vanishes, how zeros are shared out, what measured time changes, what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from rewriting import assert_same_text, read

from planish.ir import ops
from planish.ir.data import Data
from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.op import constant
from planish.ir.sparsity import density, fault, name_of, pattern
from planish.ir.text import print_graph
from planish.ir.verify import verify
from planish.passes.base import Context, Pipeline
from planish.passes.rewrite import Fuel
from planish.passes.sparse import Prune
from planish.passes.sparse.pruning import METHODS
from planish.passes.sparse.report import PruneReport

BEFORE = """
def main(x: f32[6, 4]):
    w: f32[4, 4] = Const('w')
    b: f32[4] = Const('b')
    y: f32[6, 4] = Linear()(x, w, b)
    return y
"""
AFTER = """
def main(x: f32[6, 4]):
    w: sparse(f32, 'block', (4,), axis=1, density=0.5)[4, 4] = Const('w')
    b: f32[4] = Const('b')
    y: f32[6, 4] = Linear()(x, w, b)
    return y
"""


def feeds(*shape: int, count: int = 24, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Correlated samples, one input with more energy than another."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(shape[-1], shape[-1])) * 0.3 + np.diag(np.geomspace(0.2, 3, shape[-1]))
    return [{"x": (rng.normal(size=shape) @ mixed).astype(np.float32)} for _ in range(count)]


def run(graph: Graph, samples: Sequence[dict[str, np.ndarray]], **options: object) -> PruneReport:
    clock, fuel = options.pop("clock", None), options.pop("fuel", None)
    context = Context(calibration=samples, clock=clock, fuel=fuel)  # type: ignore[arg-type]
    Pipeline(Prune(**options)).run(graph, context)  # type: ignore[arg-type]
    verify(graph)
    (report,) = context.reports
    assert isinstance(report, PruneReport)
    return report


def network(depth: int = 24, hidden: int = 40, width: int = 8) -> Graph:
    """Two layers, the second of which has a tenth of the weights of the first in many of its inputs."""
    rng = np.random.default_rng(1)
    text = (
        f"def main(x: f32[8, {depth}]):\n    w: f32[{depth}, {hidden}] = Const('w')\n"
        f"    b: f32[{hidden}] = Const('b')\n"
        f"    y: f32[8, {hidden}] = Linear()(x, w, b)\n    z: f32[8, {hidden}] = Relu()(y)\n"
        f"    v: f32[{hidden}, {width}] = Const('v')\n    r: f32[8, {width}] = Linear()(z, v)\n    return r\n"
    )
    v = rng.normal(size=(hidden, width)) * np.where(np.arange(hidden) % 3, 0.1, 1.0)[:, None]
    w, b = rng.normal(size=(depth, hidden)), rng.normal(size=hidden)
    return read(text, {"w": w.astype(np.float32), "b": b.astype(np.float32), "v": v.astype(np.float32)})


def error(graph: Graph, original: Graph, samples: Sequence[dict[str, np.ndarray]]) -> float:
    pairs = [(interpret(graph, f)["r"], interpret(original, f)["r"]) for f in samples]
    return float(np.mean([(a - b) ** 2 for a, b in pairs]) / np.var([b for _, b in pairs]))


def test_inputs_of_little_energy_vanish_and_the_bias_takes_their_mean():
    w = np.ones((4, 4), np.float32)
    graph = read(BEFORE, {"w": w, "b": np.zeros(4, np.float32)})
    scale = np.array([1.0, 0.01, 1.0, 0.01])
    rng = np.random.default_rng(0)
    samples = [{"x": ((rng.normal(size=(6, 4)) * scale) + 2).astype(np.float32)} for _ in range(24)]
    report = run(graph, samples, method="wanda", sparsity=0.5, uniform=True, refit=False)
    (node,) = graph.nodes(ops.Linear)
    found, bias = constant(node.operands[1]).numpy(), constant(node.operands[2]).numpy()
    np.testing.assert_array_equal(found, w * np.array([1, 0, 1, 0])[:, None])
    np.testing.assert_allclose(bias, 4.0, atol=0.02)
    np.testing.assert_allclose(interpret(graph, samples[0])["y"], samples[0]["x"].sum(1)[:, None] + 0 * w[0], atol=0.1)
    expected = {"w": Data(found, None, pattern("ob4", density=0.5)), "b": bias}
    assert_same_text(graph, read(AFTER, expected))
    assert report.density == 0.5


@pytest.mark.parametrize("structure", ["unstructured", "ob4", "ob16", "ib4", "2:4"])
@pytest.mark.parametrize("uniform", [False, True])
def test_the_share_asked_for_vanishes_in_the_structure(structure, uniform):
    graph, samples = network(), feeds(8, 24)
    original = graph.clone()[0]
    report = run(graph, samples, structure=structure, sparsity=0.5, uniform=uniform)
    assert report.density <= 0.5 + 1e-3
    for node in graph.nodes(ops.Linear):
        data = constant(node.operands[1])
        assert data is not None
        if data.type.sparsity is not None:
            assert name_of(data.type.sparsity) == structure
            assert fault(data.numpy(), data.type.sparsity) == ""
    assert 0 < error(graph, original, samples) < 0.9
    assert [row.density for row in report.layers] == [
        pytest.approx(density(constant(n.operands[1]).numpy(), pattern(structure))) for n in graph.nodes(ops.Linear)
    ]


@pytest.mark.parametrize("structure", ["unstructured", "ob4", "ob16", "ib4", "2:4"])
@pytest.mark.parametrize(("channels", "group", "filters"), [(8, 1, 8), (3, 1, 8), (16, 2, 8), (16, 2, 12)])
def test_convolutions_have_their_zeros_along_channels(structure, channels, group, filters):
    text = f"""
    def main(x: f32[2, {channels}, 6, 6]):
        w: f32[{filters}, {channels // group}, 3, 3] = Const('w')
        r: f32[2, {filters}, 4, 4] = Conv(strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group={group})(x, w)
        return r
    """
    w = np.random.default_rng(4).normal(size=(filters, channels // group, 3, 3)).astype(np.float32)
    graph, samples = read(text, {"w": w}), feeds(2, channels, 6, 6)
    whole = graph.clone()[0]
    changes = Prune(structure=structure, sparsity=0.5, uniform=True).run(graph, Context(calibration=samples))
    verify(graph)
    (node,) = graph.nodes(ops.Conv)
    found = constant(node.operands[1])
    if (structure in ("ib4", "2:4") and channels // group % 4) or (filters // group % 4 and structure == "ob4"):
        assert "can't be cut into" in changes.skipped[0][1]
    elif found.type.sparsity is not None:
        assert name_of(found.type.sparsity, "conv") == structure
        assert 0.3 < np.mean(found.numpy() == 0) < 0.7
        assert 0 < error(graph, whole, samples) < 0.7
    else:
        assert structure == "ob16"


def test_zeros_go_where_they_harm_least():
    text = """
    def main(x: f32[8, 24]):
        w: f32[24, 16] = Const('w')
        v: f32[24, 16] = Const('v')
        y: f32[8, 16] = Linear()(x, w)
        z: f32[8, 16] = Linear()(x, v)
        r: f32[8, 16] = Add()(y, z)
        return r
    """
    rng = np.random.default_rng(2)
    w = {"w": rng.normal(size=(24, 16)).astype(np.float32), "v": 0.05 * rng.normal(size=(24, 16)).astype(np.float32)}
    errors = {}
    for uniform in (False, True):
        graph = read(text, w)
        original = graph.clone()[0]
        report = run(graph, feeds(8, 24), sparsity=0.4, uniform=uniform)
        errors[uniform] = error(graph, original, feeds(8, 24, seed=5))
        if not uniform:
            assert report.layers[0].density > report.layers[1].density + 0.4
    assert errors[False] < 0.5 * errors[True]


def test_what_stays_is_fitted_only_where_that_helps():
    graph, samples = network(), feeds(8, 24, count=48)
    report = run(graph, samples, method="magnitude", sparsity=0.6)
    assert all(row.noise_db >= row.masked_db for row in report.layers if row.noise_db is not None)
    assert any(row.noise_db > row.masked_db + 0.1 for row in report.layers if row.noise_db is not None)


def test_all_methods_are_measured_and_the_best_is_taken():
    graph, samples = network(), feeds(8, 24, count=48)
    report = run(graph, samples, method="all", sparsity=0.6)
    assert list(report.curves) == list(METHODS)
    assert report.method in METHODS
    taken = [(method, p) for method, points in report.curves.items() for p in points if p.taken]
    assert [method for method, _ in taken] == [report.method]
    assert all(len({p.density for p in points}) >= 5 for points in report.curves.values())


@pytest.mark.parametrize("limit", [0.02, 0.2])
def test_as_much_vanishes_as_the_error_allows(limit):
    graph, samples = network(), feeds(8, 24, count=48)
    report = run(graph, samples, max_nmse=limit)
    assert report.chosen.nmse <= limit
    (points,) = report.curves.values()
    assert all(p.chosen.nmse > limit for p in points if p.density < report.density - 1e-9)


def test_layers_that_zeros_make_no_faster_keep_their_weights():
    def clock(graphs: Sequence[Graph]) -> list[float]:
        """Seconds of a kernel that skips nothing in a layer of 8 columns."""
        found = []
        for graph in graphs:
            data = constant(graph.nodes(ops.Linear)[0].operands[1])
            assert data is not None
            share = 1.0 if data.type.sparsity is None else data.type.sparsity.density
            found.append(1.0 if data.type.dims[1] == 8 else share)
        return found

    graph, samples = network(), feeds(8, 24)
    report = run(graph, samples, max_nmse=0.3, clock=clock)
    first, second = report.layers
    assert first.density < 1
    assert second.density == 1


def test_fuel_stops_rewriting():
    graph = network()
    run(graph, feeds(8, 24), sparsity=0.5, uniform=True, fuel=Fuel(1))
    assert [constant(n.operands[1]).type.sparsity is None for n in graph.nodes(ops.Linear)] == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "none"}, "known: magnitude, wanda, sparsegpt, obs, all"),
        ({"structure": "4x1"}, "known: unstructured, ob4"),
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"structure": "2:4", "sparsity": 0.8}, "take less off"),
        ({"max_nmse": -1.0}, "allow more"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises((UsageError, GateError)) as caught:
        run(network(), feeds(8, 24), **options)
    assert message in str(caught.value) + caught.value.remedy


def trained_by(factor: float):
    """Training that makes the bias of the last layer so many times as large, and nothing else."""

    def recover(student, teacher, trainable, pairs, training, held_out):
        node = trainable[-1]
        bias = constant(node.operands[2])
        made = student.add(ops.Const(Data(factor * bias.numpy())), loc=node.loc, before=node).result
        student.set_operand(node, 2, made)
        return f"{len(trainable)} layers"

    return recover


def test_what_training_found_is_taken_over_and_zeros_stay():
    graph, samples = network(), feeds(8, 24)
    twin = graph.clone()[0]
    run(twin, samples, sparsity=0.5)
    context = Context(calibration=samples, recover=trained_by(2.0))
    Pipeline(Prune(sparsity=0.5)).run(graph, context)
    verify(graph)
    assert context.reports[0].recovery == "2 layers"
    for mine, other in zip(graph.nodes(ops.Linear), twin.nodes(ops.Linear), strict=True):
        assert mine.inputs[1].type == other.inputs[1].type
        np.testing.assert_array_equal(constant(mine.operands[1]).numpy(), constant(other.operands[1]).numpy())
    last = [constant(g.nodes(ops.Linear)[-1].operands[2]).numpy() for g in (graph, twin)]
    np.testing.assert_allclose(last[0], 2 * last[1], rtol=1e-6)


def test_a_budget_is_held_after_training():
    graph, samples = network(), feeds(8, 24)
    text = print_graph(graph)
    with pytest.raises(GateError, match="after training"):
        Prune(sparsity=0.5, max_nmse=0.3).run(graph, Context(calibration=samples, recover=trained_by(100.0)))
    assert print_graph(graph) == text
