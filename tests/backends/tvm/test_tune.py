"""Measured tilings: every one gives the same integers, the search keeps what it found, and artifacts say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

import planish
from planish.backends.tvm import tune
from planish.backends.tvm.library import write_library
from planish.backends.tvm.schedule import Schedule, Shape
from planish.backends.tvm.sizes import Variant
from planish.backends.tvm.tiles import tilings
from planish.ir import dtypes
from planish.ir.interpret import interpret
from tests.backends.tvm.graphs import RNG
from tests.backends.tvm.running import HOST, assert_exact, runnable_isas


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shape_for(isa, rows, columns, depth):
    product = isa.product_of(dtypes.u8, rows)
    return Shape(rows, columns, depth, product.dtype, isa.tiles), product


def feeds(graph):
    (x,) = graph.inputs
    return {"x": RNG.integers(0, 100, x.tensor.dims).astype(x.tensor.dtype.storage)}


@pytest.mark.parametrize("isa", runnable_isas())
def test_every_tiling_gives_the_references_bits(isa):
    shape, product = shape_for(isa, 37, 75, 9)
    plans = tilings(37, 75, isa, product)
    assert len(plans) > 2
    graph = tune.product_graph(shape)
    for plan in plans:
        assert sum(count * height for count, height in plan.spans) == 37
        assert_exact(graph, feeds(graph), isa, schedule=Schedule({str(shape): plan}))


def test_what_was_measured_is_kept_by_cpu_and_taken_next_time(cache, monkeypatch):
    graph = tune.product_graph(shape_for(HOST, 9, 33, 16)[0])
    found = tune.tuned([graph], HOST, 20.0, "a CPU")
    assert len(found.measured) == 1
    assert len(list(cache.glob("schedules/*.json"))) == 1
    monkeypatch.setattr(tune, "_fastest", None)  # would fail if anything were measured again
    assert tune.tuned([graph], HOST, 20.0, "a CPU").measured == found.measured
    with pytest.raises(TypeError):
        tune.tuned([graph], HOST, 20.0, "another CPU")


def test_an_artifact_lists_its_measured_tilings_and_computes_the_same(tmp_path):
    shape, product = shape_for(HOST, 9, 33, 16)
    graph = tune.product_graph(shape)
    schedule = Schedule({str(shape): tilings(9, 33, HOST, product)[-1]})
    write_library([Variant(graph)], tmp_path, HOST, schedule=schedule)
    assert set(json.loads((tmp_path / "library.json").read_text())["schedule"]) == {str(shape)}
    given = feeds(graph)
    np.testing.assert_array_equal(planish.load_artifact(tmp_path)(**given)["y"], interpret(graph, given)["y"])


def test_an_unreadable_schedule_is_measured_anew(cache):
    graph = tune.product_graph(shape_for(HOST, 9, 33, 16)[0])
    tune.tuned([graph], HOST, 20.0, "a CPU")
    (path,) = cache.glob("schedules/*.json")
    path.write_text("{")
    assert len(tune.tuned([graph], HOST, 20.0, "a CPU").measured) == 1
