"""The screen: what it proves to be 0 is 0, however sums are rounded; and it proves most of what is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir.screening import UNIT, screen

SCALES = st.sampled_from([1e-44, 1e-38, 1e-20, 1e-8, 1e-3, 1.0, 30.0, 1e4, 1e8, 1e14, 1e18, 1e30, 3e38])


@st.composite
def layers(draw):
    """Weights [F, K], a bias, and rows [2, K] of any size, sparse or dense, with single elements that stand out."""
    seed, depth = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 2, 3, 7, 16, 65, 300]))
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        kind = draw(st.sampled_from(["normal", "outliers", "sparse", "equal", "integers", "mixed"]))
        found = rng.standard_normal(shape)
        if kind == "outliers":
            found[..., rng.integers(shape[-1])] *= 1000
        if kind == "sparse":
            found *= rng.random(shape) < 0.1
        if kind == "equal":
            found = np.ones(shape) * rng.choice([-1, 1], shape)
        if kind == "integers":
            found = rng.integers(-127, 128, shape).astype(np.float64)
        if kind == "mixed":
            found *= 10.0 ** rng.integers(-12, 3, shape)
        with np.errstate(over="ignore"):
            return (found * draw(SCALES)).astype(np.float32)

    weights, x = numbers(6, depth), numbers(2, depth)
    exact = np.array([[dot(w, row) for w in weights] for row in x])
    with np.errstate(over="ignore", invalid="ignore"):
        near = -exact[0] * draw(st.sampled_from([0.5, 1 - 1e-7, 1.0, 1 + 1e-6, 1.01, 1.5]))
        near = near.astype(np.float32)
    return weights, near if draw(st.booleans()) else numbers(6), x


def dot(w: np.ndarray, x: np.ndarray) -> float:
    products = [float(a) * float(b) for a, b in zip(w, x, strict=True)]  # exact: 24 bits by 24 bits
    return math.fsum(products) if np.isfinite(products).all() else math.nan


def in_some_orders(w: np.ndarray, bias: np.float32, x: np.ndarray) -> list[np.float32]:
    """The sum in float32: in order, backwards, the largest first, the smallest first, and by halves."""
    with np.errstate(all="ignore"):
        products = w * x
        found = []
        for order in (np.arange(len(w)), np.arange(len(w))[::-1], np.argsort(-products), np.argsort(products)):
            total = np.float32(0)
            for product in products[order]:
                total = np.float32(total + product)
            found.append(np.float32(total + bias))
        return [*found, np.float32(np.sum(products) + bias), np.float32(w @ x + bias)]


@settings(max_examples=400, deadline=None)
@given(layers())
def test_what_is_proved_is_zero_in_any_order_of_summation(layer):
    weights, bias, x = layer
    proved = screen(weights, bias).proves(x)
    for row, neuron in np.argwhere(proved):
        w, b = weights[neuron], bias[neuron]
        assert max(in_some_orders(w, b, x[row])) <= 0
        size = math.fsum(abs(float(a) * float(c)) for a, c in zip(w, x[row], strict=True)) + abs(float(b))
        assert dot(w, x[row]) + float(b) + (len(w) + 8) * UNIT * size <= 0  # what any order may be off by


@pytest.mark.parametrize("depth", [1, 5, 64, 1000])
def test_inputs_along_the_error_of_the_codes_prove_nothing(depth):
    """The worst case of the bound: the copy says that the sum is below 0, the weights say that it is above."""
    rng = np.random.default_rng(depth)
    weights = rng.standard_normal((20, depth)).astype(np.float32)
    found = screen(weights, None)
    copies = found.codes * found.steps[:, None]
    x = (weights - copies).astype(np.float32) + np.float32(1e-9)
    exact = np.array([dot(w, row) for w, row in zip(weights, x, strict=True)])
    bias = (-exact + 1e-6 * np.abs(exact)).astype(np.float32)
    positive = exact + bias.astype(np.float64) > 0
    assert positive.sum() >= 5
    by_copies = np.sum(copies * x, axis=1) + bias
    if depth > 1:
        assert (by_copies[positive] < 0).all()
    assert not np.diagonal(screen(weights, bias).proves(x))[positive].any()


@pytest.mark.parametrize(
    "x", [np.nan, np.inf, -np.inf, 0.0, 1e-40, 1e30], ids=["nan", "inf", "-inf", "zero", "denormal", "huge"]
)
def test_rows_out_of_range_prove_nothing(x):
    weights, rows = np.ones((3, 8), np.float32), np.full((2, 8), -1, np.float32)
    assert screen(weights, None).proves(rows).all()
    rows[1, 3] = x
    if x in (0.0, 1e-40):
        rows[1] = x
    assert screen(weights, None).proves(rows).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_neurons_out_of_range_are_never_proved(bad):
    weights, bias = np.ones((4, 8), np.float32), np.zeros(4, np.float32)
    weights[1, 2], bias[2] = bad, bad
    found = screen(weights, bias).proves(np.full((1, 8), -1, np.float32))
    assert found.tolist() == [[True, False, False, True]]


def test_most_inactive_neurons_are_proved():
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((4096, 1024)).astype(np.float32) / 32
    x, bias = rng.standard_normal((4, 1024)).astype(np.float32), np.full(4096, -1.2816, np.float32)
    inactive = x @ weights.T + bias <= 0
    proved = screen(weights, bias).proves(x)
    assert 0.88 < inactive.mean() < 0.92
    assert not (proved & ~inactive).any()
    assert proved.mean() > 0.82
