"""Recovery on a tiny model: what it must reach, keep, refuse and leave alone."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from planish.ir import dtypes
from planish.ir.errors import CalibrationError, UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Return, as_value, constant
from planish.ir.ops import Gelu, Linear
from planish.ir.types import tensor
from planish.ir.verify import findings
from planish.tools.recovery.recover import Recovery, recover

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

WIDTH = 12
SOURCE = Loc(("drawn",))


def model(dtype=dtypes.f32) -> Graph:
    """x[batch, WIDTH] -> hidden layer -> logits[batch, 4]."""
    rng = np.random.default_rng(0)
    graph = Graph()
    x = graph.add_input("x", tensor(dtype, "batch", WIDTH))

    def linear(value: Value, wide: int, hint: str) -> Value:
        weight = rng.normal(size=(value.tensor.dims[1], wide)).astype(dtype.storage) / 3
        parts = [as_value(part.astype(dtype.storage)) for part in (weight, rng.normal(size=wide))]
        for part in parts:
            graph.attach(part, None, SOURCE)
        return graph.add(Linear(), value, *parts, hint=hint, loc=SOURCE).result

    hidden = graph.add(Gelu(), linear(x, 16, "hidden"), hint="active", loc=SOURCE).result
    graph.add(Return(("logits",)), linear(hidden, 4, "logits"), loc=SOURCE)
    return graph


def spoiled(teacher: Graph, amount: float = 0.3) -> tuple[Graph, list[Node], list[tuple[Value, Value]]]:
    """A copy with noise on the weights of both layers, its layers, and the pair of hidden values."""
    student, twins = teacher.clone()
    rng = np.random.default_rng(1)
    for node in student.nodes(Linear):
        weight = constant(node.operands[1]).numpy()
        noisy = as_value((weight + amount * rng.normal(size=weight.shape)).astype(weight.dtype))
        student.attach(noisy, node, node.loc)
        student.set_operand(node, 1, noisy)
    student.erase_dead()
    hidden = teacher.nodes(Gelu)[0].result
    return student, student.nodes(Linear), [(twins[hidden], hidden)]


def feeds(count: int = 16, dtype=np.float32) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.normal(size=(8, WIDTH)).astype(dtype)} for _ in range(count)]


def trained(steps: int = 200, **options) -> tuple[Graph, Recovery]:
    teacher = model()
    student, layers, pairs = spoiled(teacher)
    return student, recover(
        student, teacher, layers, pairs, feeds(), steps=steps, threads=1, **{"learning_rate": 0.03, **options}
    )


def weights(graph: Graph) -> list[np.ndarray]:
    return [constant(v).numpy() for node in graph.nodes(Linear) for v in node.operands[1:]]


def test_the_held_out_error_falls():
    student, found = trained()
    assert found.after < found.before / 10
    assert found.after == pytest.approx(found.outputs[0].after)
    assert found.before == pytest.approx(found.outputs[0].before)
    assert found.pairs[0].after < found.pairs[0].before / 10
    assert (found.pairs[0].name, found.outputs[0].name) == ("active", "logits")
    assert found.curve[0][0] == 0
    assert found.curve[-1][0] == found.steps == 200
    assert findings(student) == []


def test_the_same_steps_give_the_same_weights_and_leave_the_callers_state_alone():
    torch.manual_seed(5)
    state, count = torch.get_rng_state(), torch.get_num_threads()
    first, _ = trained(steps=20)
    torch.rand(3)
    second, _ = trained(steps=20)
    other, _ = trained(steps=20, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(weights(first), weights(other), strict=True))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == count
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_the_chosen_layers_change():
    teacher = model()
    student, layers, pairs = spoiled(teacher)
    before = weights(student)
    recover(student, teacher, layers[:1], pairs, feeds(), steps=30, threads=1)
    same = [np.array_equal(a, b) for a, b in zip(before, weights(student), strict=True)]
    assert same == [False, False, True, True]


def test_start_weights_stay_where_nothing_is_better():
    teacher = model()
    student, layers, pairs = spoiled(teacher, amount=0.0)
    before = weights(student)
    found = recover(student, teacher, layers, pairs, feeds(), steps=5, threads=1, learning_rate=1.0)
    assert found.kept_step == 0
    assert found.after == found.before
    assert all(a is b for a, b in zip(before, weights(student), strict=True))


def test_weights_keep_their_dtype():
    teacher = model(dtypes.f16)
    student, layers, pairs = spoiled(teacher)
    found = recover(student, teacher, layers, pairs, feeds(dtype=np.float16), steps=60, threads=1, learning_rate=0.03)
    assert found.after < found.before / 2
    assert {weight.dtype for weight in weights(student)} == {np.dtype(np.float16)}


def test_time_is_turned_into_steps():
    teacher = model()
    student, layers, pairs = spoiled(teacher)
    seen: list[tuple[int, int]] = []
    found = recover(
        student,
        teacher,
        layers,
        pairs,
        feeds(),
        seconds=0.3,
        threads=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i + 1, found.steps) for i in range(found.steps)]
    assert found.steps >= 1


def test_mixtures_help_as_well():
    _, found = trained(mix=True)
    assert found.after < found.before / 10


def test_not_a_number_is_refused():
    teacher = model()
    student, layers, pairs = spoiled(teacher)
    bad = feeds()
    bad[3]["x"][1, 2] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        recover(student, teacher, layers, pairs, bad, steps=5, threads=1)
    huge = [{"x": feed["x"] * np.float32(1e38)} for feed in feeds()]
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        recover(student, teacher, layers, pairs, huge, steps=5, threads=1)


def test_arguments_that_make_no_sense_are_refused():
    teacher = model()
    student, layers, pairs = spoiled(teacher)
    with pytest.raises(UsageError, match="nothing to train"):
        recover(student, teacher, [], pairs, feeds(), steps=5)
    with pytest.raises(UsageError, match="can't be trained"):
        recover(student, teacher, student.nodes(Gelu), pairs, feeds(), steps=5)
    with pytest.raises(UsageError, match="is compared with"):
        recover(student, teacher, layers, [(student.outputs[0], pairs[0][1])], feeds(), steps=5)
    with pytest.raises(CalibrationError, match="no data"):
        recover(student, teacher, layers, pairs, [], steps=5)


def test_missing_torch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    teacher = model()
    student, layers, pairs = spoiled(teacher)
    with pytest.raises(UsageError) as raised:
        recover(student, teacher, layers, pairs, feeds(), steps=5)
    assert "planish[torch]" in raised.value.remedy
