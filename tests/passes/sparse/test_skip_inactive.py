"""skip-inactive: layers of ReLU networks become one op where samples say that most neurons can be proved inactive."""

from __future__ import annotations

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from rewriting import assert_same_text, check_unchanged, read

from planish.backends.onnx.writer import build
from planish.ir.interpret import interpret
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.pipelines import recipe
from planish.passes.rewrite import Fuel
from planish.passes.sparse.skip_inactive import SkipInactive, SkipReport, expected_cost

PLAIN = """
def main(x: f32[1, 1, 256]):
    w1: f32[256, 1024] = Const('w1')
    b1: f32[1024] = Const('b1')
    w2: f32[1024, 256] = Const('w2')
    b2: f32[256] = Const('b2')
    up: f32[1, 1, 1024] = Linear()(x, w1, b1)
    hidden: f32[1, 1, 1024] = Relu()(up)
    down: f32[1, 1, 256] = Linear()(hidden, w2, b2)
    y: f32[1, 1, 256] = Add()(x, down)
    return y
"""
PLAIN_AFTER = """
def main(x: f32[1, 1, 256]):
    w1: f32[256, 1024] = Const('w1')
    b1: f32[1024] = Const('b1')
    w2: f32[1024, 256] = Const('w2')
    b2: f32[256] = Const('b2')
    down: f32[1, 1, 256] = ReluMLP(skip=True)(x, w1, w2, b1, b2)
    y: f32[1, 1, 256] = Add()(x, down)
    return y
"""
GATED = """
def main(x: f32[3, 256]):
    w1: f32[256, 1024] = Const('w1')
    b1: f32[1024] = Const('b1')
    w3: f32[256, 1024] = Const('w3')
    w2: f32[1024, 256] = Const('w2')
    up: f32[3, 1024] = Linear()(x, w3)
    gate: f32[3, 1024] = Linear()(x, w1, b1)
    open: f32[3, 1024] = Relu()(gate)
    hidden: f32[3, 1024] = Mul()(FIRST, SECOND)
    y: f32[3, 256] = Linear()(hidden, w2)
    return y
"""
GATED_AFTER = """
def main(x: f32[3, 256]):
    w1: f32[256, 1024] = Const('w1')
    b1: f32[1024] = Const('b1')
    w3: f32[256, 1024] = Const('w3')
    w2: f32[1024, 256] = Const('w2')
    y: f32[3, 256] = ReluMLP(skip=True)(x, w3, w2, None, None, w1, b1)
    return y
"""


def constants(shift: float = 2.0) -> dict[str, np.ndarray]:
    """Weights with which values that the rectifier reads are normal, moved by -shift."""
    rng = np.random.default_rng(6)
    shapes = {"w1": (256, 1024), "w3": (256, 1024), "w2": (1024, 256)}
    made = {n: (rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for n, s in shapes.items()}
    return {**made, "b1": np.full(1024, -shift, np.float32), "b2": np.ones(256, np.float32)}


def samples(*shape: int, count: int = 6) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(8)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def context(*shape: int, **options: object) -> Context:
    return Context(**{"target": "tvm-cpu", "calibration": samples(*shape), **options})  # type: ignore[arg-type]


def on_runtime(graph, feed) -> np.ndarray:
    model = onnx_ir.to_proto(build(graph))
    assert not any(node.op_type == "ReluMLP" for node in model.graph.node)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def on_tvm(graph, feed) -> np.ndarray:
    pytest.importorskip("tvm")
    from planish.backends.tvm.build import Executable
    from planish.backends.tvm.isa import host_isa
    from planish.backends.tvm.program import lower

    (found,) = Executable(lower(graph, host_isa()), host_isa().target())(**feed).values()
    return found


@pytest.mark.parametrize("run", [on_runtime, on_tvm])
@pytest.mark.parametrize(
    ("before", "after", "shape"),
    [
        (PLAIN, PLAIN_AFTER, (1, 1, 256)),
        (GATED.replace("FIRST", "open").replace("SECOND", "up"), GATED_AFTER, (3, 256)),
        (GATED.replace("FIRST", "up").replace("SECOND", "open"), GATED_AFTER, (3, 256)),
    ],
    ids=["plain", "gated", "gated the other way round"],
)
def test_layers_become_one_op_that_computes_the_same(before, after, shape, run):
    graph, original = read(before, constants()), read(before, constants())
    made = context(*shape)
    changes = SkipInactive().run(graph, made)
    verify(graph)
    assert dict(changes.rewrites) == {"skip-inactive": 1}
    assert_same_text(graph, read(after, constants()))
    for feed in samples(*shape, count=2):
        (wanted,) = interpret(original, feed).values()
        np.testing.assert_allclose(run(graph, feed), wanted, rtol=1e-4, atol=1e-4)
    assert not SkipInactive().run(graph, context(*shape))


def test_what_was_measured_is_reported():
    made = context(1, 1, 256)
    SkipInactive().run(read(PLAIN, constants()), made)
    (report,) = made.reports
    assert isinstance(report, SkipReport)
    (layer,) = report.layers
    values = [feed["x"] @ constants()["w1"] + constants()["b1"] for feed in samples(1, 1, 256)]
    assert layer.inactive == pytest.approx(np.mean([value <= 0 for value in values]))
    assert 0.9 < layer.proved < layer.inactive
    assert layer.taken
    assert layer.cost == expected_cost((256, 1024, 256), False, layer.inactive, layer.proved)
    assert report.to_dict()["layers"][0]["neurons"] == 1024


@pytest.mark.parametrize("rows", [1, 3])
def test_neurons_count_as_inactive_if_no_row_needs_them(rows):
    text = PLAIN.replace("[1, 1,", f"[{rows}, 1,")
    made = context(rows, 1, 256)
    SkipInactive(worth=2.0).run(read(text, constants(1.0)), made)
    (layer,) = made.reports[0].layers
    assert layer.inactive == pytest.approx(0.8413**rows, abs=0.03)


@pytest.mark.parametrize(("worth", "shift"), [(0.95, -1.0), (0.5, 0.0)])
def test_dense_layers_stay_where_too_many_neurons_are_active(worth, shift):
    made = context(1, 1, 256)
    changes = check_unchanged(SkipInactive(worth), PLAIN, constants=constants(shift), context=made)
    (layer,) = made.reports[0].layers
    ((_, reason),) = changes.skipped
    assert f"{100 * layer.inactive:.0f} % of its neurons are inactive" in reason
    assert f"{100 * layer.cost:.0f} % of the time of dense layers" in reason
    assert not layer.taken


@pytest.mark.parametrize(
    ("change", "reason", "options"),
    [
        ({}, "target ort-cpu computes all neurons anyway", {"target": "ort-cpu"}),
        ({"[1, 1,": "[5, 1,"}, "it has 5 rows; with more than 4", {}),
        ({"[1, 1,": "[n, 1,"}, "how many rows it has isn't known", {}),
        ({"return y": "return {'y': y, 'hidden': hidden}"}, "something else reads what its neurons give", {}),
        ({"def main(x: f32[1, 1, 256])": "def main(x: f32[1, 1, 256], w2: f32[1024, 256])",
          "    w2: f32[1024, 256] = Const('w2')\n": ""}, "its weights aren't constant", {}),
    ],
)  # fmt: skip
def test_what_cant_be_is_left_alone_with_a_reason(change, reason, options):
    text = PLAIN
    for old, new in change.items():
        text = text.replace(old, new)
    check_unchanged(SkipInactive(), text, reason, constants=constants(), context=context(1, 1, 256, **options))


def test_other_element_types_are_left_alone():
    halves = {name: array.astype(np.float16) for name, array in constants().items()}
    check_unchanged(
        SkipInactive(), PLAIN.replace("f32", "f16"), "it computes in f16", constants=halves, context=context(1, 1, 256)
    )


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2"])
def test_weights_that_are_no_numbers_are_left_alone(name):
    payloads = constants()
    payloads[name].reshape(-1)[7] = np.inf
    check_unchanged(SkipInactive(), PLAIN, "infinity or NaN", constants=payloads, context=context(1, 1, 256))


@pytest.mark.parametrize(
    "change",
    [("Relu()", "Sigmoid()"), ("Linear()(x, w1, b1)", "Mul()(b1, b1)")],
)
def test_other_layers_are_no_business_of_the_pass(change):
    text = PLAIN.replace(*change).replace("up: f32[1, 1, 1024] = Mul", "up: f32[1024] = Mul")
    text = text.replace("hidden: f32[1, 1, 1024]", "hidden: f32[1024]") if "Mul" in change[1] else text
    if "Mul" in change[1]:
        text = text.replace("down: f32[1, 1, 256] = Linear", "down: f32[256] = Linear")
    changes = check_unchanged(SkipInactive(), text, constants=constants(), context=context(1, 1, 256))
    assert not changes.skipped


def test_gates_of_something_else_are_left_alone():
    text = GATED.replace("FIRST", "open").replace("SECOND", "up").replace("Linear()(x, w3)", "Linear()(twice, w3)")
    text = text.replace("    up:", "    twice: f32[3, 256] = Add()(x, x)\n    up:")
    assert not check_unchanged(SkipInactive(), text, constants=constants(), context=context(3, 256)).skipped


def test_fuel_limits_the_rewrites():
    graph = read(PLAIN, constants())
    assert not SkipInactive().run(graph, context(1, 1, 256, fuel=Fuel(0)))


def test_the_cost_falls_with_sparsity_and_counts_a_call():
    shape = (1024, 4096, 1024)
    costs = [expected_cost(shape, False, share, share - 0.05) for share in (0.5, 0.8, 0.9, 0.95)]
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < 1 / 3
    assert expected_cost(shape, True, 0.9, 0.85) < costs[2]
    assert expected_cost((16, 64, 16), False, 0.99, 0.99) > 1


def test_the_recipe_has_the_pass_after_raising():
    names = [step.name for step in recipe("skip-inactive").leaves()]
    assert names.index("raise-linear") < names.index("skip-inactive")
