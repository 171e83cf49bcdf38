"""shift-add: linear layers and convolutions by codes of codebooks, chosen by budgets, or left with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rewriting import assert_same_text, read

from planish.ir import ops, signed_digits
from planish.ir.codebooks import CODEBOOKS
from planish.ir.data import Data
from planish.ir.errors import CalibrationError, GateError, RewriteError, UsageError
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.op import constant
from planish.ir.types import Quant
from planish.ir.verify import verify
from planish.passes.base import Context, Pipeline
from planish.passes.rewrite import Fuel
from planish.passes.shiftadd import ShiftAdd
from planish.passes.shiftadd.report import ShiftAddReport

BEFORE = """
def main(x: f32[4, 3]):
    w: f32[3, 2] = Const('w')
    y: f32[4, 2] = Linear()(x, w)
    z: f32[4, 2] = Relu()(y)
    v: f32[2, 3] = Const('v')
    b: f32[3] = Const('b')
    r: f32[4, 3] = Linear()(z, v, b)
    return r
"""
AFTER = """
def main(x: f32[4, 3]):
    w: q(i8, (0.5, 0.25), 0, axis=1, codebook='pot4')[3, 2] = Const('w')
    c: f32[2] = Const('c')
    y: f32[4, 2] = ShiftLinear()(x, w, c)
    z: f32[4, 2] = Relu()(y)
    v: q(i8, (1.0, 2.0, 0.125), 0, axis=1, codebook='pot4')[2, 3] = Const('v')
    b: f32[3] = Const('b')
    r: f32[4, 3] = ShiftLinear()(z, v, b)
    return r
"""
W, V = np.array([[64, 2], [-8, 64], [4, -1]], np.int8), np.array([[64, 8, -64], [0, -64, 16]], np.int8)
W_SCALES, V_SCALES = np.array([0.5, 0.25]), np.array([1.0, 2.0, 0.125])


def feeds_of(shape: tuple[int, ...], count: int = 12, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def run(graph: Graph, feeds: list[dict[str, np.ndarray]], fuel: int | None = None, **options: object) -> ShiftAddReport:
    context = Context(calibration=feeds, fuel=None if fuel is None else Fuel(fuel))
    Pipeline(ShiftAdd(**options)).run(graph, context)  # type: ignore[arg-type]
    verify(graph)
    (report,) = context.reports
    assert isinstance(report, ShiftAddReport)
    return report


def test_layers_whose_weights_are_such_sums_become_them_exactly():
    constants = {
        "w": (W * W_SCALES).astype(np.float32),
        "v": (V * V_SCALES).astype(np.float32),
        "b": np.ones(3, np.float32),
    }
    graph = read(BEFORE, constants)
    feed = feeds_of((4, 3))[0]
    expected = interpret(graph, feed)["r"]
    report = run(graph, feeds_of((4, 3)), codebook="pot4")
    codes = {
        "w": Data(W, Quant((0.5, 0.25), 0, 1, "pot4")),
        "v": Data(V, Quant((1.0, 2.0, 0.125), 0, 1, "pot4")),
        "b": np.ones(3, np.float32),
        "c": np.zeros(2, np.float32),
    }
    found = [constant(node.operands[1]).numpy() for node in graph.nodes(ops.ShiftLinear)]
    np.testing.assert_array_equal(found[0], W)
    np.testing.assert_array_equal(found[1], V)
    for node, scales in zip(graph.nodes(ops.ShiftLinear), (W_SCALES, V_SCALES), strict=True):
        np.testing.assert_allclose(node.inputs[1].tensor.quant.scales, scales, rtol=1e-6)
    rounded_scales(graph)
    assert_same_text(graph, read(AFTER, codes))
    np.testing.assert_allclose(interpret(graph, feed)["r"], expected, rtol=1e-5, atol=1e-5)
    assert [layer.codebook for layer in report.layers] == ["pot4", "pot4"]


def rounded_scales(graph: Graph) -> None:
    """Scales and biases to six digits, so that the text can be read."""
    for node in graph.nodes(ops.ShiftLinear):
        data = constant(node.operands[1])
        quant = data.type.quant
        scales = tuple(float(f"{scale:.6g}") for scale in quant.scale)
        made = graph.add(
            ops.Const(Data(data.numpy(), Quant(scales, 0, quant.axis, quant.codebook))), loc=node.loc, before=node
        )
        graph.set_operand(node, 1, made.result)
        bias = np.round(constant(node.operands[2]).numpy(), 4) + np.float32(0)
        graph.set_operand(node, 2, graph.add(ops.Const(Data(bias)), loc=node.loc, before=node).result)
    graph.erase_dead()


def mlp(depth: int = 24, hidden: int = 40, width: int = 6) -> tuple[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    text = (
        f"def main(x: f32[8, {depth}]):\n    w: f32[{depth}, {hidden}] = Const('w')\n"
        f"    b: f32[{hidden}] = Const('b')\n"
        f"    y: f32[8, {hidden}] = Linear()(x, w, b)\n    z: f32[8, {hidden}] = Relu()(y)\n"
        f"    v: f32[{hidden}, {width}] = Const('v')\n    r: f32[8, {width}] = Linear()(z, v)\n    return r\n"
    )
    shapes = {"w": (depth, hidden), "b": (hidden,), "v": (hidden, width)}
    return text, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("codebook", "floor_db"),
    [
        ("csd2", 27),
        ("apot6", 25),
        ("apot5", 20),
        ("apot4", 17),
        ("int4", 16),
        ("pot4", 12),
        ("bcq3", 12),
        ("ternary", 5),
    ],
)
def test_the_function_stays_about_the_same(codebook, floor_db):
    graph = read(*mlp())
    feeds = feeds_of((8, 24), 24)
    new = feeds_of((8, 24), 4, seed=9)
    before = [interpret(graph, feed)["r"] for feed in new]
    report = run(graph, feeds, codebook=codebook)
    after = [interpret(graph, feed)["r"] for feed in new]
    noise = sum(np.sum((a - b) ** 2) for a, b in zip(after, before, strict=True))
    assert 10 * np.log10(sum(np.sum(b**2) for b in before) / noise) > floor_db
    for node in graph.nodes(ops.ShiftLinear):
        data = constant(node.operands[1])
        assert CODEBOOKS[codebook].fault(data.numpy(), 1) == ""
        assert np.max(signed_digits.count(data.numpy())) <= CODEBOOKS[codebook].terms
    assert {layer.codebook for layer in report.layers} == {codebook}


def test_a_convolution_of_groups_becomes_shifts():
    rng = np.random.default_rng(2)
    graph = read(
        "def main(x: f32[2, 4, 6, 6]):\n    w: f32[6, 2, 3, 3] = Const('w')\n"
        "    y: f32[2, 6, 6, 6] = Conv(strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=2)(x, w)\n"
        "    return y\n",
        {"w": rng.normal(size=(6, 2, 3, 3)).astype(np.float32)},
    )
    feeds = feeds_of((2, 4, 6, 6))
    before = interpret(graph, feeds[0])["y"]
    run(graph, feeds, codebook="csd2")
    (node,) = graph.nodes(ops.ShiftConv)
    assert node.op.group == 2
    after = interpret(graph, feeds[0])["y"]
    assert 10 * np.log10(np.sum(before**2) / np.sum((after - before) ** 2)) > 28


def test_bits_are_shared_out_within_the_budget():
    text, constants = mlp()
    constants["v"] *= 30  # all that counts is decided by the second layer
    reports = {
        bits: run(read(text, constants), feeds_of((8, 24), 24), codebook="mix", bits=bits) for bits in (6.0, 9.0)
    }
    assert reports[6.0].bits <= 6.0 < reports[9.0].bits <= 9.0
    assert reports[9.0].chosen.nmse < reports[6.0].chosen.nmse
    assert sum(point.taken for point in reports[6.0].curve) == 1
    assert [point.bits for point in reports[6.0].curve] == sorted(point.bits for point in reports[6.0].curve)


def test_energy_is_a_budget_too():
    text, constants = mlp()
    report = run(read(text, constants), feeds_of((8, 24), 24), energy=0.7)
    assert report.energy <= 0.7
    with pytest.raises(GateError, match="the cheapest choice takes"):
        run(read(text, constants), feeds_of((8, 24), 24), energy=0.01)


def test_an_error_budget_gives_harmful_layers_better_codes():
    text, constants = mlp()
    tight = run(read(text, constants), feeds_of((8, 24), 24), max_nmse=1e-3)
    loose = run(read(text, constants), feeds_of((8, 24), 24), max_nmse=5e-2)
    assert tight.chosen.nmse <= 1e-3
    assert loose.chosen.nmse <= 5e-2
    assert loose.bits < tight.bits
    asked = run(read(text, constants), feeds_of((8, 24), 24), codebook="pot4", max_nmse=2e-2)
    assert asked.chosen.nmse <= 2e-2
    assert "pot4" not in {layer.codebook for layer in asked.layers} or asked.bits < 32


def test_what_cant_be_coded_stays_and_says_why():
    text, constants = mlp()
    text = text.replace("def main(x", "def main(u: f32[24, 40], x").replace("Linear()(x, w, b)", "Linear()(x, u, b)")
    graph = read(text, constants)
    rng = np.random.default_rng(0)
    feeds = [{**feed, "u": rng.normal(size=(24, 40)).astype(np.float32)} for feed in feeds_of((8, 24))]
    context = Context(calibration=feeds)
    changes = ShiftAdd().run(graph, context)
    assert [reason for _, reason in changes.skipped] == ["its weights are computed"]
    assert len(graph.nodes(ops.Linear)) == len(graph.nodes(ops.ShiftLinear)) == 1
    kept = read(*mlp())
    changes = ShiftAdd(keep=("r",)).run(kept, Context(calibration=feeds_of((8, 24))))
    assert [reason for _, reason in changes.skipped] == ["it was asked to stay as it is"]
    assert kept.nodes(ops.Linear)[0].result.hint == "r"
    broken = read(text=mlp()[0], constants={**mlp()[1], "v": np.full((40, 6), np.nan, np.float32)})
    changes = ShiftAdd().run(broken, Context(calibration=feeds_of((8, 24))))
    assert [reason for _, reason in changes.skipped] == ["its weights hold NaN or infinity"]


def test_wrong_options_and_missing_samples_are_refused():
    with pytest.raises(UsageError, match="there is no codebook 'pot5'"):
        ShiftAdd(codebook="pot5").run(read(*mlp()), Context(calibration=feeds_of((8, 24))))
    with pytest.raises(UsageError, match="can't both be a budget"):
        ShiftAdd(bits=4, energy=0.5).run(read(*mlp()), Context(calibration=feeds_of((8, 24))))
    with pytest.raises(RewriteError, match="needs calibration data"):
        Pipeline(ShiftAdd()).run(read(*mlp()), Context())
    with pytest.raises(CalibrationError, match="can't be cut into sets"):
        ShiftAdd().run(read(*mlp()), Context(calibration=feeds_of((8, 24), 2)))


def test_fuel_stops_it_and_the_same_samples_give_the_same_weights():
    graph = read(*mlp())
    run(graph, feeds_of((8, 24)), fuel=1)
    assert (len(graph.nodes(ops.ShiftLinear)), len(graph.nodes(ops.Linear))) == (1, 1)
    one, other = read(*mlp()), read(*mlp())
    run(one, feeds_of((8, 24)))
    run(other, feeds_of((8, 24)))
    assert_same_text(one, other)
    for a, b in zip(one.nodes(ops.ShiftLinear), other.nodes(ops.ShiftLinear), strict=True):
        assert constant(a.operands[1]) == constant(b.operands[1])


@given(st.integers(1, 40), st.integers(1, 20), st.sampled_from(sorted(CODEBOOKS)), st.integers(0, 99))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_layers_of_any_size_keep_to_their_codebook(depth, width, codebook, seed):
    rng = np.random.default_rng(seed)
    graph = read(
        f"def main(x: f32[3, {depth}]):\n    w: f32[{depth}, {width}] = Const('w')\n"
        f"    y: f32[3, {width}] = Linear()(x, w)\n    return y\n",
        {"w": (rng.normal(size=(depth, width)) * 10.0 ** rng.integers(-3, 3, (1, width))).astype(np.float32)},
    )
    run(graph, feeds_of((3, depth), seed=seed), codebook=codebook)
    assert len(graph.nodes(ops.ShiftLinear)) == 1
