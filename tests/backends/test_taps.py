"""ONNX Runtime gives the arrays of any values of a graph, and leaves the graph as it was."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.ort.taps import taps
from planish.ir.errors import CalibrationError
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.op import Const
from planish.ir.text import parse_graph, print_graph

TEXT = """
def net(x: f32[n, 4], mask: bool[n, 4]):
    w = Const(f32, [[1.0, -1.0, 0.5], [2.0, 3.0, -0.5], [0.25, 1.5, 2.0], [-2.0, 1.0, 1.0]])
    zero = Const(f32, 0.0)
    kept = Where()(mask, x, zero)
    product = MatMul()(kept, w)
    softened = Softmax(axis=-1)(product)
    left, right = Split(axis=1, sizes=(1, 2))(softened)
    return {'left': left, 'right': right}
"""


def graph() -> Graph:
    return parse_graph(TEXT)


def feeds(rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {"x": rng.normal(size=(rows, 4)).astype(np.float32), "mask": rng.random((rows, 4)) < 0.7}


def values_of(net: Graph) -> list[Value]:
    return [*net.inputs, *(result for node in net for result in node.results)]


def computed(net: Graph, feed: dict[str, np.ndarray]) -> dict[Value, np.ndarray]:
    seen: dict[Value, np.ndarray] = {}
    interpret(net, feed, taps=lambda value, array: seen.update({value: array}))
    return seen


def test_every_value_is_as_numpy_computes_it_at_any_batch():
    net = graph()
    values = [value for value in values_of(net) if not isinstance(value.op, Const)]
    assert len(values) == 7
    run = taps(net, values)
    for rows in (1, 3):
        expected = computed(net, feeds(rows))
        for value, array in zip(values, run(feeds(rows)), strict=True):
            assert array.dtype == expected[value].dtype
            np.testing.assert_allclose(array, expected[value], rtol=1e-5, atol=1e-6, err_msg=value.hint)


def test_constants_inputs_and_repeated_values_can_be_asked_for():
    net = graph()
    weight = net.nodes(Const)[0].result
    x = net.inputs[0]
    found = taps(net, [weight, x, weight, x])(feeds())
    assert np.array_equal(found[0], weight.op.data.numpy())
    assert np.array_equal(found[2], found[0])
    assert np.array_equal(found[1], feeds()["x"])
    assert np.array_equal(found[3], found[1])


def test_feeds_may_hold_inputs_that_the_values_do_not_need():
    net = graph()
    assert np.array_equal(taps(net, [net.inputs[1]])(feeds())[0], feeds()["mask"])


def test_the_graph_stays_as_it_was():
    net = graph()
    before, version = print_graph(net), net.version
    taps(net, values_of(net))(feeds())
    assert print_graph(net) == before
    assert net.version == version


def test_two_sessions_give_the_same_bits():
    first, second = (taps(net, net.outputs)(feeds(64)) for net in (graph(), graph()))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def test_feeds_that_do_not_fit_are_refused():
    net = graph()
    with pytest.raises(CalibrationError):
        taps(net, net.outputs)({"x": np.zeros((2, 5), np.float32), "mask": np.ones((2, 5), bool)})
