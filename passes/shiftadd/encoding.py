"""Weights to codes of a codebook, so that the results of their layer change as little as possible.

The error that is made smaller is that of the layer's results, e.T @ C @ e for an error e of a column of weights and the
covariance C of what they multiply: rows of weights are rounded one after the other, and what each rounding does to the
results is taken off the rows that are still to come (GPTQ, arXiv 2210.17323; ShiftAddLLM, section 4.1, for codebooks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planish.ir.codebooks import GROUP, Codebook
from planish.passes.shiftadd.binary_coding import levels_of, nearest_level

_BLOCK = 128  # rows whose errors are taken off the rows behind them together
_DAMPING = 0.01  # of the mean variance, so that directions that samples don't show stay bounded
_STEPS = np.geomspace(0.25, 1.1, 48)  # of the scale at which the largest weight gets the largest code
_REFINEMENTS = 4  # of the best of them, by least squares
_SAMPLED = 512  # rows that scales are searched on, where there are more
_ROUNDS = 2  # of sweeps; in between, scales are fitted to the codes


@dataclass(frozen=True)
class Encoded:
    """Weights as codes: int8[K, N] and a scale per column, float64[N]."""

    codes: np.ndarray
    scales: np.ndarray

    @property
    def real(self) -> np.ndarray:
        return self.codes * self.scales


def error_of(found: Encoded, w: np.ndarray, covariance: np.ndarray) -> float:
    """Energy of the error of a layer's results, beyond their mean, per row: w is [K, N], covariance [K, K]."""
    error = found.real - w
    return float(np.sum(error * (covariance @ error)))


def encode(w: np.ndarray, book: Codebook, covariance: np.ndarray, feedback: bool = True) -> Encoded:
    """Codes of weights w [K, N] for rows of the given covariance [K, K]; `feedback` as in `Curvature.encode`."""
    return Curvature(covariance).encode(w, book, feedback)


class Curvature:
    """How an error of weights [K, N] becomes one of results: the covariance [K, K] of rows, and what follows of it."""

    def __init__(self, covariance: np.ndarray):
        least = max(float(np.mean(np.diag(covariance))), 1e-12)
        self.damped = covariance + _DAMPING * least * np.eye(len(covariance))

    def encode(self, w: np.ndarray, book: Codebook, feedback: bool = True) -> Encoded:
        """Codes of weights.

        feedback: let later rows make good what earlier ones lose; otherwise every weight gets the nearest code.
        """
        scales = _searched(w, book, np.diag(self.damped))
        if not feedback:
            return Encoded(_rounded_rows(w, book, scales), scales)
        order, factor = self._as_they_come if book.is_binary_coded else self._strongest_first
        best: Encoded | None = None
        least = np.inf
        for _ in range(_ROUNDS):
            codes = np.empty(w.shape, np.int8)
            codes[order] = _swept(w[order], book, scales, factor)
            scales = _fitted(codes, w, self.damped, scales)
            found = Encoded(codes, scales)
            error = error_of(found, w, self.damped)
            if error < least:
                best, least = found, error
        assert best is not None
        return best

    @cached_property
    def _strongest_first(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order in which they are rounded, and the factor for it."""
        order = np.argsort(-np.diag(self.damped), kind="stable")
        return order, _factor(self.damped[np.ix_(order, order)])

    @cached_property
    def _as_they_come(self) -> tuple[np.ndarray, np.ndarray]:
        """The same in the order of rows, which groups of binary-coded books need."""
        return np.arange(len(self.damped)), _factor(self.damped)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Upper triangular U with U.T @ U the inverse of the covariance."""
    return np.linalg.cholesky(np.linalg.inv(covariance)).T


def _swept(w: np.ndarray, book: Codebook, scales: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Codes row by row, with the error of each taken off those behind it."""
    rest, codes = w.copy(), np.empty(w.shape, np.int8)
    depth = len(w)
    rounded: Callable[[np.ndarray], np.ndarray] = _rounder(book)
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        errors = np.empty((stop - start, w.shape[1]))
        for k in range(start, stop):
            if book.is_binary_coded and (k - start) % GROUP == 0:
                rounded = nearest_level(levels_of(rest[k : k + GROUP] / scales, book.bits))
            codes[k] = rounded(rest[k] / scales)
            errors[k - start] = (rest[k] - codes[k] * scales) / factor[k, k]
            rest[k + 1 : stop] -= factor[k, k + 1 : stop, None] * errors[k - start]
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def _rounded_rows(w: np.ndarray, book: Codebook, scales: np.ndarray) -> np.ndarray:
    """The nearest code of each weight."""
    if not book.is_binary_coded:
        return _rounder(book)(w / scales)
    parts = []
    for start in range(0, len(w), GROUP):
        rows = w[start : start + GROUP] / scales
        rounded = nearest_level(levels_of(rows, book.bits))
        parts.append(np.stack([rounded(row) for row in rows]))
    return np.concatenate(parts)


def _rounder(book: Codebook) -> Callable[[np.ndarray], np.ndarray]:
    """Nearest codes: a table by half steps, since halfway between two integers is a multiple of 1/2."""
    if book.values is None:
        return lambda x: np.zeros(x.shape, np.int8)
    values = np.asarray(book.values)
    bounds = (values[1:] + values[:-1]) / 2
    span = 2 * int(values[-1])
    table = values[np.searchsorted(bounds, (np.arange(-span, span + 1) + 0.5) / 2)].astype(np.int8)
    return lambda x: table[np.clip(np.floor(2 * x), -span, span).astype(np.int64) + span]


def _searched(w: np.ndarray, book: Codebook, weight: np.ndarray) -> np.ndarray:
    """The scale of each column at which nearest codes err least, squares weighted by row."""
    largest = np.maximum(np.max(np.abs(w), axis=0), 1e-12)
    if book.values is None:
        return np.asarray(largest / 127)
    chosen = slice(None) if len(w) <= _SAMPLED else np.linspace(0, len(w) - 1, _SAMPLED).astype(np.int64)
    rows, weight = w[chosen], weight[chosen]
    rounded = _rounder(book)
    top = largest / book.values[-1]
    best, least = top, np.full(w.shape[1], np.inf)
    for step in _STEPS:
        error = weight @ (rounded(rows / (top * step)) * (top * step) - rows) ** 2
        best, least = np.where(error < least, top * step, best), np.minimum(error, least)
    for _ in range(_REFINEMENTS):
        codes = rounded(rows / best).astype(np.float64)
        square, mixed = weight @ codes**2, weight @ (codes * rows)
        best = np.where((square > 0) & (mixed > 0), mixed / np.maximum(square, 1e-300), best)
    return np.asarray(best)


def _fitted(codes: np.ndarray, w: np.ndarray, covariance: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The scale of each column at which these codes err least; as it is where they are all 0."""
    wide = codes.astype(np.float64)
    weighed = covariance @ wide
    square, mixed = np.sum(wide * weighed, axis=0), np.sum(w * weighed, axis=0)
    return np.where((square > 0) & (mixed > 0), mixed / np.maximum(square, 1e-300), scales)
