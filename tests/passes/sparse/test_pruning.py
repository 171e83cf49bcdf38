"""Weights are pruned in structures, and the better a method knows what it multiplies, the less its results change."""

import numpy as np
import pytest

from planish.ir.sparsity import PATTERNS, fault, pattern
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import METHODS, damped, error_of, magnitude, refitted, wanda

RNG = np.random.default_rng(6)


def layer(depth=64, columns=32, seed=0):
    """Correlated, heavy-tailed rows, as layers of transformers read them."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(depth, depth)) * 0.3 + np.diag(rng.lognormal(0, 0.8, depth))
    rows = rng.standard_t(6, size=(60 * depth, depth)) @ mixed
    return rng.normal(size=(depth, columns)), np.cov(rows.T)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(64, 32), (37, 19), (5, 3)])
def test_what_is_left_has_the_structure(name, method, shape):
    w, covariance = layer(*shape)
    density = 0.5 if name == "2:4" else 0.3
    found = METHODS[method](w, damped(covariance), Structure(name), density)
    assert found.shape == w.shape
    rows = -(-shape[0] // 4) if name == "ib4" else shape[0]
    limit = 1.0 if name == "2:4" else max(1, round(density * rows)) / rows
    assert fault(found, pattern(name, density=max(limit, max(1, round(density * min(rows, 128))) / rows))) == ""
    assert np.count_nonzero(found) > 0


@pytest.mark.parametrize("name", ["unstructured", "ob4", "2:4"])
@pytest.mark.parametrize("density", [0.5, 0.2])
def test_methods_rank_as_published(name, density):
    errors = np.zeros(len(METHODS))
    for seed in range(2):
        w, covariance = layer(160, 16, seed=seed)
        h = damped(covariance)
        errors += [error_of(method(w, h, Structure(name), density), w, h) for method in METHODS.values()]
    assert list(errors) == sorted(errors, reverse=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PATTERNS)
def test_a_fit_is_never_worse_and_keeps_the_zeros(method, name):
    w, covariance = layer(48, 16, seed=4)
    h = damped(covariance)
    found = METHODS[method](w, h, Structure(name), 0.4)
    fitted = refitted(found, w, h)
    assert error_of(fitted, w, h) <= error_of(found, w, h) + 1e-9
    assert not np.any(fitted[found == 0])
    gradient = h @ (fitted - w)
    np.testing.assert_allclose(gradient[found != 0], 0, atol=1e-8 * np.max(np.abs(h @ w)))


def test_a_matrix_without_correlation_is_pruned_by_size():
    w = RNG.normal(size=(16, 8))
    free = Structure("unstructured")
    for method in METHODS.values():
        np.testing.assert_allclose(method(w, np.eye(16), free, 0.5), magnitude(w, np.eye(16), free, 0.5))


def test_rows_of_zeros_in_the_data_vanish_first():
    w, h = np.ones((8, 4)), np.diag([1, 1, 0, 0, 1, 0, 1, 0.0]) + 1e-9 * np.eye(8)
    np.testing.assert_array_equal(np.any(wanda(w, h, Structure("ob4"), 0.5), axis=1), np.diag(h) > 0.5)
