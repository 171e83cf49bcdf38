"""Random graphs through every pipeline: they stay valid, keep their results, and print to text that parses back."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import feeds_of, random_graph

from planish.ir.interpret import interpret
from planish.ir.ranges import ranges
from planish.ir.text import constants_of, parse_graph, print_graph
from planish.ir.verify import verify
from planish.passes.base import Context, Pipeline, pipeline_exactness
from planish.passes.exactness import ROUNDING, Exactness, weakest
from planish.passes.observers import VerifyEach, difference
from planish.passes.pipelines import PASSES, RECIPES

GRAPHS = 1000
SHARDS = 4


def bar(exactness: Exactness) -> Exactness:
    """numpy itself rounds differently by memory layout, so results are never compared bit by bit."""
    return weakest(exactness, ROUNDING)


def check(seed: int, pipeline: Pipeline) -> None:
    graph = random_graph(seed)
    verify(graph)
    feeds = feeds_of(graph, seed)
    with np.errstate(all="ignore"):
        expected = interpret(graph, feeds)
        pipeline.run(graph, Context(observers=(VerifyEach(),)))
        found = interpret(graph, feeds)
    assert list(found) == list(expected)
    for name in expected:
        fault = difference(expected[name], found[name], bar(pipeline_exactness(pipeline)))
        assert not fault, f"seed {seed}, {name}: {fault}\n{print_graph(random_graph(seed))}"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_thousand_random_graphs_keep_their_results(shard):
    for seed in range(shard, GRAPHS, SHARDS):
        check(seed, RECIPES["default"][1])


RUNNABLE = [kind for kind in PASSES if not kind.needs_calibration]


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), steps=st.lists(st.sampled_from(RUNNABLE), min_size=1, max_size=6))
def test_passes_in_any_order_keep_results(seed, steps):
    check(seed, Pipeline(*(kind() for kind in steps)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_text_round_trip_is_the_identity(seed):
    graph = random_graph(seed)
    text = print_graph(graph)
    again = parse_graph(text, constants=constants_of(graph))
    assert print_graph(again) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_interval_analysis_holds_every_value_computed(seed):
    graph = random_graph(seed)
    bounds = ranges(graph)
    misses = []

    def tap(value, array):
        if array.dtype.kind in "fiu" and np.isfinite(array).all():
            slack = 1e-5 * (1 + np.abs(array).max(initial=0.0))
            interval = bounds[value]
            if array.size and (array.min() < interval.lo - slack or array.max() > interval.hi + slack):
                misses.append((value.hint, interval, array.min(), array.max()))

    with np.errstate(all="ignore"):
        interpret(graph, feeds_of(graph, seed), taps=tap)
    assert misses == []


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_a_clone_is_the_same_program_and_independent(seed):
    graph = random_graph(seed)
    copy, _ = graph.clone()
    text = print_graph(graph)
    assert print_graph(copy) == text
    RECIPES["default"][1].run(copy, Context())
    assert print_graph(graph) == text
