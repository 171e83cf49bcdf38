"""Coordinates stand for the same layers, and have the gradients of what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from slopes import check_slopes

from planish.ir import dtypes, ops
from planish.ir.graph import Graph
from planish.ir.op import Return, as_value
from planish.ir.types import tensor

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

from planish.tools.recovery.coordinates import Coordinates  # noqa: E402
from planish.tools.recovery.torch_graph import TorchGraph  # noqa: E402


def two_layers() -> Graph:
    """x[batch, 5] -> Linear with bias -> Linear without -> y[batch, 3]."""
    rng = np.random.default_rng(0)
    graph = Graph()
    value = graph.add_input("x", tensor(dtypes.f32, "batch", 5))
    for shapes in (((5, 4), (4,)), ((4, 3),)):
        parts = [as_value(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
        for part in parts:
            graph.insert(part.node)
        value = graph.add(ops.Linear(), value, *parts).result
    graph.add(Return(("y",)), value)
    return graph


def feed() -> dict[str, torch.Tensor]:
    """Inputs with a mean, and with one direction a hundred times as strong as the others."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 5)) + 3 + 100 * rng.normal(size=(64, 1)) * np.array([1, 1, 0, -1, 0])
    return {"x": torch.from_numpy(x.astype(np.float32))}


def test_they_stand_for_the_same_weights():
    graph = two_layers()
    module = TorchGraph(graph, graph.nodes(ops.Linear))
    before = [weight.detach().clone() for weight in module.weights]
    Coordinates(module, [feed()]).push()
    for old, new in zip(before, module.weights, strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=1e-3, atol=1e-3)


def test_gradients_are_those_of_the_loss_along_the_leaves():
    graph = two_layers()
    module = TorchGraph(graph, graph.nodes(ops.Linear))
    coordinates = Coordinates(module, [feed()])

    def loss() -> torch.Tensor:
        return module(feed())[0][0].square().mean()

    check_slopes(coordinates, module, loss)


def test_inputs_become_white():
    graph = two_layers()
    first = graph.nodes(ops.Linear)[0]
    module = TorchGraph(graph, [first])
    coordinates = Coordinates(module, [feed()])
    x = feed()["x"]
    coordinates.push()
    base = module(feed())[0][0].detach()
    sizes = []
    for row in torch.eye(5):  # how much each row of the leaf moves the hidden values
        coordinates.leaves[0] += 0.01 * row[:, None]
        coordinates.push()
        sizes.append(float((module(feed())[0][0].detach() - base).std()))
        coordinates.leaves[0] -= 0.01 * row[:, None]
    assert max(sizes) < 20 * min(sizes)
    assert float(x.std(0).max() / x.std(0).min()) > 50
