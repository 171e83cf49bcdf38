"""Weights with zeros in a structure are trained, and keep these zeros exactly."""

from __future__ import annotations

import numpy as np
import pytest
from slopes import check_slopes

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Return, as_value, constant
from planish.ir.sparsity import PATTERNS, kept, pattern
from planish.ir.types import tensor
from planish.ir.verify import findings
from planish.passes.base import Context
from planish.passes.judging import Samples, ThreeSets
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import wanda
from planish.passes.sparse.recovering import recovered
from planish.passes.trained import take_weights
from planish.tools.recovery.recover import recover

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

WIDTH = 12
SOURCE = Loc(("drawn",))


def model(layout: str = "linear") -> Graph:
    """x[batch, ..] -> norm (linear) -> layer -> Gelu -> layer -> norm -> logits."""
    rng = np.random.default_rng(0)
    graph = Graph()
    shape = ("batch", 6, WIDTH) if layout == "linear" else ("batch", WIDTH, 5, 5)
    value = graph.add_input("x", tensor(dtypes.f32, *shape))

    def layer(value: Value, depth: int, wide: int) -> Value:
        op, size = ops.Linear(), (depth, wide)
        if layout == "conv":
            op, size = ops.Conv((1, 1), (0,) * 4, (1, 1)), (wide, depth, 3, 3)
        parts = [as_value((rng.normal(size=shape) / 3).astype(np.float32)) for shape in (size, wide)]
        for part in parts:
            graph.attach(part, None, SOURCE)
        return graph.add(op, value, *parts, loc=SOURCE).result

    value = graph.add(ops.Gelu(), layer(value, WIDTH, 16), loc=SOURCE).result
    value = layer(value, 16, 10)
    if layout == "linear":
        ones = [as_value(np.full(10, fill, np.float32)) for fill in (1, 0)]
        for one in ones:
            graph.attach(one, None, SOURCE)
        value = layer(graph.add(ops.LayerNorm(-1, 1e-5), value, *ones, loc=SOURCE).result, 10, 7)
    graph.add(Return(("y",)), value, loc=SOURCE)
    return graph


def layers(graph: Graph) -> list[Node]:
    return graph.nodes(ops.Linear, ops.Conv)


def pruned(teacher: Graph, name: str, layout: str = "linear") -> Graph:
    """A copy of which half of all weights are zeros in a structure, chosen by size."""
    student, _ = teacher.clone()
    for node in layers(student):
        w = constant(node.operands[1]).numpy()
        flat = w if layout == "linear" else w.reshape(len(w), -1).T
        found = wanda(flat.astype(np.float64), np.eye(len(flat)), Structure(name), 0.5)
        found = (found if layout == "linear" else found.T.reshape(w.shape)).astype(np.float32)
        zeros = pattern(name, layout, 0.7)
        made = as_value(Data(found, None, zeros))
        student.attach(made, node, node.loc)
        student.set_operand(node, 1, made)
    student.erase_dead()
    return student


def feeds(layout: str = "linear", count: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    shape = (8, 6, WIDTH) if layout == "linear" else (8, WIDTH, 5, 5)
    return [{"x": (rng.normal(size=shape) + 0.5).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "layout"), [*((n, "linear") for n in PATTERNS), ("ob4", "conv"), ("unstructured", "conv")]
)
def test_training_keeps_the_zeros_and_the_type(name, layout):
    teacher = model(layout)
    student = pruned(teacher, name, layout)
    before = [constant(node.operands[1]) for node in layers(student)]
    found = recover(student, teacher, layers(student), [], feeds(layout), steps=60, threads=1, learning_rate=0.03)
    assert found.after < 0.7 * found.before
    for old, node in zip(before, layers(student), strict=True):
        new = constant(node.operands[1])
        assert new.type == old.type
        assert new.type.sparsity is not None
        away = ~kept(old.numpy(), old.type.sparsity)
        assert np.any(away)
        assert not np.any(new.numpy()[away])
        assert not np.array_equal(new.numpy(), old.numpy())
    assert findings(student) == []


def test_gradients_of_masked_weights_are_those_of_the_loss():
    from planish.tools.recovery.coordinates import Coordinates
    from planish.tools.recovery.torch_graph import TorchGraph

    student = pruned(model(), "ob4")
    module = TorchGraph(student, layers(student))
    feed = {"x": torch.from_numpy(feeds()[0]["x"])}
    coordinates = Coordinates(module, [feed])

    def loss() -> torch.Tensor:
        return module(feed)[0][0].square().mean()

    check_slopes(coordinates, module, loss)


def test_a_pruned_graph_is_trained_against_the_original_block_by_block():
    teacher = model()
    student = pruned(teacher, "ob4")
    samples = feeds(count=24)
    sets = ThreeSets(Samples(samples[:16]), Samples(samples[16:]), Samples([]))
    seen = []

    def training(student, teacher, trainable, pairs, feeds, held_out):
        seen.append((len(trainable), len(pairs), len(feeds), len(held_out)))
        return recover(student, teacher, trainable, pairs, feeds, held_out=held_out, steps=60, learning_rate=0.03)

    assert recovered(student, teacher, sets, Context()) is None
    found = recovered(student, teacher, sets, Context(recover=training))
    assert seen == [(3, 1, 22, 2)]
    assert found.after < found.before / 2
    other = pruned(teacher, "ob4")
    take_weights(other, student)
    for mine, theirs in zip(layers(other), layers(student), strict=True):
        assert constant(mine.operands[1]) is constant(theirs.operands[1])
    assert findings(other) == []
