"""Methods rank on a layer of the bundled ViT, with what it really reads, as they do in their papers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import planish
from planish.backends.ort.taps import taps
from planish.ir.ops import Linear
from planish.passes.base import Context
from planish.passes.calibration.gram import collect_grams
from planish.passes.layers import matrices
from planish.passes.sparse.armor import armored
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import METHODS, block_obs, damped, error_of, refitted

ZOO = Path(planish.__file__).parent.parent / "tools" / "zoo" / "fashion_vit"
LAYERS = ("node_linear_2", "node_linear_7")  # of MLPs, with 96 and with 384 inputs
CASES = (("ob4", 0.5), ("ob4", 0.2), ("ob16", 0.5), ("ib4", 0.5), ("2:4", 0.5), ("unstructured", 0.2))


@cache
def layers() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Weights of 48 outputs, damped covariance of what they read on 64 images, and covariance on 64 others."""
    graph = planish.optimize(ZOO / "model.onnx", "default")
    nodes = [node for node in graph.nodes(Linear) if node.label in LAYERS]
    images = np.load(ZOO / "calibration.npz")["images"]
    name = graph.inputs[0].hint
    context = Context(taps=lambda graph, values: taps(graph, values, threads=1))
    fit, other = (
        collect_grams(graph, context, nodes, [{name: images[start + i : start + i + 16]} for i in range(0, 64, 16)])
        for start in (0, 64)
    )
    return {
        node.label: (matrices(node)[0][:, :48], damped(mine.covariance[0]), unseen.covariance[0])
        for node, mine, unseen in zip(nodes, fit, other, strict=True)
    }


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("structure", "density"), CASES)
def test_the_more_a_method_knows_the_less_results_change(layer, structure, density):
    w, h, unseen = layers()[layer]
    found = {name: method(w, h, Structure(structure), density) for name, method in METHODS.items()}
    for covariance in (h, unseen):
        errors = [error_of(found[name], w, covariance) for name in ("obs", "sparsegpt", "wanda", "magnitude")]
        assert errors == sorted(errors)
    fitted = {name: error_of(refitted(one, w, h), w, h) for name, one in found.items()}
    assert all(fitted[name] <= error_of(one, w, h) * (1 + 1e-9) for name, one in found.items())
    assert fitted["obs"] <= min(fitted.values()) * (1 + 1e-9)


@pytest.mark.parametrize("layer", LAYERS)
def test_two_of_four_between_factors_is_below_all_of_them(layer):
    w, h, unseen = layers()[layer]
    structure = Structure("2:4")
    alone = [refitted(method(w, h, structure, 0.5), w, h) for method in METHODS.values()]
    found = armored(w, h, structure, 0.5, 16)
    assert np.all(np.diff(found.losses) <= 0)
    for covariance in (h, unseen):
        assert error_of(found.product, w, covariance) < 0.6 * min(error_of(one, w, covariance) for one in alone)


@pytest.mark.parametrize(("structure", "density"), [("ob4", 0.5), ("unstructured", 0.3)])
def test_rows_taken_out_some_at_a_time_err_as_one_at_a_time(structure, density, monkeypatch):
    w, h, _ = layers()["node_linear_7"]
    fast = block_obs(w[:, :16], h, Structure(structure), density)
    monkeypatch.setattr("planish.passes.sparse.pruning._AT_ONCE", 1 << 20)
    exact = block_obs(w[:, :16], h, Structure(structure), density)
    assert np.any((fast != 0) != (exact != 0))
    assert error_of(fast, w[:, :16], h) <= 1.02 * error_of(exact, w[:, :16], h)
