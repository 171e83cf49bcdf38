"""Weights become the codes of a codebook that change the results of their layer little."""

import numpy as np
import pytest

from planish.ir.codebooks import CODEBOOKS
from planish.passes.shiftadd.encoding import encode, error_of

RNG = np.random.default_rng(11)


def covariance(depth):
    mixed = RNG.normal(size=(depth, depth)) / 3 + np.diag(RNG.uniform(0.1, 2, depth))
    rows = RNG.normal(size=(40 * depth, depth)) @ mixed
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("shape", [(7, 3), (33, 5), (130, 9)])
def test_codes_are_of_the_codebook_and_feedback_errs_less(name, shape):
    book, spread, w = CODEBOOKS[name], covariance(shape[0]), RNG.normal(size=shape)
    fed, plain = encode(w, book, spread), encode(w, book, spread, feedback=False)
    for found in (fed, plain):
        assert found.codes.dtype == np.int8
        assert found.codes.shape == shape
        assert book.fault(found.codes, 1) == ""
        assert np.all(found.scales > 0)
    assert error_of(fed, w, spread) < error_of(plain, w, spread)


@pytest.mark.parametrize("name", ["csd2", "apot4", "pot4", "ternary"])
def test_without_feedback_every_weight_gets_the_nearest_code(name):
    book, w = CODEBOOKS[name], RNG.laplace(size=(40, 6))
    found = encode(w, book, np.eye(40), feedback=False)
    for code in book.values:
        assert np.all(np.abs(w - found.real) <= np.abs(w - code * found.scales) + 1e-12)


def test_weights_that_are_codes_already_stay():
    codes = RNG.choice(np.asarray(CODEBOOKS["apot4"].values), (24, 5))
    codes[0] = 10
    w = codes * RNG.uniform(0.1, 3, 5)
    found = encode(w, CODEBOOKS["apot4"], covariance(24))
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.real, w, rtol=1e-9)


def test_columns_of_zeros_and_rows_never_seen_are_no_trouble():
    w = RNG.normal(size=(16, 4))
    w[:, 2] = 0
    spread = np.zeros((16, 16))
    spread[:8, :8] = covariance(8)
    for book in CODEBOOKS.values():
        found = encode(w, book, spread)
        assert np.all(np.isfinite(found.scales))
        assert not np.any(found.codes[:, 2]) or book.is_binary_coded
        np.testing.assert_allclose(found.real[:, 2], 0, atol=1e-9)


def test_more_exact_codebooks_err_less():
    w, spread = RNG.normal(size=(96, 32)), covariance(96)
    errors = [
        error_of(encode(w, CODEBOOKS[name], spread), w, spread)
        for name in ("csd2", "apot6", "apot5", "apot4", "pot4", "ternary")
    ]
    assert errors == sorted(errors)
    coded = [error_of(encode(w, CODEBOOKS[name], spread), w, spread) for name in ("bcq4", "bcq3", "bcq2")]
    assert coded == sorted(coded)
