"""Compressed graphs compute what the papers say, on numpy and on ONNX Runtime, for every kind of encoder."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import Model, Shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.backends.ort.taps import taps
from planish.ir import ops
from planish.ir.interpret import interpret
from planish.ir.verify import verify
from planish.passes.tokens.applying import compressed
from planish.passes.tokens.encoder import find_encoder
from planish.passes.tokens.methods import METHODS, Choice
from planish.passes.tokens.schedule import feasible

SHAPES = {
    "class token": Shape(),
    "dense": Shape(head="dense"),
    "mean": Shape(head="mean"),
    "post-norm": Shape(post_norm=True, head="mean", prefix=0),
    "as many tokens as channels": Shape(tokens=8, head="dense"),
    "as many tokens as heads": Shape(tokens=8, heads=8, width=16, head="dense"),
    "odd head": Shape(tokens=12, heads=3, width=9, prefix=2, head="mean"),
    "one head, fixed batch": Shape(tokens=9, heads=1, batch=2, head="dense"),
}


def check(model: Model, choice: Choice, batch: int = 2, seed: int = 1) -> None:
    graph = compressed(model.graph(), choice)
    verify(graph)
    feed = model.feed(batch, seed)
    expected = model.run(feed, choice.method, choice.removed, choice.proportional)
    found = interpret(graph, feed)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
    (on_ort,) = taps(graph, list(graph.outputs))(feed)
    np.testing.assert_allclose(on_ort, found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SHAPES)
def test_one_cut_and_nested_cuts(name, method):
    model = Model(SHAPES[name])
    encoder = find_encoder(model.graph())
    for removed in ((3, 0, 0), (0, 2, 0), (3, 2, 0), (2, 2, 2)):
        check(model, Choice(method, feasible(removed, encoder, method)))


@pytest.mark.parametrize("proportional", [True, False])
def test_merged_tokens_count_as_many_times_only_if_asked(proportional):
    model = Model(Shape(head="dense"))
    check(model, Choice("merge", (4, 3, 0), proportional=proportional))
    different = [model.run(model.feed(), "merge", (4, 3, 0), setting) for setting in (True, False)]
    assert np.abs(different[0] - different[1]).max() > 1e-3


@pytest.mark.parametrize("method", ["eliminate", "route"])
@pytest.mark.parametrize("head", ["mean", "dense"])
def test_masks_follow_their_tokens(method, head):
    model = Model(Shape(prefix=0, masked=True, head=head, post_norm=True))
    if method == "route":
        compressed(model.graph(), Choice(method, (4, 0, 0)))  # its bridge is shown while one of its tokens is
    else:
        for removed in ((4, 0, 0), (3, 2, 0)):
            check(model, Choice(method, removed), batch=3)


def test_padding_goes_first():
    model = Model(Shape(prefix=0, masked=True, head="mean"))
    graph = compressed(model.graph(), Choice("eliminate", (5, 0, 0)))
    (top,) = graph.nodes(ops.TopTokens)
    feed = model.feed(3)
    feed["mask"][:] = np.arange(13) < 8
    (kept,) = taps(graph, [top.results[0]])(feed)
    assert kept.tolist() == [list(range(8))] * 3


def test_equal_tokens_are_neither_lost_nor_doubled():
    model = Model(Shape(head="dense"))
    model.positions[:] = 0
    feed = model.feed()
    feed["patches"][:] = feed["patches"][:, :1]  # all patches alike: every score is tied
    for method in METHODS:
        graph = compressed(model.graph(), Choice(method, (4, 0, 0)))
        found, (on_ort,) = interpret(graph, feed)["y"], taps(graph, list(graph.outputs))(feed)
        np.testing.assert_allclose(on_ort, found, rtol=1e-3, atol=1e-5)
        for node in graph.nodes(ops.PlaceTokens):
            keep, source, _ = (graph_value for graph_value in node.inputs)
            kept, gone = taps(graph, [keep, source])(feed)
            assert np.sort(np.concatenate([kept, gone], axis=1)).tolist() == [list(range(13))] * 2


@pytest.mark.parametrize("method", METHODS)
def test_samples_choose_for_themselves(method):
    model = Model(Shape(head="dense"))
    graph = compressed(model.graph(), Choice(method, (4, 2, 0)))
    feed = model.feed(4)
    together = interpret(graph, feed)["y"]
    for i in range(4):
        alone = interpret(graph, {"patches": feed["patches"][i : i + 1]})["y"]
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["eliminate", "route"])
def test_a_prior_of_the_caller_ranks_tokens(method):
    model = Model(Shape(head="dense"))
    graph = compressed(model.graph(), Choice(method, (5, 0, 0), "prior"))
    assert [value.hint for value in graph.inputs] == ["patches", "token_prior"]
    (top,) = graph.nodes(ops.TopTokens)
    prior = np.random.default_rng(5).permutation(26).reshape(2, 13).astype(np.float32)
    feed = {**model.feed(), "token_prior": prior}
    (kept,) = taps(graph, [top.results[0]])(feed)
    count = kept.shape[1]
    for row, chosen in zip(prior, kept, strict=True):
        best = sorted(range(1, 13), key=lambda i: -row[i])[: count - 1]
        assert chosen.tolist() == [0, *sorted(best)]
    (on_ort,) = taps(graph, list(graph.outputs))(feed)
    np.testing.assert_allclose(on_ort, interpret(graph, feed)["y"], rtol=1e-3, atol=1e-5)


def test_a_prior_follows_its_tokens_through_nested_cuts():
    model = Model(Shape(head="dense"))
    graph = compressed(model.graph(), Choice("eliminate", (4, 3, 0), "prior"))
    first, second = graph.nodes(ops.TopTokens)
    prior = np.random.default_rng(5).permutation(26).reshape(2, 13).astype(np.float32)
    kept, again = taps(graph, [first.results[0], second.results[0]])({**model.feed(), "token_prior": prior})
    for row, one, two in zip(prior, kept, again, strict=True):
        best = sorted(range(1, 13), key=lambda i: -row[i])[:5]
        assert one[two].tolist() == [0, *sorted(best)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_encoders(data):
    heads = data.draw(st.integers(1, 4))
    shape = Shape(
        tokens=data.draw(st.integers(7, 20)),
        width=heads * data.draw(st.integers(2 if heads > 2 else 5, 6)),
        heads=heads,
        blocks=data.draw(st.integers(1, 4)),
        prefix=data.draw(st.integers(0, 3)),
        post_norm=data.draw(st.booleans()),
        head=data.draw(st.sampled_from(["mean", "dense"])),
        seed=data.draw(st.integers(0, 99)),
    )
    model, method = Model(shape), data.draw(st.sampled_from(METHODS))
    wanted = data.draw(st.lists(st.integers(0, 6), min_size=shape.blocks, max_size=shape.blocks))
    graph = model.graph()
    check(model, Choice(method, feasible(wanted, find_encoder(graph), method)), batch=data.draw(st.integers(1, 3)))
